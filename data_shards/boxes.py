"""Where the teeth are: boxes from YOLO text, from a table with named columns, or whole images."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from data_shards.errors import PackError
from data_shards.ids import Key
from data_shards.inventory import NEITHER, Entry, Inventory, Text
from data_shards.labels import KNOWN_COLUMNS, RESERVED, bare_class, labels_of_class, labels_of_row
from data_shards.ledger import Ledgers
from data_shards.yolo import RowError, class_names, parse_row, rows_of

ORPHAN = "no radiograph for it"
BOXLESS = "no boxes for it"
TABLE_COLUMNS = ("image", "x0", "y0", "x1", "y1")


class Box(NamedTuple):
    """A tooth's box: x0, y0, x1, y1 in pixels of the upright radiograph, or in shares of its sides if `relative`."""

    id: str
    corners: tuple[float, float, float, float]
    relative: bool
    labels: dict[str, str | int]


@dataclass
class BoxPlan:
    """Which boxes to cut from which radiograph.

    `format` is yolo, csv or none and `why` says what it was chosen by; `boxes` goes by radiograph id, `files` from an
    annotation file's id to the ids of its boxes (a class list's file: to those of the files that it names).
    """

    format: str
    why: str
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    dropped_columns: list[str] = field(default_factory=list)
    lost: list[tuple[str, Entry, int]] = field(default_factory=list)
    """Boxes that cannot be cut: id, annotation file and row."""

    def add(self, image: Entry, box: Box, annotation: Entry) -> None:
        """Enter a box of `image` that `annotation` holds."""
        self.boxes.setdefault(image.radiograph, []).append(box)
        self.files.setdefault(annotation.file, []).append(box.id)

    def lose(self, id_: str, annotation: Entry, row: int, reason: str, ledgers: Ledgers) -> None:
        """Enter a box that cannot be cut."""
        self.lost.append((id_, annotation, row))
        ledgers.reject("boxes", id_, reason)


class ImageFinder:
    """Finds the radiograph that an annotation means, by the longest name that only one radiograph has."""

    def __init__(self, images: Iterable[Entry]) -> None:
        self._by_place: dict[object, list[Entry]] = {}
        self._by_name: dict[str, list[Entry]] = {}
        for image in images:
            self._by_place.setdefault(image.place, []).append(image)
            parts = PurePosixPath(image.name).parts
            for name in {*("/".join(parts[i:]) for i in range(len(parts))), image.stem}:
                self._by_name.setdefault(name, []).append(image)

    def beside(self, annotation: Entry) -> Entry | None:
        """The image of a YOLO file: the same stem beside it or in the twin folder `images`, else anywhere if unique."""
        found = self._by_place.get(annotation.place) or self._by_name.get(annotation.stem, [])
        return found[0] if len(found) == 1 else None

    def named(self, name: str) -> Entry | None:
        """The image that a table calls `name`: a path's end, a file name or a stem."""
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        for start in range(len(parts)):
            found = self._by_name.get("/".join(parts[start:]), [])
            if len(found) == 1:
                return found[0]
        return None


def plan_boxes(
    choice: str, inventory: Inventory, given: Sequence[Text], labels: Sequence[str], key: Key, ledgers: Ledgers
) -> BoxPlan:
    """Find the boxes of every radiograph; what cannot be used is entered in the ledgers with its reason.

    `choice` is `auto`, `none` or anything else for the annotations `given`; `labels` names columns to keep beside
    KNOWN_COLUMNS. Raises PackError where the annotations asked for hold no boxes.
    """
    finder = ImageFinder(inventory.images)
    texts = list(inventory.texts) if choice in ("auto", "none") else list(given)
    tables = [t for t in texts if t.suffix in (".csv", ".tsv") and _table(t.text) is not None]
    yolos = [t for t in texts if t.suffix == ".txt" and not class_names(t) and _is_yolo(t, finder)]
    if choice == "none":
        plan = _whole(inventory.images, "asked for", key, ledgers)
    elif tables:
        plan = _from_tables(tables, finder, labels, key, ledgers)
    elif yolos:
        lists = [t for t in [*inventory.texts, *given] if class_names(t)]
        plan = _from_yolo(yolos, lists, finder, key, ledgers)
    elif choice == "auto":
        plan = _whole(inventory.images, "neither YOLO files nor a table with named columns was found", key, ledgers)
    else:
        raise PackError(
            f"no boxes in {choice}: a table needs the columns {','.join(TABLE_COLUMNS)}, "
            "a YOLO file the name of its image"
        )
    for image in inventory.images:
        if image.radiograph not in plan.boxes:
            ledgers.reject("radiographs", image.radiograph, BOXLESS)
    known = {text.entry.file for text in [*tables, *yolos]}
    for text in [*inventory.texts, *given]:
        if text.entry.file in plan.files:
            continue
        if text.entry.file in known or class_names(text):
            reason = f"annotations of another kind than {plan.format}"
        else:
            reason = NEITHER if text.text.strip() else "an empty file"
        ledgers.reject("files", text.entry.file, reason)
    return plan


