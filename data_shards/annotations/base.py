"""The common shape of annotations, whatever their format: a file, and its rows, each a box on a radiograph."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from data_shards.sources.inventory import Entry

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1: the left, top, right and bottom edge."""


class FormatError(ValueError):
    """A file that cannot be gone through. The message is a reason for the ledger."""


class Row(NamedTuple):
    """One box, or the `reason` why it is none (then `corners` do not count).

    `number` tells the rows of a file apart; `image` is what the row calls its radiograph (empty: the one beside the
    file); `corners` are pixels, or shares of the sides if `relative`; `labels` are texts as the file has them, or a
    whole number where it has a class's number without its name; `stated` is the image's width and height, if told.
    `turned` marks the bounding rectangle of a rotated box.
    """

    number: int
    corners: Corners = (0.0, 0.0, 0.0, 0.0)
    labels: Mapping[str, str | int] = {}
    image: str = ""
    relative: bool = False
    stated: tuple[int, int] | None = None
    reason: str = ""
    turned: bool = False


class Annotation(NamedTuple):
    """A file of a known format.

    `rows` goes through it and may raise FormatError; `single` says that it is about one image, which may be the one
    beside it; `scope` names the list that its classes belong to and `listed` are that list's names, used or not;
    `lists` is the file that holds them, where that is another.
    """

    kind: str
    entry: Entry
    rows: Callable[[], Iterable[Row]]
    single: bool
    scope: str
    listed: Collection[str] = ()
    lists: Entry | None = None


def bounds(points: Iterable[Sequence[float]]) -> Corners | None:
    """Return the bounding box of points (x, y); None where they bound no area.

    Raise ValueError or TypeError where they are no numbers.
    """
    xs, ys = [], []
    for x, y, *_ in points:
        xs.append(float(x))
        ys.append(float(y))
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    return min(xs), min(ys), max(xs), max(ys)


def turned_bounds(box: Corners, degrees: float, around: tuple[float, float] | None = None) -> Corners:
    """Return the bounding box of a box that is turned clockwise around a point, its centre if none is given."""
    x0, y0, x1, y1 = box
    cx, cy = around or ((x0 + x1) / 2, (y0 + y1) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - cx, y - cy) for x in (x0, x1) for y in (y0, y1)]
    xs = [cx + x * cos - y * sin for x, y in corners]
    ys = [cy + x * sin + y * cos for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def ellipse_bounds(centre: tuple[float, float], radii: tuple[float, float], radians: float = 0.0) -> Corners:
    """Return the bounding box of an ellipse whose radii are turned by an angle."""
    cos, sin = math.cos(radians), math.sin(radians)
    dx, dy = math.hypot(radii[0] * cos, radii[1] * sin), math.hypot(radii[0] * sin, radii[1] * cos)
    return centre[0] - dx, centre[1] - dy, centre[0] + dx, centre[1] + dy


def in_shares(coordinates: Collection[float]) -> bool:
    """Whether coordinates are shares of the image's sides: none is over 2, and some is not whole. Else pixels."""
    return all(abs(c) <= 2 for c in coordinates) and any(c != int(c) for c in coordinates if abs(c) <= 2)


def stated_size(width: object, height: object) -> tuple[int, int] | None:
    """A width and a height as found in a file, of any type; None unless both are whole numbers above 0."""
    try:
        size = int(float(str(width))), int(float(str(height)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None
