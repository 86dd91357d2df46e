"""VGG Image Annotator 1 and 2 (robots.ox.ac.uk/~vgg/software/via): project, annotation JSON and CSV."""

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from data_shards.annotations.base import Annotation, Corners, FormatError, Row, bounds, ellipse_bounds
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import mapping, parse_json
from data_shards.sources.inventory import Text

_KEYS = re.compile(r'"(?:regions|_via_img_metadata)"\s*:')
_MARKS = re.compile(r'"(?:shape_attributes|file_attributes|_via_settings)"\s*:')
_HEADER = re.compile(r'\s*"?#?\s*filename"?,"?file_size"?,"?file_attributes"?,"?region_count')
_CLASSES = ("class", "label", "name", "type", "category", "object")
"""Attributes of a region that are its class, the first that it has."""


class _Region(NamedTuple):
    image: str
    shape: object
    attributes: object


def read_via(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the VIA file in a text; None where it has no regions of images."""
    if _HEADER.match(text.text):
        regions = partial(_regions_of_table, text.text)
    elif text.text.lstrip()[:1] == "{" and _KEYS.search(text.text) and _MARKS.search(text.text):
        regions = partial(_regions_of_json, text.text)
    else:
        return None
    return Annotation("via", text.entry, partial(_rows, regions, asked), False, text.entry.file)


def _regions_of_json(text: str) -> Iterator[_Region]:
    document = parse_json(text)
    images = document.get("_via_img_metadata", document) if isinstance(document, dict) else None
    if not isinstance(images, dict):
        raise FormatError("VIA JSON without images")
    for image in images.values():
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            continue
        regions = image.get("regions")
        listed: Iterable[Any] = regions.values() if isinstance(regions, dict) else regions or ()  # version 1: by number
        for region in listed if not isinstance(listed, str | int | float) else ():
            inside = mapping(region)
            yield _Region(image["filename"], inside.get("shape_attributes"), inside.get("region_attributes"))


def _regions_of_table(text: str) -> Iterator[_Region]:
    reader = csv.DictReader(io.StringIO(text.lstrip().lstrip("#").lstrip()), restval="")
    try:
        for row in reader:
            columns = {(name or "").strip(): value for name, value in row.items()}
            if str(columns.get("region_count") or "0").strip() == "0":  # an image without regions
                continue
            shape, attributes = (_parsed(columns.get(key)) for key in ("region_shape_attributes", "region_attributes"))
            yield _Region(str(columns.get("filename") or ""), shape, attributes)
    except csv.Error:
        raise FormatError("a damaged VIA table: a quote that is not closed") from None


def _parsed(text: object) -> object:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):
        return None


def _rows(regions: partial[Iterator[_Region]], asked: Collection[str]) -> Iterator[Row]:
    """Yield a row a region, numbered through the file."""
    for number, region in enumerate(regions()):
        attributes, shape = mapping(region.attributes), mapping(region.shape)
        labels, image = labels_from(_class_in(attributes), attributes, asked), region.image or "?"
        kind = shape.get("name")
        if kind in ("point", "polyline"):
            yield Row(number, labels=labels, image=image, reason=f"a {kind}, which bounds no tooth")
            continue
        try:
            corners = _corners(shape)
        except (TypeError, ValueError, KeyError, OverflowError):
            corners = None
        if corners is None:
            yield Row(number, labels=labels, image=image, reason="a region that is no box, circle, ellipse or polygon")
        else:
            yield Row(number, corners, labels, image)


def _class_in(attributes: Mapping[str, object]) -> object:
    """Return the class among a region's attributes: of a usual name, else the only one."""
    by_name = {name.strip().lower(): value for name, value in attributes.items()}
    found = next((by_name[name] for name in _CLASSES if name in by_name), None)
    if found is None and len(attributes) == 1:
        found = next(iter(attributes.values()))
    if isinstance(found, dict):  # boxes that are ticked
        found = ", ".join(str(name) for name, ticked in found.items() if ticked in (True, "true"))
    return found


def _corners(shape: Mapping[str, Any]) -> Corners | None:
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height
    if kind in ("circle", "ellipse"):
        radii = (float(shape["r"]),) * 2 if kind == "circle" else (float(shape["rx"]), float(shape["ry"]))
        return ellipse_bounds((float(shape["cx"]), float(shape["cy"])), radii, float(shape.get("theta") or 0))
    if kind == "polygon":
        return bounds(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
    return None
