"""The boxes to cut from every radiograph, held compactly: archives have tens of millions."""

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

from data_shards.annotations.base import Corners
from data_shards.annotations.labels import LabelList, Withheld
from data_shards.annotations.table_patients import TablePatients
from data_shards.ledger import Ledgers
from data_shards.sources.inventory import Entry

BOXLESS = "no boxes for it (--boxes none takes every radiograph whole)"


class Box(NamedTuple):
    """A tooth's box: x0, y0, x1, y1 in pixels of the radiograph, or in shares of its sides if `relative`.

    Corners are of the upright radiograph unless `stated`, the image's width and height that the annotation states, says
    otherwise (`orient.place`). Labels are shared by all boxes that have the same.
    """

    id: str
    corners: Corners
    relative: bool
    labels: dict[str, str | int]
    stated: tuple[int, int] | None = None


class Boxes(Sequence[Box]):
    """The boxes of one radiograph: 16 bytes of references and 32 of corners each, beside the ids."""

    __slots__ = ("_corners", "_forms", "_ids", "_labels")

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._labels: list[dict[str, str | int]] = []
        self._corners = array("d")
        self._forms: list[tuple[int, bool, tuple[int, int] | None]] = []  # from which box on, relative, stated

    def append(self, box: Box) -> None:
        """Add a box."""
        if not self._forms or self._forms[-1][1:] != (box.relative, box.stated):
            self._forms.append((len(self._ids), box.relative, box.stated))
        self._ids.append(box.id)
        self._labels.append(box.labels)
        self._corners.extend(box.corners)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Box]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, i: int) -> Box: ...
    @overload
    def __getitem__(self, i: slice) -> list[Box]: ...
    def __getitem__(self, i: int | slice) -> Box | list[Box]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        x0, y0, x1, y1 = self._corners[4 * i : 4 * i + 4]
        _, relative, stated = next(form for form in reversed(self._forms) if form[0] <= i)
        return Box(self._ids[i], (x0, y0, x1, y1), relative, self._labels[i], stated)


@dataclass
class BoxPlan:
    """Which boxes to cut from which radiograph.

    `format` is the kind of annotations (`coco`, `yolo` ..., joined by `+` where sources differ), "csv of whole
    images", folders or none and `why` says what it was chosen by; `whole` says that every box is a whole image, and
    `boxless` why an image has none; `boxes` goes by radiograph id, `files` from an annotation file's id to the ids of
    its boxes (a class list's file: to those of the files that it names).
    """

    format: str
    why: str
    whole: bool = False
    boxless: str = BOXLESS
    boxes: dict[str, Boxes] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    dropped_columns: list[str] = field(default_factory=list)
    lost: list[tuple[str, Entry, int]] = field(default_factory=list)
    """Boxes that cannot be cut: id, annotation file and row."""
    columns: set[str] = field(default_factory=set)
    """Names of the labels that boxes have."""
    withheld: dict[str, Withheld] = field(default_factory=dict)
    """Texts of labels that stay behind, by the label's name."""
    patients: TablePatients = field(default_factory=TablePatients)
    """Whose the radiographs are, by tables."""
    notes: list[str] = field(default_factory=list)
    """What the user is to know of the boxes, a line each."""
    turned: int = 0
    """Rotated boxes, whose bounding rectangles are taken."""
    orphan: tuple[Entry, str] | None = None
    """The first annotation file with a row that is about no radiograph, and what the row calls it."""

    def settle(self, names: LabelList, vouched: Collection[str]) -> None:
        """Take the texts that may name somebody out of labels that all boxes are entered with."""
        self.columns |= names.columns
        for column, found in names.withhold(vouched).items():
            sofar = self.withheld.setdefault(column, Withheld(0, 0, found.first))
            sofar.texts, sofar.boxes = sofar.texts + found.texts, sofar.boxes + found.boxes

    def add(self, image: Entry, box: Box) -> None:
        """Enter a box of `image`."""
        self.boxes.setdefault(image.radiograph, Boxes()).append(box)

    def lose(self, id_: str, annotation: Entry, row: int, reason: str, ledgers: Ledgers) -> None:
        """Enter a box that cannot be cut."""
        self.lost.append((id_, annotation, row))
        ledgers.reject("boxes", id_, reason)
