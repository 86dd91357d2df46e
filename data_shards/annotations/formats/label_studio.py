"""Label Studio (labelstud.io/guide/export): its JSON and JSON-MIN; regions in percent of the image's sides."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from data_shards.annotations.base import Annotation, Corners, Row, bounds, ellipse_bounds, stated_size, turned_bounds
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import mapping, objects, parse_json
from data_shards.annotations.masks.brush import brush_bounds
from data_shards.sources.inventory import Text

_RESULTS = re.compile(r'"(?:annotations|completions)"\s*:\s*\[')
_TASK = re.compile(r'"result"\s*:\s*\[')
_MINIMAL = re.compile(r'"original_width"\s*:')
_LABELS = re.compile(r'"(?:rectangle|polygon|ellipse|brush|keypoint)?labels"\s*:', re.IGNORECASE)
_SHAPES = ("rectangle", "polygon", "ellipse", "brush")
_IMAGE = re.compile(r"\.(?:png|jpe?g|tiff?|bmp|webp|gif|jp2|dcm)\b", re.IGNORECASE)


class _Region(NamedTuple):
    """A region of an image: its shape, `value` and labels, and what its attributes say."""

    image: str
    value: Mapping[str, Any]
    stated: tuple[int, int] | None
    attributes: Mapping[str, object]
    reason: str = ""


def read_label_studio(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the Label Studio export in a text; None where it has neither results of tasks nor labelled regions."""
    if text.text.lstrip()[:1] not in ("[", "{"):
        return None
    tasks = _RESULTS.search(text.text) and _TASK.search(text.text)
    if not tasks and not (_MINIMAL.search(text.text) and _LABELS.search(text.text)):
        return None
    return Annotation("label_studio", text.entry, partial(_rows, text.text, asked), False, text.entry.file)


def _rows(text: str, asked: Collection[str]) -> Iterator[Row]:
    """Yield a row a region, numbered through the file."""
    document = parse_json(text)
    number = 0
    seen: set[object] = set()
    for task in objects(document if isinstance(document, list) else [document]):
        lists = objects(task.get("annotations") or task.get("completions"))
        for region in _of_task(task, lists) if lists or "data" in task else _of_minimal(task, seen):
            yield _row(number, region, asked)
            number += 1


def _of_task(task: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Iterator[_Region]:
    """Yield the regions of a task: those of its ground truth, else of the first annotator."""
    image = _image_in(mapping(task.get("data"))) or str(task.get("file_upload") or "?")
    made = [one for one in annotations if not one.get("was_cancelled")]
    first = next((one for one in made if one.get("ground_truth")), made[0] if made else None)
    for annotation in made:
        results = objects(annotation.get("result"))
        said: dict[object, dict[str, object]] = {}
        for result in results:  # further questions about a region have its id
            said.setdefault(result.get("id"), {}).update(_answers(result))
        for result in results:
            value = result.get("value")
            if not isinstance(value, dict) or _shape_of(value, str(result.get("type") or "")) == "":
                continue
            value = {**value, "shape": _shape_of(value, str(result.get("type") or ""))}
            size = stated_size(result.get("original_width"), result.get("original_height"))
            reason = "" if annotation is first else "of a further annotator: the first one, or the ground truth, counts"
            if result.get("image_rotation"):
                reason = "drawn on a turned image: export it upright"
            yield _Region(image, value, size, said.get(result.get("id"), {}), reason)


def _of_minimal(task: Mapping[str, Any], seen: set[object]) -> Iterator[_Region]:
    """Yield the regions of an entry of JSON-MIN; of several entries about one task the first counts."""
    image = _image_in(task) or "?"
    id_ = task.get("id", image)
    reason = "of a further annotator: the first one counts" if id_ in seen else ""
    seen.add(id_)
    for name, listed in task.items():
        for value in objects(listed):
            shape = _shape_of(value, name)
            if shape:
                size = stated_size(value.get("original_width"), value.get("original_height"))
                yield _Region(image, {**value, "shape": shape}, size, {}, reason)


def _shape_of(value: Mapping[str, Any], kind: str) -> str:
    """Return which shape a region has; empty where it is none, as an answer to a question."""
    if shape := next((s for s in _SHAPES if f"{s}labels" in value or kind in (s, f"{s}labels")), ""):
        return shape
    if "keypointlabels" in value or kind in ("keypoint", "keypointlabels"):
        return "keypoint"
    if kind in ("choices", "textarea", "number", "rating", "labels", "taxonomy"):
        return ""
    return "rectangle" if {"x", "y", "width", "height"} <= value.keys() else "polygon" if "points" in value else ""


def _answers(result: Mapping[str, Any]) -> dict[str, object]:
    """Return what a result says beside the shape: labels, and the answer to the question of its name."""
    value = result.get("value")
    if not isinstance(value, dict):
        return {}
    found: dict[str, object] = {}
    for kind in ("choices", "text", "number", "rating"):
        if kind in value:
            found[str(result.get("from_name") or "")] = value[kind]
    if isinstance(value.get("labels"), list):
        found["labels"] = value["labels"]
    return found


def _row(number: int, region: _Region, asked: Collection[str]) -> Row:
    value, shape = region.value, str(region.value["shape"])
    named = value.get(f"{shape}labels") or value.get("labels") or region.attributes.get("labels")
    name = named[0] if isinstance(named, list) and named else named
    labels = labels_from(name, region.attributes, asked)
    turned = shape != "polygon" and value.get("rotation") not in (None, 0, 0.0)
    reason, corners = region.reason, None
    if shape == "keypoint":
        reason = reason or "a key point, which bounds no tooth"
    if not reason:
        try:
            corners = _corners(shape, value, region.stated)
        except (TypeError, ValueError, KeyError, OverflowError, IndexError):
            corners = None
        reason = "" if corners else "a region whose numbers bound no area"
    if corners is None:
        return Row(number, labels=labels, image=region.image, reason=reason)
    return Row(number, corners, labels, region.image, True, region.stated, turned=turned)


def _corners(shape: str, value: Mapping[str, Any], stated: tuple[int, int] | None) -> Corners | None:
    """Return the bounds of a region in shares of the sides. Angles are of the pixels, so they need the image's size."""
    angle, (width, height) = float(value.get("rotation") or 0), stated or (1, 1)
    if angle and stated is None:
        return None
    if shape == "polygon":
        box = bounds(value["points"])
        return (box[0] / 100, box[1] / 100, box[2] / 100, box[3] / 100) if box else None
    if shape == "brush":
        found = brush_bounds(value["rle"], stated) if stated and value.get("format", "rle") == "rle" else None
        return (found[0] / width, found[1] / height, found[2] / width, found[3] / height) if found else None
    x, y = float(value["x"]) * width / 100, float(value["y"]) * height / 100
    if shape == "ellipse":
        radii = float(value["radiusX"]) * width / 100, float(value["radiusY"]) * height / 100
        box = ellipse_bounds((x, y), radii, math.radians(angle))
    else:
        sides = float(value["width"]) * width / 100, float(value["height"]) * height / 100
        box = turned_bounds((x, y, x + sides[0], y + sides[1]), angle, (x, y))  # about its upper left corner
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _image_in(data: Mapping[str, Any]) -> str:
    """Return the image among a task's data: a path, or what a URL of an upload or of local storage means."""
    texts = [v for v in data.values() if isinstance(v, str)]
    found = next((v for v in texts if _IMAGE.search(v)), None) or data.get("image") or data.get("img")
    if not isinstance(found, str):
        return ""
    url = urlsplit(found)
    local = parse_qs(url.query).get("d")
    return local[0] if local else unquote(url.path) if url.scheme else found
