"""LabelMe json (github.com/wkentaro/labelme): one file an image, a `shape` a box."""

import base64
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from data_shards.annotations.base import Annotation, Corners, FormatError, Row, bounds, stated_size
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import mapping, objects, parse_json
from data_shards.annotations.masks.rasters import png_bounds
from data_shards.sources.inventory import Text

_KEYS = re.compile(r'"(?:shapes|imagePath|imageHeight)"\s*:')
_NO_REGION = {"point", "points", "line", "linestrip", "lines"}


def read_labelme(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the LabelMe file in a text; None where it has no shapes of an image."""
    if text.text.lstrip()[:1] != "{" or len(set(_KEYS.findall(text.text))) < 2 or '"shapes"' not in text.text:
        return None
    folder = str(text.entry.path.parent)
    return Annotation("labelme", text.entry, partial(_rows, text.text, asked), True, folder)


def _rows(text: str, asked: Collection[str]) -> Iterator[Row]:
    """Yield a row a shape, numbered by its place in the list."""
    document = parse_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        raise FormatError("LabelMe JSON without a list of shapes")
    path = document.get("imagePath")
    image = path if isinstance(path, str) else ""
    stated = stated_size(document.get("imageWidth"), document.get("imageHeight"))
    for number, shape in enumerate(objects(document["shapes"])):
        attributes = mapping(shape.get("flags")) | mapping(shape.get("attributes"))
        labels = labels_from(shape.get("label"), attributes, asked)
        kind = shape.get("shape_type") or "polygon"  # files of the first versions have none
        if kind in _NO_REGION:
            yield Row(number, labels=labels, image=image, reason=f"a {kind}, which bounds no tooth")
            continue
        try:
            corners = _corners(kind, shape)
        except (TypeError, ValueError, OverflowError):
            corners = None
        if corners is None:
            yield Row(number, labels=labels, image=image, reason="a shape whose points bound no area")
        else:
            yield Row(number, corners, labels, image, stated=stated, turned=kind == "rotation")


def _corners(kind: str, shape: Mapping[str, Any]) -> Corners | None:
    points = [(float(x), float(y)) for x, y, *_ in shape["points"]] if shape.get("points") else []
    if kind == "circle" and len(points) == 2:  # its centre, and a point on it
        (x, y), radius = points[0], math.dist(*points)
        return (x - radius, y - radius, x + radius, y + radius) if radius else None
    if kind == "mask" and points and isinstance(shape.get("mask"), str):
        inside = png_bounds(base64.b64decode(shape["mask"], validate=True))
        if inside is not None:
            left, top = min(x for x, _ in points), min(y for _, y in points)
            return left + inside[0], top + inside[1], left + inside[2], top + inside[3]
    return bounds(points)
