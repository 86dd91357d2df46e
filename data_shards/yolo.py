"""YOLO text: `class cx cy w h` rows, polygon rows, and the lists that name the classes."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import yaml

from data_shards.annotation import Annotation, Corners, Row
from data_shards.inventory import Entry, Text


class RowError(ValueError):
    """A row that is no box. The message is a reason for the ledger."""


def rows_of(text: str) -> Iterator[tuple[int, str]]:
    """Rows that are not blank, with their numbers from 1."""
    return ((n, row) for n, row in enumerate(text.splitlines(), 1) if row.strip())


def read_yolo(text: Text, lists: Sequence[Text]) -> Annotation:
    """A text as YOLO rows, with the names in the class list of the closest folder above it, else in the first."""
    names = _nearest(lists, text.entry)
    known = class_names(names) if names else {}
    scope = names.entry if names else None
    rows = partial(_rows, text.text, known)
    return Annotation("yolo", text.entry, rows, True, scope.file if scope else "", known.values(), scope)


def _rows(text: str, known: dict[int, str]) -> Iterator[Row]:
    for number, row in rows_of(text):
        try:
            category, corners = parse_row(row)
        except RowError as error:
            yield Row(number, reason=str(error))
            continue
        yield Row(number, corners, {"class": known.get(category, category)}, relative=True)


def _nearest(lists: Sequence[Text], entry: Entry) -> Text | None:
    def depth(text: Text) -> int:
        folder = text.entry.path.parts[:-1]
        return len(folder) if entry.path.parts[: len(folder)] == folder else -1

    return max(lists, key=depth, default=None)


def parse_row(row: str) -> tuple[int, Corners]:
    """Class and x0, y0, x1, y1 (shares of the image's sides) of a row.

    5 fields are a box, 6 a box with a confidence, 7 and more (an odd number) a polygon, of which the bounding box is
    taken. Raises RowError.
    """
    try:
        if not row.strip():
            raise RowError("an empty row")
        category = int(row.split()[0])
        values = [float(v) for v in row.split()[1:]]
    except ValueError:
        raise RowError("not a row of numbers") from None
    if not all(math.isfinite(v) for v in values):
        raise RowError("its coordinates are not finite")
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise RowError(f"neither a box nor a polygon: {len(values) + 1} fields")
    if max(abs(v) for v in values[:4]) > 2:
        raise RowError("its coordinates are not shares of the image's sides (0 to 1)")
    return category, corners


def class_names(text: Text) -> dict[int, str]:
    """Class names in a `data.yaml` (`names:`, list or mapping), a `classes.txt` or `obj.names`; empty if it is none."""
    return _class_names(text.suffix, text.entry.path.name.lower(), text.text)


class _PlainLoader(yaml.SafeLoader):
    """YAML without merged mappings: nine of nine in each other, a few hundred bytes, are more than the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("mappings are not merged here")


@lru_cache(maxsize=8)
def _class_names(suffix: str, name: str, text: str) -> dict[int, str]:
    if suffix == ".names" or name in ("classes.txt", "labels.txt"):
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    if suffix not in (".yaml", ".yml") or len(text) > 1 << 20:
        return {}
    try:
        content = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return {}
    return {k: str(v) for k, v in names.items() if isinstance(k, int) and isinstance(v, (str, int))}
