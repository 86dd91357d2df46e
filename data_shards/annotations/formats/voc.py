"""Pascal VOC xml (VOC2012 development kit, section 7) and LabelMe's old web xml: a file an image, an `object` a box."""

import re
from collections.abc import Collection, Iterator
from functools import partial
from xml.etree import ElementTree

from data_shards.annotations.base import Annotation, Corners, FormatError, Row, bounds, stated_size
from data_shards.annotations.labels import labels_from
from data_shards.annotations.markup import parse_xml
from data_shards.sources.inventory import Text

_ROOT = re.compile(r"<annotation[\s/>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(text: Text, asked: Collection[str]) -> Annotation | None:
    """Return the VOC file in a text; None where it has no `annotation`.

    Corners are taken as they stand: the standard counts pixels from 1 to the last, most tools from 0 to past the end.
    """
    if text.text.lstrip()[:1] != "<" or not _ROOT.search(text.text[:65536]):
        return None
    folder = str(text.entry.path.parent)
    return Annotation("voc", text.entry, partial(_rows, text.text, asked), True, folder)


def _rows(text: str, asked: Collection[str]) -> Iterator[Row]:
    """Yield a row an object, numbered from 1."""
    root = parse_xml(text)
    if root.tag != "annotation":
        raise FormatError("XML whose root is no annotation")
    image = (root.findtext("filename") or "").strip()
    stated = stated_size(root.findtext("size/width"), root.findtext("size/height"))
    for number, item in enumerate(root.findall("object"), 1):
        found = {(a.findtext("name") or ""): a.findtext("value") or "" for a in item.findall("attributes/attribute")}
        labels = labels_from(item.findtext("name") or "", found, asked)
        try:
            corners = _corners(item)
        except ValueError:
            corners = None
        if corners is None:
            yield Row(number, labels=labels, image=image, reason="neither a bndbox of four numbers nor a polygon")
        else:
            yield Row(number, corners, labels, image, stated=stated)


def _corners(item: ElementTree.Element) -> Corners | None:
    if item.find("bndbox") is None:
        points = [(float(p.findtext("x") or ""), float(p.findtext("y") or "")) for p in item.findall("polygon/pt")]
        return bounds(points)
    x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
    return x0, y0, x1, y1
