"""Plain text beside an image: `x0 y0 x1 y1 [label]` lines."""

import math
import re
from collections.abc import Iterator
from functools import partial

from data_shards.annotations.base import Annotation, Corners, Row, in_shares
from data_shards.annotations.markup import rows_of
from data_shards.sources.inventory import Text

_TOO_MANY = 3
"""Numbers after the corners that are no label: two may be a confidence and a class."""
_DIVIDED = re.compile(r"[\s,;]+")


def read_lines(text: Text) -> Annotation:
    """A text as lines of corners and labels, divided by blanks, commas or semicolons.

    Corners are shares of the sides where `in_shares` says so of all in the file, else pixels.
    """
    return Annotation("lines", text.entry, partial(_rows, text.text), True, str(text.entry.path.parent))


def parse_line(line: str) -> tuple[Corners, str] | None:
    """Return corners and label (may be empty) of a line; None where it does not begin with four finite numbers.

    Of seven numbers and more, as of the corners of an outline, nobody knows the order.
    """
    fields = _DIVIDED.split(line.strip(), maxsplit=4)
    try:
        x0, y0, x1, y1 = (float(field) for field in fields[:4])
    except ValueError:
        return None
    corners = x0, y0, x1, y1
    further = _DIVIDED.split(fields[4]) if len(fields) > 4 else []
    if len(further) >= _TOO_MANY and all(map(_is_number, further[:_TOO_MANY])):
        return None
    return (corners, "".join(fields[4:])) if all(math.isfinite(c) for c in corners) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(text: str) -> Iterator[Row]:
    parsed = [(number, parse_line(line)) for number, line in rows_of(text)]
    relative = in_shares([c for _, found in parsed if found for c in found[0]])
    for number, found in parsed:
        if found is None:
            yield Row(number, reason="not a line of four corners and a label")
        else:
            yield Row(number, found[0], {"class": found[1]} if found[1] else {}, relative=relative)
