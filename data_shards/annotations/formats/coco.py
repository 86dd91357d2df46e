"""COCO json (cocodataset.org, "Data format"): `images`, `annotations` and `categories`, and DENTEX's three of these."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeGuard, TypeVar

from data_shards.annotations.base import Annotation, Corners, FormatError, Row, stated_size
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import mapping, objects, parse_json
from data_shards.sources.inventory import Text

_KEYS = re.compile(r'"(images|annotations)"\s*:\s*\[')
_DENTEX = ("quadrant", "enumeration", "disease")
"""What `category_id_1`, `_2` and `_3` of DENTEX (arXiv 2305.19112) count."""


def read_coco(text: Text, asked: Collection[str]) -> Annotation | None:
    """The COCO file in a text; None where it does not have both lists."""
    if text.text.lstrip()[:1] != "{" or {m[1] for m in _KEYS.finditer(text.text)} != {"images", "annotations"}:
        return None
    names = _names_in(text.text)
    return Annotation("coco", text.entry, partial(_rows, text.text, asked), False, text.entry.file, names)


def _rows(text: str, asked: Collection[str]) -> Iterator[Row]:
    """A row an annotation, numbered by its place in the list."""
    document = _parsed(text)
    images = _by_id((image.get("id"), image) for image in objects(document.get("images")))
    names = {key: _names(document, key) for key in ("categories", *(f"categories_{n}" for n in (1, 2, 3)))}
    for number, annotation in enumerate(document["annotations"]):
        yield _row(number, annotation, images, names, asked)


def _row(
    number: int,
    annotation: object,
    images: Mapping[object, Mapping[str, Any] | None],
    names: Mapping[str, Mapping[object, str | None]],
    asked: Collection[str],
) -> Row:
    if not isinstance(annotation, dict):
        return Row(number, reason="an annotation that is no object")
    image = _of_id(images, annotation.get("image_id"))
    if image is None or not isinstance(image.get("file_name"), str) or not image["file_name"].strip():
        return Row(number, reason="its image_id is that of no image, or of several")
    stated = stated_size(image.get("width"), image.get("height"))
    labels, name = _labels(annotation, names, asked), image["file_name"]
    if annotation.get("iscrowd") in (1, True):
        return Row(number, labels=labels, image=name, reason="a crowd (iscrowd), which is no single tooth")
    try:
        corners = _corners(annotation)
    except (TypeError, ValueError, OverflowError, IndexError, KeyError):
        corners = None
    if corners is None:
        return Row(number, labels=labels, image=name, reason="neither a bbox of four numbers nor an outline")
    return Row(number, corners, labels, name, stated=stated)


def _corners(annotation: Mapping[str, Any]) -> Corners | None:
    """From `bbox` (x, y, width, height); where that is absent, from `segmentation`: polygons or a run-length mask."""
    outline = annotation.get("segmentation")
    if box := annotation.get("bbox"):
        x, y, w, h = (float(v) for v in box)
        if (w and h) or not outline:
            return x, y, x + w, y + h
    if isinstance(outline, dict):
        return _run_corners(outline)
    if not outline:
        return None
    polygons = outline if isinstance(outline[0], list) else [outline]
    xs = [float(x) for polygon in polygons for x in polygon[::2]]
    ys = [float(y) for polygon in polygons for y in polygon[1::2]]
    if len(xs) != len(ys) or len(xs) < 3:
        return None
    return min(xs), min(ys), max(xs), max(ys)


def _run_corners(mask: Mapping[str, Any]) -> Corners | None:
    """The bounding box of a run-length mask: `counts` of 0 and 1 in turn, column by column, of `size` (h, w)."""
    height, width = (int(v) for v in mask["size"])
    counts = mask["counts"]
    runs = _unpacked(counts) if isinstance(counts, str) else [int(c) for c in counts]
    if height <= 0 or width <= 0 or min(runs, default=-1) < 0 or sum(runs) > height * width:
        return None
    x0, y0, x1, y1, at = width, height, 0, 0, 0
    for number, run in enumerate(runs):
        if number % 2 and run:
            (left, top), (right, bottom) = divmod(at, height), divmod(at + run - 1, height)
            if right > left:  # it goes on at the top of the next column
                top, bottom = 0, height - 1
            x0, y0, x1, y1 = min(x0, left), min(y0, top), max(x1, right + 1), max(y1, bottom + 1)
        at += run
    return (x0, y0, x1, y1) if x1 else None


def _unpacked(text: str) -> list[int]:
    """Counts from their compressed form: 5 bits a character from 48 on, the sixth says that more follow, and from the
    fourth count on each is the difference to the one two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("not a compressed run-length mask")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _labels(
    annotation: Mapping[str, Any], names: Mapping[str, Mapping[object, str | None]], asked: Collection[str]
) -> dict[str, str | int]:
    labels = labels_from("", mapping(annotation.get("attributes")), asked)  # as CVAT writes them
    id_ = annotation.get("category_id")
    if name := _of_id(names["categories"], id_):
        labels["class"] = name
    elif _is_id(id_):
        labels["class"] = id_
    parts: dict[str, str | int] = {}
    for n, part in enumerate(_DENTEX, 1):
        if _is_id(id_ := annotation.get(f"category_id_{n}")):
            parts[part] = _of_id(names[f"categories_{n}"], id_) or id_
    quadrant, place = (_counted(parts.get(part)) for part in _DENTEX[:2])
    if 1 <= quadrant <= 4 and 1 <= place <= 8:
        labels["fdi"] = f"{quadrant}{place}"
    elif 1 <= quadrant <= 4:
        labels["quadrant"] = str(quadrant)
    if "disease" in parts:
        labels["finding"] = parts["disease"]
    return labels


def _counted(part: object) -> int:
    """A quadrant or a place in it, from 1: by its name, else by its number from 0; 0 where it is neither."""
    if isinstance(part, int):
        return part + 1
    return int(part) if isinstance(part, str) and re.fullmatch("[1-8]", part.strip()) else 0


def _names(document: Mapping[str, Any], key: str) -> dict[object, str | None]:
    return _by_id(
        (category.get("id"), str(category["name"]))
        for category in objects(document.get(key))
        if isinstance(category.get("name"), (str, int))
    )


def _names_in(text: str) -> tuple[str, ...]:
    """Names of the main category list, found without going through the whole document twice."""
    start = text.find('"categories"')
    bracket = text.find("[", start)
    if start < 0 or bracket < 0:
        return ()
    try:
        found, _ = json.JSONDecoder().raw_decode(text, bracket)
    except (ValueError, RecursionError):
        return ()
    return tuple(name for name in _names({"categories": found}, "categories").values() if name)


_Item = TypeVar("_Item")


def _by_id(items: Iterable[tuple[object, _Item]]) -> dict[object, _Item | None]:
    """Return items by their id and by its text, as tools mix `7` and `"7"`; None for an id of several items."""
    by_id: dict[object, _Item | None] = {}
    by_text: dict[object, _Item | None] = {}
    for id_, item in items:
        if _is_id(id_):
            by_id[id_] = None if id_ in by_id else item
            by_text[str(id_).strip()] = None if str(id_).strip() in by_text else item
    return by_text | by_id


def _of_id(items: Mapping[object, _Item | None], id_: object) -> _Item | None:
    if isinstance(id_, float) and id_.is_integer():
        id_ = int(id_)
    if not _is_id(id_):
        return None
    return items[id_] if id_ in items else items.get(str(id_).strip())


def _parsed(text: str) -> dict[str, Any]:
    document = parse_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise FormatError("JSON without a list of annotations")
    return document


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
