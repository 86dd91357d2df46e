"""CVAT for images 1.1 (docs.cvat.ai, "XML annotation format"): one file for all images, a shape a box."""

import math
import re
from collections.abc import Collection, Iterator
from functools import partial
from xml.etree import ElementTree

from data_shards.annotations.base import (
    Annotation,
    Corners,
    FormatError,
    Row,
    bounds,
    ellipse_bounds,
    stated_size,
    turned_bounds,
)
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import parse_xml
from data_shards.sources.inventory import Text

_ROOT = re.compile(r"<annotations[\s>]")
_IMAGE = re.compile(r"<image[\s>]")
_REGIONS = ("box", "polygon", "mask", "ellipse")
_OTHERS = ("polyline", "points", "cuboid", "skeleton")


def read_cvat(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the CVAT file in a text; None where it has no images, as that of a video."""
    if text.text.lstrip()[:1] != "<" or not _ROOT.search(text.text[:65536]) or not _IMAGE.search(text.text):
        return None
    return Annotation("cvat", text.entry, partial(_rows, text.text, asked), False, text.entry.file)


def _rows(text: str, asked: Collection[str]) -> Iterator[Row]:
    """Yield a row a shape, numbered through the file."""
    root = parse_xml(text)
    if root.tag != "annotations":
        raise FormatError("XML whose root is not CVAT's `annotations`")
    number = 0
    for image in root.iter("image"):
        subset, name = image.get("subset") or "", image.get("name") or "?"
        named = f"{subset}/{name}" if subset else name  # frames of several subsets have equal names
        stated = stated_size(image.get("width"), image.get("height"))
        for shape in image:
            if shape.tag in (*_REGIONS, *_OTHERS):
                yield _row(number, shape, asked)._replace(image=named, stated=stated)
                number += 1


def _row(number: int, shape: ElementTree.Element, asked: Collection[str]) -> Row:
    attributes = {a.get("name") or "": (a.text or "").strip() for a in shape.findall("attribute")}
    labels = labels_from(shape.get("label"), attributes, asked)
    if shape.tag in _OTHERS:
        return Row(number, labels=labels, reason=f"a CVAT {shape.tag}, which bounds no tooth")
    try:
        corners, angle = _corners(shape), float(shape.get("rotation") or 0)
    except ValueError:
        corners, angle = None, 0.0
    if corners is None:
        return Row(number, labels=labels, reason="a shape whose numbers bound no area")
    return Row(number, corners, labels, turned=angle % 90 != 0)


def _corners(shape: ElementTree.Element) -> Corners | None:
    """Return the upright bounds of a shape. Raise ValueError where its attributes are no numbers."""

    def numbers(*names: str) -> list[float]:
        return [float(shape.get(name) or "") for name in names]

    angle = float(shape.get("rotation") or 0)
    if shape.tag == "box":
        x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
        return turned_bounds((x0, y0, x1, y1), angle) if angle else (x0, y0, x1, y1)
    if shape.tag == "mask":  # its run lengths lie in this box, which CVAT keeps tight
        left, top, width, height = numbers("left", "top", "width", "height")
        return left, top, left + width, top + height
    if shape.tag == "ellipse":
        cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
        return ellipse_bounds((cx, cy), (rx, ry), math.radians(angle))
    return bounds([tuple(map(float, point.split(","))) for point in (shape.get("points") or "").split(";") if point])
