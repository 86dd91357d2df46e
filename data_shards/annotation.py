"""The common shape of annotations, whatever their format: a file, and its rows, each a box on a radiograph."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from data_shards.inventory import Entry

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1: the left, top, right and bottom edge."""


class FormatError(ValueError):
    """A file that cannot be gone through. The message is a reason for the ledger."""


class Row(NamedTuple):
    """One box, or the `reason` why it is none (then `corners` do not count).

    `number` tells the rows of a file apart; `image` is what the row calls its radiograph (empty: the one beside the
    file); `corners` are pixels, or shares of the sides if `relative`; `labels` are texts as the file has them, or a
    whole number where it has a class's number without its name; `stated` is the image's width and height, if told.
    """

    number: int
    corners: Corners = (0.0, 0.0, 0.0, 0.0)
    labels: Mapping[str, str | int] = {}
    image: str = ""
    relative: bool = False
    stated: tuple[int, int] | None = None
    reason: str = ""


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