def _whole(images: Iterable[Entry], why: str, key: Key, ledgers: Ledgers) -> BoxPlan:
    plan = BoxPlan("none", f"{why}: every image is one crop")
    for image in images:
        box = Box(key.id("box", image.name), (0.0, 0.0, 1.0, 1.0), True, {})
        ledgers.see("boxes", box.id)
        plan.boxes[image.radiograph] = [box]
    return plan


def _is_yolo(text: Text, finder: ImageFinder) -> bool:
    for _, row in rows_of(text.text):
        try:
            parse_row(row)
            return True
        except RowError:
            return finder.beside(text.entry) is not None
    return finder.beside(text.entry) is not None


def _from_yolo(
    texts: Sequence[Text], lists: Sequence[Text], finder: ImageFinder, key: Key, ledgers: Ledgers
) -> BoxPlan:
    plan = BoxPlan("yolo", f"{len(texts)} YOLO files" + (" and their class names" if lists else ", no class names"))
    taken: dict[str, Entry] = {}
    for text in texts:
        entry = text.entry
        image = finder.beside(entry)
        reason = ORPHAN if image is None else ""
        if image is not None and taken.setdefault(image.radiograph, entry) is not entry:
            reason = "another annotation file has its radiograph"
        rows = list(rows_of(text.text))
        if not reason and not rows:
            reason = "it holds no boxes"
        names = _nearest(lists, entry)
        known = class_names(names) if names else {}
        plan.files.setdefault(entry.file, [])
        if reason:
            ledgers.reject("files", entry.file, reason)
        for number, row in rows:
            id_ = key.id("box", entry.name, str(number))
            ledgers.see("boxes", id_)
            if reason or image is None:
                plan.lose(id_, entry, number, reason, ledgers)
                continue
            try:
                category, corners = parse_row(row)
            except RowError as error:
                plan.lose(id_, entry, number, str(error), ledgers)
                continue
            labels = labels_of_class(known[category]) if category in known else bare_class(category)
            plan.add(image, Box(id_, corners, True, labels), entry)
            if names:
                plan.files.setdefault(names.entry.file, []).append(id_)
    return plan


def _nearest(lists: Sequence[Text], entry: Entry) -> Text | None:
    """The class list in the closest folder above `entry`; else the first."""

    def depth(text: Text) -> int:
        folder = PurePosixPath(text.entry.name).parts[:-1]
        return len(folder) if PurePosixPath(entry.name).parts[: len(folder)] == folder else -1

    return max(lists, key=depth, default=None)


def _table(text: str) -> csv.DictReader | None:
    """The rows of a table whose header has the named columns, whichever of `,` `;` and tab divides it."""
    for delimiter in ",;\t":
        header = next(csv.reader(io.StringIO(text[:65536]), delimiter=delimiter), [])
        columns = [c.strip().lower() for c in header]
        if set(TABLE_COLUMNS) <= set(columns):
            body = io.StringIO(text.partition("\n")[2])
            return csv.DictReader(body, fieldnames=columns, delimiter=delimiter, restval="", restkey="")
    return None


def _from_tables(
    texts: Sequence[Text], finder: ImageFinder, asked: Sequence[str], key: Key, ledgers: Ledgers
) -> BoxPlan:
    plan = BoxPlan("csv", f"{len(texts)} table(s) with the columns {', '.join(TABLE_COLUMNS)}")
    for text in texts:
        reader = _table(text.text)
        assert reader is not None
        columns = [c for c in reader.fieldnames or [] if c and c not in TABLE_COLUMNS and c not in RESERVED]
        kept = [c for c in columns if c in KNOWN_COLUMNS or c in asked]
        plan.dropped_columns += [c for c in reader.fieldnames or [] if c not in kept and c not in TABLE_COLUMNS]
        missing = set(asked) - set(columns)
        if missing:
            raise PackError(f"no column {', '.join(sorted(missing))} for --labels: there are {', '.join(columns)}")
        plan.files.setdefault(text.entry.file, [])
        for number, row in enumerate(_readable(reader)):
            id_ = key.id("box", text.entry.name, str(number))
            ledgers.see("boxes", id_)
            image = finder.named(row["image"] or "")
            if image is None:
                plan.lose(id_, text.entry, number, ORPHAN, ledgers)
                continue
            try:
                x0, y0, x1, y1 = (float(row[c]) for c in TABLE_COLUMNS[1:])
            except (TypeError, ValueError):
                plan.lose(id_, text.entry, number, "its corners are not four numbers", ledgers)
                continue
            plan.add(image, Box(id_, (x0, y0, x1, y1), False, labels_of_row(row, kept)), text.entry)
    return plan


def _readable(reader: csv.DictReader) -> Iterable[dict[str, str]]:
    try:
        yield from reader
    except csv.Error:  # a field of over 128 KiB: binary rubbish from here on
        return
