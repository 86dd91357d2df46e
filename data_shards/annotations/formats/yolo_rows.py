"""What the rows of YOLO texts are: boxes, boxes with further columns, or outlines. All rows of a set decide together.

A row is a class and numbers: `x y w h` of a box, perhaps with a confidence, a track number or key points (x, y, and
perhaps a visibility, each), or the corners of an outline, perhaps with a confidence and a track number.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_shards.annotations.base import Corners

_DIVIDED = re.compile(r"[\s,;]+")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_EDGE = 0.05  # of a side that boxes and outlines may reach over the image
_FAR = 0.25  # of a side, beyond which an outline is none
_AROUND = 0.25  # of a box's sides that key points may lie outside
_OUTSIDE = 0.1
"""Share of boxes that reach over the image, beyond which they may be no boxes of centre and sides."""
_ENOUGH = 3
"""Rows from which on whole numbers in one column can be no accident."""
_MOST_COMPARED = 20_000
"""Rows of a set that are compared; the number of columns counts in all."""
_CLEARLY = 0.9
"""A reading is ruled out where it fits under this share of the rows that another fits."""


class RowError(ValueError):
    """A row that is no box. The message is a reason for the ledger."""


class Reading(NamedTuple):
    """How rows are read: `outlines`, else boxes; `points` numbers of key points follow a box, None: any may.

    `question` says, where the rows can be both, what they can be.
    """

    outlines: bool = True
    points: int | None = None
    question: str = ""


def numbers_in(row: str) -> tuple[int, list[float]]:
    """Return the class and the numbers of a row, divided by blanks, commas, semicolons or tabs. Raise RowError."""
    row = row.strip()
    if "." not in row and re.search(r"[\s;]", row):
        row = _DECIMAL_COMMA.sub(".", row)
    try:
        first, *values = (float(field) for field in _DIVIDED.split(row.strip(",; ")))
    except ValueError:
        raise RowError("not a row of numbers") from None
    if first != int(first) if math.isfinite(first) else True:
        raise RowError("its class is no whole number")
    if not all(map(math.isfinite, values)):
        raise RowError("its coordinates are not finite")
    if len(values) < 4:
        raise RowError(f"neither a box nor an outline: {len(values) + 1} fields")
    if max(map(abs, values[:4])) > 2:
        raise RowError("its coordinates are not shares of the image's sides (0 to 1)")
    return int(first), values


def corners_of(values: Sequence[float], reading: Reading) -> Corners:
    """Return x0, y0, x1, y1 (shares of the image's sides) of a row's numbers. Raise RowError."""
    count = len(values)
    if not reading.outlines and reading.points is not None and not 0 <= count - 4 - reading.points <= 2 and count > 6:
        raise RowError(f"not a box with {reading.points} numbers of key points (kpt_shape): {count + 1} fields")
    if count <= 5 or not reading.outlines:
        x, y, w, h = values[:4]
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    points = values[: count - _beyond_outline(values)]
    if len(points) < 6:
        raise RowError(f"neither a box nor an outline: {count + 1} fields")
    if min(points) < -_FAR or max(points) > 1 + _FAR:
        raise RowError("neither a box nor an outline: it reaches far over the image")
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def is_turned(values: Sequence[float], reading: Reading) -> bool:
    """Return whether a row is an oriented box whose sides are not upright."""
    return reading.outlines and len(values) in (8, 9, 10) and _is_parallelogram(values) and not _is_upright(values)


def decide(rows: Iterable[Sequence[float]], points: tuple[int, int] | None = None, said: str = "") -> Reading:
    """Return how the rows of one set are read. `points` and `said` are what its `data.yaml` says (ClassList)."""
    if points:
        return Reading(False, points[0] * points[1])
    if said:
        return Reading(said == "outlines")
    long: list[Sequence[float]] = []
    columns: set[int] = set()
    boxes, outside, rising = 0, 0, True
    for row in rows:
        columns.add(len(row))
        if len(row) == 4:
            boxes, outside = boxes + 1, outside + (not _is_inside(row))
            rising = rising and row[0] < row[2] and row[1] < row[3]
        if len(row) > 5 and len(long) < _MOST_COMPARED:
            long.append(row)
    if boxes and rising and outside > _OUTSIDE * boxes:
        return Reading(question="rows of 5 columns can be a class, centre and sides, or a class and corners")
    if not long:
        return Reading()
    many = {count for count in columns if count > 5}
    same = many.pop() if len(many) == 1 else 0  # rows with key points have equally many columns
    widths = (2, 3) if columns == {same} else (3,)  # among plain boxes, only visibilities tell them from outlines
    shapes = [(n, more) for n in widths for more in (0, 1, 2) if same > 6 and (same - 4 - more) % n == 0]
    fitting = max(sum(_fits_box(row, *shape) for row in long) for shape in [*shapes, (0, 0)])
    outlines = sum(map(_fits_outline, long))
    if fitting < _CLEARLY * outlines or not fitting:
        return Reading(True)
    if outlines < _CLEARLY * fitting:
        return Reading(False)
    if all(len(row) in (8, 9, 10) and _is_parallelogram(row) for row in long):
        return Reading(True)
    if len(long) >= _ENOUGH and all(map(_counts, long)):
        return Reading(False)
    several = sorted({len(row) + 1 for row in long})
    return Reading(True, question=f"rows of {' or '.join(map(str, several))} columns can be {_readings(long)}")


def _readings(rows: Sequence[Sequence[float]]) -> str:
    counts = {len(row) for row in rows}
    boxes = "boxes with key points" if max(counts) > 6 else "boxes with a confidence and a track number, or a key point"
    return f"{boxes}, or {'oriented boxes (four corners)' if counts == {8} else 'outlines (polygons)'}"


def _fits_box(row: Sequence[float], width: int, more: int) -> bool:
    """Return whether a row can be a box with further columns: key points of `width` numbers each, and `more` after."""
    _, _, w, h = row[:4]
    if not (w > 0 and h > 0 and _is_inside(row)):
        return False
    rest = row[4:]
    if len(rest) <= 3 and all(0 <= v <= 1 or _is_count(v) for v in rest):  # scores, numbers, a key point
        return True
    if not width or len(rest) <= 2:
        return False
    rest, after = rest[: len(rest) - more], rest[len(rest) - more :]
    points = [rest[i : i + width] for i in range(0, len(rest), width)]
    seen = [value for point in points for value in point[2:]]
    scored = all(0 <= value <= 1 or _is_count(value) for value in (*seen, *after))
    return scored and max(seen, default=0) <= 2 and all(_near(row, point[0], point[1]) for point in points)


def _is_inside(row: Sequence[float]) -> bool:
    x, y, w, h = row[:4]
    return min(x - w / 2, y - h / 2) >= -_EDGE and max(x + w / 2, y + h / 2) <= 1 + _EDGE


def _near(row: Sequence[float], px: float, py: float) -> bool:
    x, y, w, h = row[:4]
    return (px, py) == (0, 0) or (abs(px - x) <= (0.5 + _AROUND) * w and abs(py - y) <= (0.5 + _AROUND) * h)


def _fits_outline(row: Sequence[float]) -> bool:
    points = row[: len(row) - _beyond_outline(row)]
    inside = all(-_EDGE <= v <= 1 + _EDGE for v in points)
    return len(points) >= 6 and inside and len(set(points[::2])) > 1 and len(set(points[1::2])) > 1


def _beyond_outline(row: Sequence[float]) -> int:
    """Count the columns after an outline: a confidence makes the number of columns odd, a track number is over 1."""
    if len(row) % 2:
        return 1
    return 2 if _is_count(row[-1]) and row[-1] > 1 and 0 <= row[-2] <= 1 else 0


def _is_parallelogram(row: Sequence[float]) -> bool:
    x, y = row[:8:2], row[1:8:2]
    return max(abs(x[0] + x[2] - x[1] - x[3]), abs(y[0] + y[2] - y[1] - y[3])) < 2e-3


def _is_upright(row: Sequence[float]) -> bool:
    return all(min(abs(row[i] - row[(i + 2) % 8]), abs(row[i + 1] - row[(i + 3) % 8])) < 2e-3 for i in (0, 2, 4, 6))


def _counts(row: Sequence[float]) -> bool:
    """Return whether a row has whole numbers where a track number or visibilities stand.

    No set of outlines has them in every row.
    """
    rest = row[4:]
    return _is_count(rest[-1]) if len(rest) <= 2 else len(rest) % 3 == 0 and all(map(_is_count, rest[2::3]))


def _is_count(value: float) -> bool:
    return value >= 0 and value == int(value)
