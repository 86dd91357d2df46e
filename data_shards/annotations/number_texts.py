"""Texts of numbers beside radiographs: YOLO rows or lines of corners, decided by all of them together."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from data_shards.annotations.base import Annotation
from data_shards.annotations.class_list import class_list, nearest
from data_shards.annotations.formats.corner_lines import parse_line, read_lines
from data_shards.annotations.formats.yolo import read_yolo
from data_shards.annotations.formats.yolo_rows import RowError, decide, numbers_in
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.annotations.markup import rows_of
from data_shards.sources.inventory import Text

_JUDGED_ROWS = 1000  # of a text: a file is of one kind throughout
_LARGEST_LABEL, _LARGEST_SIDE = 99, 20_000  # of teeth and grades; pixels
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")


@dataclass
class NumberTexts:
    """Annotations found, `questions` about those that can be read in two ways, and texts in an unknown order."""

    annotations: list[Annotation] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    unread: list[Text] = field(default_factory=list)


def read_numbers(texts: Sequence[Text], lists: Sequence[Text], finder: ImageFinder, forced: str) -> NumberTexts:
    """Read texts as YOLO rows or as lines of corners; `lists` are class lists, `forced` the kind that is asked for.

    A text is what more of its rows can only be; one that says nothing by itself (blank, damaged, or of rows that can be
    both) follows most others, and YOLO where there is a class list. A text beside a `data.yaml` is YOLO.
    """
    found = NumberTexts()
    yaml_sources = {text.entry.source for text in lists if (known := class_list(text)) and known.is_yaml}
    judged = [(text, _judged(text, text.entry.source in yaml_sources)) for text in texts]
    if not any(finder.beside(text.entry) for text, kind in judged if kind == "lines"):  # numbers about something else
        judged = [(text, kind) for text, kind in judged if kind != "lines"]
    counts = {kind: sum(k == kind for _, k in judged) for kind in ("yolo", "lines", "both")}
    if not any(counts.values()):
        found.unread = [text for text, _ in judged if _is_numeric(text) and _is_about_images(text, finder)]
        return found
    usual = "lines" if counts["lines"] > counts["yolo"] else "yolo"
    if not counts["yolo"] and not counts["lines"] and not lists and not forced:
        found.questions.append(
            f"{counts['both']} text(s) can be read as YOLO rows (class, centre, sides) and as lines of corners "
            "(x0 y0 x1 y1): say which with --boxes yolo or --boxes lines"
        )
    yolo: list[Text] = []
    lines: list[Text] = []
    for text, kind in judged:
        if kind == "" and (text.suffix != ".txt" or finder.beside(text.entry) is None):
            continue
        if (forced or (usual if kind in ("", "both") else kind)) == "lines":
            lines.append(text)
        else:
            yolo.append(text)
    found.annotations += map(read_lines, lines)
    if _begin_with_a_class(lines):
        found.questions.append(
            "lines of five numbers can be corners and a label (x0 y0 x1 y1 label), or a class and corners (class x0 y0 "
            "x1 y1): write the class last"
        )
    _add_yolo(yolo, lists, found)
    return found


def _add_yolo(texts: Sequence[Text], lists: Sequence[Text], found: NumberTexts) -> None:
    """Read YOLO texts; those of one class list, or of one source without any, decide together what a row is."""
    sets: dict[object, tuple[Text | None, list[Text]]] = {}
    for text in texts:
        listed = nearest(lists, text.entry)
        sets.setdefault(listed.entry.file if listed else text.entry.source, (listed, []))[1].append(text)
    for listed, together in sets.values():
        classes = class_list(listed) if listed else None
        rows = (row for text in together for row in _rows(text))
        reading = decide(rows, *((classes.points, classes.rows) if classes else ()))
        if reading.question:
            found.questions.append(
                f"{reading.question} ({together[0].entry.name} and {len(together) - 1} other YOLO texts): say which in "
                "a `data.yaml` beside them, with `kpt_shape: [number, 2 or 3]` for key points, `task: segment` for "
                "outlines, or `task: detect` for boxes with further columns"
            )
        entry = listed.entry if listed else None
        found.annotations += [read_yolo(text, reading, classes, entry) for text in together]


def _begin_with_a_class(lines: Sequence[Text]) -> bool:
    """Return whether in all lines of five numbers the last four can be corners, and the last of them no label."""
    rows = [_NUMBER.findall(row) for text in lines for _, row in islice(rows_of(text.text), _JUDGED_ROWS)]
    numbers = [[float(field) for field in row] for row in rows if len(row) == 5]
    corners = all(f[0] == int(f[0]) and f[1] < f[3] and f[2] < f[4] <= _LARGEST_SIDE for f in numbers)
    return corners and any(f[4] > _LARGEST_LABEL for f in numbers)


def _rows(text: Text) -> Iterator[list[float]]:
    for _, row in islice(rows_of(text.text), _JUDGED_ROWS):
        try:
            yield numbers_in(row)[1]
        except RowError:
            continue


def _judged(text: Text, yolo_alone: bool) -> str:
    """Return `yolo`, `lines`, `both` or nothing: what a text's rows are."""
    yolo = lines = both = 0
    for _, row in islice(rows_of(text.text), _JUDGED_ROWS):
        is_yolo, is_line = _is_yolo(row), _is_line(row)
        both += is_yolo and is_line
        yolo += is_yolo and not is_line
        lines += is_line and not is_yolo
    if yolo_alone:
        return "yolo" if yolo or lines or both else ""
    if lines > yolo:
        return "lines"
    return "yolo" if yolo else "both" if both else ""


def _is_yolo(row: str) -> bool:
    try:
        return numbers_in(row)[0] >= 0
    except RowError:
        return False


def _is_line(row: str) -> bool:
    found = parse_line(row)
    return found is not None and found[0][0] < found[0][2] and found[0][1] < found[0][3]


def _is_about_images(text: Text, finder: ImageFinder) -> bool:
    """Return whether a text lies beside a radiograph, or its rows begin with the names of radiographs."""
    if finder.beside(text.entry) is not None:
        return True
    first = (re.split(r"[,;\t]| +", row.strip(), maxsplit=1)[0].strip('"') for _, row in islice(rows_of(text.text), 5))
    return any(name and finder.candidates(name) for name in first)


def _is_numeric(text: Text) -> bool:
    rows = [len(_NUMBER.findall(row)) >= 4 for _, row in islice(rows_of(text.text), _JUDGED_ROWS)]
    return sum(rows) * 2 > len(rows)
