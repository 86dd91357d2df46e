"""Supervisely json (developer.supervisely.com, "Annotation JSON format"): `ann/x.png.json` beside `img/x.png`."""

import base64
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from data_shards.annotations.base import Annotation, Corners, FormatError, Row, bounds, stated_size
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import objects, parse_json
from data_shards.annotations.masks.rasters import png_bounds
from data_shards.sources.inventory import Text

_KEYS = re.compile(r'"(objects|size)"\s*:\s*[\[{]')
_OBJECT = re.compile(r'"(?:classTitle|classId|geometryType)"\s*:|"objects"\s*:\s*\[\s*\]')
_MOST_BYTES = 1 << 26  # of an inflated bitmap


def read_supervisely(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the Supervisely file in a text; None where it has no objects with classes and no image size."""
    if text.text.lstrip()[:1] != "{" or {m[1] for m in _KEYS.finditer(text.text)} != {"objects", "size"}:
        return None
    if not _OBJECT.search(text.text):
        return None
    stem = text.entry.stem  # of `x.png.json` the image's own name
    return Annotation(
        "supervisely", text.entry, partial(_rows, text.text, stem, asked), True, str(text.entry.path.parent)
    )


def _rows(text: str, image: str, asked: Collection[str]) -> Iterator[Row]:
    """Yield a row an object, numbered by its place in the list."""
    document = parse_json(text)
    size = document.get("size") if isinstance(document, dict) else None
    if not isinstance(size, dict) or not isinstance(document.get("objects"), list):
        raise FormatError("Supervisely JSON without a size and a list of objects")
    stated = stated_size(size.get("width"), size.get("height"))
    for number, item in enumerate(objects(document["objects"])):
        tags = {
            str(tag.get("name")): True if tag.get("value") is None else tag["value"]
            for tag in objects(item.get("tags"))
        }
        labels = labels_from(item.get("classTitle"), tags, asked)
        kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
        if kind not in ("rectangle", "polygon", "bitmap"):
            yield Row(number, labels=labels, image=image, reason=f"a Supervisely {_word(kind)}, which bounds no tooth")
            continue
        try:
            corners = _bitmap(item["bitmap"]) if kind == "bitmap" else bounds(item["points"]["exterior"])
        except (TypeError, ValueError, KeyError, OverflowError, zlib.error):
            corners = None
        if corners is None:
            yield Row(number, labels=labels, image=image, reason="an object whose points or bitmap bound no area")
        else:
            yield Row(number, corners, labels, image, stated=stated)


def _word(kind: object) -> str:
    """A geometry's name for a reason, which holds no text of the file's own."""
    known = ("point", "line", "graph", "cuboid", "multichannelBitmap", "alpha_mask")
    return str(kind) if kind in known else "object of unknown geometry"


def _bitmap(bitmap: Mapping[str, Any]) -> Corners | None:
    """Return the bounds of a bitmap: a PNG, deflated, in base64, whose upper left corner lies at `origin`."""
    packed = zlib.decompressobj()
    raw = packed.decompress(base64.b64decode(bitmap["data"]), _MOST_BYTES)
    inside = png_bounds(raw)
    if inside is None:
        return None
    x, y = (float(v) for v in bitmap["origin"])
    return x + inside[0], y + inside[1], x + inside[2], y + inside[3]
