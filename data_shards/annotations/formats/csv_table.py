"""Tables of labels: CSV and TSV files with a header, a row a box or a row an image."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from data_shards.annotations.base import Annotation, Corners, Row, in_shares, stated_size
from data_shards.annotations.labels import KNOWN_COLUMNS, column_name
from data_shards.shards.schema import RESERVED
from data_shards.sources.inventory import IMAGE_COLUMNS, Text

CORNERS = (
    *(("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax")),
    *(("x_min", "y_min", "x_max", "y_max"), ("left", "top", "right", "bottom")),
)
"""Names of the columns with a box's edges; the first four that a table has count."""
_STARTS = (("x", "y"), ("left", "top"), ("xmin", "ymin"), ("x_min", "y_min"), ("bbox_x", "bbox_y"))
_CENTRES = (("cx", "cy"), ("x_center", "y_center"), ("xc", "yc"), ("x_centre", "y_centre"))
_SIDES = (("w", "h"), ("width", "height"), ("bbox_w", "bbox_h"), ("bbox_width", "bbox_height"), ("box_w", "box_h"))
_IMAGE_SIZES = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))
_BEFORE = re.compile(r"\A(?:sep=.\n)?(?:#[^\n,;|\t]*\n)*", re.IGNORECASE)
"""What may stand before the header: what divides columns, for spreadsheets, and comments."""
_AREAS = frozenset(("bbox", "box", "bounding_box", "polygon", "points", "segmentation", "coordinates", "rle"))
_AREA_CELL = re.compile(r'""?(?:x|points|bbox|rle|polygons?|rectanglelabels|shape_attributes)""?\s*:')
"""What stands in a cell with an area, as JSON."""
_PLACES = frozenset(name for names in (*CORNERS, *_STARTS, *_CENTRES) for name in names) | _AREAS
"""A table with one of these is about parts of images, so its rows label no whole ones."""


class Table(NamedTuple):
    """A table with an image column. `columns` are as `column_name` writes them; `delimiter` divides them."""

    text: Text
    columns: list[str]
    delimiter: str
    image: str

    @property
    def place(self) -> tuple[str, ...]:
        """The four columns that say where a row's box is: edges, else start or centre with sides; empty if none do."""
        there = set(self.columns)
        for names in CORNERS:
            if there >= set(names):
                return names
        for starts in (*_STARTS, *_CENTRES):
            for sides in _SIDES:
                if there >= {*starts, *sides}:
                    return (*starts, *sides)
        return ()

    @property
    def size(self) -> tuple[str, ...]:
        """The two columns that state the image's width and height, if there are such beside the box's own."""
        there = set(self.columns) - set(self.place)
        return next((names for names in _IMAGE_SIZES if there >= set(names)), ())

    def whole(self, asked: Collection[str]) -> bool:
        """Whether its rows label whole images: it says nothing of places, and has a known or an `asked` column."""
        return not _PLACES & set(self.columns) and bool(self.kept(asked))

    def kept(self, asked: Collection[str]) -> list[str]:
        """The columns that travel along as labels."""
        return [c for c in self.others() if c in KNOWN_COLUMNS or c in asked]

    def others(self) -> list[str]:
        """The columns that may be labels: all but the image, the box and the names that samples use."""
        used = {self.image, *self.place, *RESERVED}
        return [c for c in self.columns if c and c not in used]

    def dropped(self, asked: Collection[str]) -> list[str]:
        """The columns that are left out."""
        used = {self.image, *self.kept(asked), *self.place, *self.size}
        return [c for c in self.columns if c and c not in used]

    def annotation(self, asked: Collection[str]) -> Annotation:
        """Its rows as boxes, or as whole images where it has none.

        Corners are shares of the sides where `in_shares` says so of all in the table, else pixels.
        """
        return Annotation("csv", self.text.entry, partial(self._rows, asked), False, self.text.entry.file)

    def _rows(self, asked: Collection[str]) -> Iterator[Row]:
        kept, place, size = self.kept(asked), self.place, self.size
        relative = not place or in_shares([c for row in self.rows() for c in self._corners(row) or ()])
        for number, row in enumerate(self.rows()):
            if not row:
                yield Row(number, reason="the table cannot be read from here on: a quote that is not closed, or damage")
                return
            labels = {c: row[c].strip() for c in kept if (row.get(c) or "").strip()}
            image = (row[self.image] or "").strip() or "?"
            corners = self._corners(row) if place else (0.0, 0.0, 1.0, 1.0)
            if corners is None:
                yield Row(number, labels=labels, image=image, reason="its corners are not four numbers")
                continue
            stated = stated_size(row[size[0]], row[size[1]]) if size else None
            own = stated is not None and np.allclose(stated, (corners[2] - corners[0], corners[3] - corners[1]), atol=1)
            yield Row(number, corners, labels, image, relative, None if own else stated)  # own: the box's sides

    def _corners(self, row: dict[str, str]) -> Corners | None:
        """The edges in a row; None where its four columns are not numbers. A comma that parts no columns is a point."""
        if self.delimiter != ",":
            row = {name: (row[name] or "").replace(",", ".") for name in self.place}
        return _corners(row, self.place)

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows below the header, by column; an empty one, the last, where it cannot be read further."""
        body = io.StringIO(self.text.text.partition("\n")[2])
        reader = csv.DictReader(body, fieldnames=self.columns, delimiter=self.delimiter, restval="", restkey="")
        try:
            yield from reader
        except csv.Error:  # a field of over 128 KiB: a quote that is never closed, or binary rubbish
            yield {}


def read_table(text: Text) -> Table | None:
    """The table in a text, whichever of `,` `;` `|` and tab divides it; None where no column names images."""
    found = []
    text = text._replace(text=_BEFORE.sub("", text.text.lstrip("\n \t"), count=1))
    start = text.text[:65536]
    for delimiter in ",;|\t":
        try:
            header = next(csv.reader(io.StringIO(start), delimiter=delimiter), [])
        except csv.Error:  # before Python 3.11: a NUL
            continue
        columns = [column_name(c) for c in header]
        image = next((c for c in IMAGE_COLUMNS if c in columns), None)
        if image is not None and (len(columns) > 1 or text.suffix in (".csv", ".tsv")):
            found.append(Table(text, columns, delimiter, image))
    return max(found, key=lambda table: len(table.columns), default=None)


def places_unread(text: Text) -> bool:
    """Return whether a text is a table that says where something lies, in columns that are not understood."""
    header = _BEFORE.sub("", text.text.lstrip("\n \t"), count=1).partition("\n")[0]
    columns = {column_name(c) for c in re.split(r"[,;|\t]", header.replace('"', ""))}
    named = bool(columns & set(IMAGE_COLUMNS))
    areas = bool(columns & _AREAS or _AREA_CELL.search(text.text[:65536]))
    return len(columns & _PLACES) >= 2 or (named and areas)


def tables_in(texts: Iterable[Text]) -> Iterator[Table]:
    """Return the tables among texts."""
    return (table for text in texts if (table := read_table(text)) is not None)


def _corners(row: dict[str, str], place: tuple[str, ...]) -> Corners | None:
    """The edges in a row; None where its four columns are not numbers."""
    try:
        a, b, c, d = (float(row[name]) for name in place)
    except (KeyError, TypeError, ValueError):
        return None
    if place in CORNERS:
        return a, b, c, d
    if place[:2] in _CENTRES:
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, a + c, b + d
