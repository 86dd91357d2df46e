"""YOLO text: one file an image, a row a tooth."""

from collections.abc import Iterator, Mapping
from functools import partial

from data_shards.annotations.base import Annotation, Row
from data_shards.annotations.class_list import ClassList
from data_shards.annotations.formats.yolo_rows import Reading, RowError, corners_of, is_turned, numbers_in
from data_shards.annotations.markup import rows_of
from data_shards.sources.inventory import Entry, Text


def read_yolo(text: Text, reading: Reading, classes: ClassList | None, listed: Entry | None) -> Annotation:
    """Return a text as YOLO rows of a reading, with the names in a class list, whose file is `listed`."""
    known = classes.names if classes else {}
    rows = partial(_rows, text.text, reading, known)
    return Annotation("yolo", text.entry, rows, True, listed.file if listed else "", known.values(), listed)


def _rows(text: str, reading: Reading, known: Mapping[int, str]) -> Iterator[Row]:
    for number, row in rows_of(text):
        try:
            category, values = numbers_in(row)
            corners = corners_of(values, reading)
        except RowError as error:
            yield Row(number, reason=str(error))
            continue
        labels = {"class": known.get(category, category)}
        yield Row(number, corners, labels, relative=True, turned=is_turned(values, reading))
