"""Tables of labels: CSV and TSV files with a header, a row a box or a row an image."""

import csv
import io
from collections.abc import Collection, Iterator
from typing import NamedTuple

from data_shards.inventory import Text
from data_shards.labels import KNOWN_COLUMNS, RESERVED

IMAGE_COLUMNS = ("image", "image_path", "path", "file", "filename")
"""Names of the column that says which image a row is about; the first of them that a table has."""
CORNERS = ("x0", "y0", "x1", "y1")
_PLACES = frozenset(
    (*CORNERS, *("x2", "y2", "x", "y", "w", "h", "cx", "cy", "x_center", "y_center", "left", "top", "right", "bottom"))
) | frozenset(
    (*("xmin", "ymin", "xmax", "ymax", "x_min", "y_min", "x_max", "y_max"), *("bbox", "box", "bounding_box", "polygon"))
)
"""A table with one of these is about parts of images, so its rows label no whole ones."""


class Table(NamedTuple):
    """A table with an image column. `columns` are in lower case; `delimiter` divides them."""

    text: Text
    columns: list[str]
    delimiter: str
    image: str

    @property
    def boxes(self) -> bool:
        """Whether its rows are boxes."""
        return set(CORNERS) <= set(self.columns)

    def whole(self, asked: Collection[str]) -> bool:
        """Whether its rows label whole images: it says nothing of places, and has a known or an `asked` column."""
        return not _PLACES & set(self.columns) and bool(self.kept(asked))

    def kept(self, asked: Collection[str]) -> list[str]:
        """The columns that travel along as labels."""
        return [c for c in self.others() if c in KNOWN_COLUMNS or c in asked]

    def others(self) -> list[str]:
        """The columns that may be labels: all but the image, the corners and the names that samples use."""
        return [c for c in self.columns if c and c != self.image and c not in CORNERS and c not in RESERVED]

    def dropped(self, asked: Collection[str]) -> list[str]:
        """The columns that are left out."""
        used = {self.image, *self.kept(asked), *(CORNERS if self.boxes else ())}
        return [c for c in self.columns if c not in used]

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows below the header, by column."""
        body = io.StringIO(self.text.text.partition("\n")[2])
        reader = csv.DictReader(body, fieldnames=self.columns, delimiter=self.delimiter, restval="", restkey="")
        try:
            yield from reader
        except csv.Error:  # a field of over 128 KiB: binary rubbish from here on
            return


def read_table(text: Text) -> Table | None:
    """The table in a text, whichever of `,` `;` and tab divides it; None where no column names images."""
    if text.suffix not in (".csv", ".tsv"):
        return None
    found = []
    for delimiter in ",;\t":
        try:
            header = next(csv.reader(io.StringIO(text.text[:65536]), delimiter=delimiter), [])
        except csv.Error:  # before Python 3.11: a NUL
            continue
        columns = [c.strip().lower() for c in header]
        image = next((c for c in IMAGE_COLUMNS if c in columns), None)
        if image is not None:
            found.append(Table(text, columns, delimiter, image))
    return max(found, key=lambda table: len(table.columns), default=None)
