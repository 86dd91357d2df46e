"""Pascal VOC xml (VOC2012 development kit, section 7): one file an image, an `object` a box."""

import re
from collections.abc import Iterator
from functools import partial
from xml.etree import ElementTree

from data_shards.annotation import Annotation, FormatError, Row, stated_size
from data_shards.inventory import Text

_ROOT = re.compile(r"<annotation[\s/>]")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(text: Text) -> Annotation | None:
    """The VOC file in a text; None where it has no `annotation`.

    Corners are taken as they stand: the standard counts pixels from 1 to the last, most tools from 0 to past the end.
    """
    if text.text.lstrip()[:1] != "<" or not _ROOT.search(text.text[:65536]):
        return None
    folder = str(text.entry.path.parent)
    return Annotation("voc", text.entry, partial(_rows, text.text), True, folder)


def _rows(text: str) -> Iterator[Row]:
    """A row an object, numbered from 1."""
    if "<!DOCTYPE" in text:  # the one place where entities can be declared, small ones that grow and outer ones alike
        raise FormatError("XML with a document type, which is not read as it may do harm: remove it")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise FormatError("damaged XML: it cannot be read to its end") from None
    if root.tag != "annotation":
        raise FormatError("XML whose root is no annotation")
    image = (root.findtext("filename") or "").strip()
    stated = stated_size(root.findtext("size/width"), root.findtext("size/height"))
    for number, item in enumerate(root.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        labels = {"class": name} if name else {}
        try:
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
        except ValueError:
            yield Row(number, labels=labels, image=image, reason="its bndbox is not four numbers")
            continue
        yield Row(number, (x0, y0, x1, y1), labels, image, stated=stated)
