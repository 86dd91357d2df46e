"""Annotations that are not read: which format a JSON or XML text is of, and what to export instead."""

import json
import re
from itertools import islice
from typing import Any
from xml.etree import ElementTree

from data_shards.annotations.base import FormatError
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.annotations.labels import KNOWN_COLUMNS
from data_shards.annotations.markup import objects, parse_xml
from data_shards.sources.inventory import Text

_COCO = "export COCO JSON"
_FORMATS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("CVAT for video", (r"<annotations[\s>]", r"<track[\s>]"), "export `CVAT for images 1.1` or COCO 1.0"),
    ("Datumaro", (r'"items"\s*:\s*\[', r'"(?:label_id|dm_format_version|media_type)"\s*:'), _COCO),
    ("VIA 3", (r'"vid"\s*:', r'"xy"\s*:'), "annotate with VIA 2, or export COCO"),
    ("Labelbox", (r'"data_row"\s*:|"Labeled Data"\s*:|"External ID"\s*:',), "convert it to COCO JSON"),
    ("V7 Darwin", (r'"bounding_box"\s*:', r'"slots"\s*:|darwin_json'), _COCO),
    ("SuperAnnotate", (r'"className"\s*:',), _COCO),
    ("VoTT", (r'"boundingBox"\s*:', r'"points"\s*:'), "export Pascal VOC XML"),
    ("ISAT", (r'"ISAT"',), _COCO),
    ("CreateML", (r'"coordinates"\s*:\s*\{\s*"(?:x|y|width|height)"',), _COCO),
    ("GeoJSON (QuPath)", (r'"(?:FeatureCollection|Feature)"',), "export label images (masks) or COCO"),
    ("Encord", (r'"objectHash"\s*:',), _COCO),
    ("Kili", (r'"jsonResponse"\s*:',), _COCO),
    ("SageMaker Ground Truth", (r'"source-ref"\s*:',), "convert it to COCO JSON"),
    ("3D Slicer", (r'"markups"\s*:\s*\[',), "export a label image (PNG)"),
    ("Aperio ImageScope", (r"<Annotations", r"<Vertices"), "convert it to Pascal VOC XML or COCO JSON"),
    ("PAGE or ALTO", (r"<(?:PcGts|alto)[\s>]",), "convert it to Pascal VOC XML or COCO JSON"),
)
"""Name, patterns that all match, and the remedy."""
_GEOMETRY = re.compile(
    r"(?:b|bnd|bounding|rotated)?_?-?(?:box|rect|rectangle)(?:es|s)?|points?|poly(?:gon|line)s?|segmentations?|masks?|"
    r"contours?|outlines?|xy|vertices|vertex|coordinates|coords|keypoints|exterior|rle",
    re.IGNORECASE,
)
_SIDES = (
    *({"x", "y"}, {"left", "top", "width", "height"}, {"left", "top", "right"}, {"xmin", "ymin", "xmax"}),
    *({"x_min", "y_min", "x_max"}, {"x1", "y1", "x2", "y2"}, {"x0", "y0", "x1", "y1"}, {"cx", "cy", "w", "h"}),
    *({"xtl", "ytl", "xbr"}, {"bbox_x", "bbox_y"}),
)
"""Names of numbers that together say where something lies."""
_LISTS = {"annotations", "shapes", "regions", "instances", "boxes", "bboxes", "detections"}
_LABEL_KEY = re.compile(rf'["<](?:{"|".join(sorted(KNOWN_COLUMNS))})["> ]', re.IGNORECASE)
_IMAGE_NAME = re.compile(r'["\'>]([^"\'<>]+\.(?:png|jpe?g|tiff?|bmp|dcm|webp|jp2))["\'<]', re.IGNORECASE)
_MOST_NODES = 20_000  # of a document: what it is shows in its first part


def foreign_format(text: Text) -> tuple[str, str] | None:
    """Return the name of the format of a text that looks like annotations, and the remedy; None for any other text."""
    start = text.text.lstrip()[:1]
    if start == "<":
        looks = _annotates_in_xml(text.text)
    elif start in ("{", "["):
        looks = _annotates_in_json(text.text)
    else:
        return None
    if not looks:
        return None
    head = text.text[: 1 << 20]
    known = ((name, remedy) for name, signs, remedy in _FORMATS if all(re.search(sign, head) for sign in signs))
    kind = "XML" if start == "<" else "JSON"
    return next(known, (f"{kind} of an unknown tool", "export COCO JSON, Pascal VOC XML or YOLO text"))


def labels_whole_images(text: Text, finder: ImageFinder) -> bool:
    """Return whether a JSON or XML text names radiographs, and has a key that labels go by."""
    head = text.text[: 1 << 20]
    if head.lstrip()[:1] not in ("{", "[", "<") or not _LABEL_KEY.search(head):
        return False
    return any(finder.candidates(match[1]) for match in islice(_IMAGE_NAME.finditer(head), 20))


def _annotates_in_json(text: str) -> bool:
    documents: list[Any] = []
    try:
        documents = [json.loads(text)]
    except RecursionError:
        return False
    except ValueError:
        try:  # a document a line
            documents = [json.loads(line) for line in text.splitlines()[:1000] if line.strip()]
        except (ValueError, RecursionError):  # damaged: its keys are all that can be judged
            return any(_GEOMETRY.fullmatch(key) for key in re.findall(r'"(\w+)"\s*:\s*[\[{]', text[: 1 << 20]))
    waiting, seen = documents, 0
    while waiting and seen < _MOST_NODES:
        node, seen = waiting.pop(), seen + 1
        if isinstance(node, list):
            waiting += node[:1000]
        elif isinstance(node, dict):
            if _places(node):
                return True
            waiting += node.values()
    return False


def _places(node: dict[Any, Any]) -> bool:
    """Return whether an object says where something lies, or holds a list of annotations."""
    numbers = {str(key).lower() for key, value in node.items() if _is_number(value)}
    if any(sides <= numbers for sides in _SIDES):
        return True
    for key, value in node.items():
        if str(key).lower() in _LISTS and any(len(item) > 1 for item in objects(value)):
            return True
        if _GEOMETRY.fullmatch(str(key)) and _holds_numbers(value):
            return True
    return False


def _holds_numbers(value: Any, depth: int = 4) -> bool:
    if isinstance(value, str):
        return len(value) > 20 or len(re.findall(r"-?\d+(?:\.\d+)?", value)) >= 4  # run lengths, base64, lists in texts
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return sum(map(_is_number, value)) >= 2 or (depth > 0 and any(_holds_numbers(v, depth - 1) for v in value[:50]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _annotates_in_xml(text: str) -> bool:
    try:
        root = parse_xml(text)
    except FormatError:
        head = text[: 1 << 20]
        return re.search(r"<(?:annotations?|bndbox|box|polygon|object)[\s>]", head, re.IGNORECASE) is not None
    return any(map(_places_in_xml, root.iter()))


def _places_in_xml(element: ElementTree.Element) -> bool:
    tag = element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""
    names = {name.lower() for name in element.attrib} | {str(child.tag).rpartition("}")[2].lower() for child in element}
    drawn = tag in ("svg", "g", "path", "rect")  # a picture and no annotation
    placed = any(sides <= names for sides in _SIDES) or bool(names & {"points", "vertices"})
    return not drawn and (placed or tag in ("bndbox", "annotation", "annotations"))
