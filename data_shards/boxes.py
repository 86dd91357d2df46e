"""Where the teeth are: boxes from YOLO text or a table with named columns, or whole images, labelled or not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from data_shards.errors import PackError
from data_shards.ids import Key
from data_shards.inventory import NEITHER, Entry, Inventory, Text
from data_shards.labels import bare_class, labels_of_class, labels_of_row
from data_shards.ledger import Ledgers
from data_shards.tables import CORNERS, Table, read_table
from data_shards.yolo import RowError, class_names, parse_row, rows_of

ORPHAN = "no radiograph for it"
BOXLESS = "no boxes for it"
ROWLESS = "no row of a table labels it"
CLASSLESS = "no class: it lies in no folder of its source"
CHOICES = ("auto", "none", "folders", "labelled")
"""What `--boxes` may say beside the place of annotations."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
NOTHING_FOUND = "neither YOLO files nor a table with named columns was found"


class Box(NamedTuple):
    """A tooth's box: x0, y0, x1, y1 in pixels of the upright radiograph, or in shares of its sides if `relative`."""

    id: str
    corners: tuple[float, float, float, float]
    relative: bool
    labels: dict[str, str | int]


@dataclass
class BoxPlan:
    """Which boxes to cut from which radiograph.

    `format` is yolo, csv, "csv of whole images", folders or none and `why` says what it was chosen by; `whole` says
    that every box is a whole image, and `boxless` why an image has none; `boxes` goes by radiograph id, `files` from
    an annotation file's id to the ids of its boxes (a class list's file: to those of the files that it names).
    """

    format: str
    why: str
    whole: bool = False
    boxless: str = BOXLESS
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

    `choice` is one of CHOICES or anything else for the annotations `given`; `labels` names columns to keep beside
    KNOWN_COLUMNS. Raises PackError where the annotations asked for hold no boxes.
    """
    finder = ImageFinder(inventory.images)
    texts = list(inventory.texts) if choice in CHOICES else list(given)
    tables = [t for text in texts if (t := read_table(text)) is not None]
    boxed, whole = [t for t in tables if t.boxes], [t for t in tables if t.whole(labels)]
    yolos = [t for t in texts if t.suffix == ".txt" and not class_names(t) and _is_yolo(t, finder)]
    known = {t.text.entry.file for t in [*boxed, *whole]} | {t.entry.file for t in yolos}
    if choice == "none":
        plan = _whole(inventory.images, "asked for", key, ledgers)
    elif choice == "folders":
        plan = _from_folders(inventory.images, "asked for", key, ledgers)
    elif boxed:
        plan = _from_tables(boxed, finder, labels, key, ledgers)
    elif yolos:
        lists = [t for t in [*inventory.texts, *given] if class_names(t)]
        plan = _from_yolo(yolos, lists, finder, key, ledgers)
    elif whole:  # after YOLO files: beside them, a table is but a list of the images
        plan = _from_tables(whole, finder, labels, key, ledgers)
    elif choice == "labelled":
        plan = _from_folders(inventory.images, NOTHING_FOUND, key, ledgers)
    elif choice == "auto":
        plan = _whole(inventory.images, NOTHING_FOUND, key, ledgers)
    else:
        raise PackError(
            f"no boxes in {choice}: a table needs the columns image,{','.join(CORNERS)} (for whole images, image and "
            "a label: finding, class ... or one named with --labels), a YOLO file the name of its image"
        )
    for image in inventory.images:
        if image.radiograph not in plan.boxes:
            ledgers.reject("radiographs", image.radiograph, plan.boxless)
    places = {t.text.entry.file for t in tables} - known
    for text in [*inventory.texts, *given]:
        if text.entry.file in plan.files:
            continue
        if text.entry.file in known or class_names(text):
            reason = f"annotations of another kind than {plan.format}"
        elif text.entry.file in places:
            reason = f"a table of images without a label column that is kept, or with boxes not in {','.join(CORNERS)}"
        else:
            reason = NEITHER if text.text.strip() else "an empty file"
        ledgers.reject("files", text.entry.file, reason)
    return plan


def _whole(images: Iterable[Entry], why: str, key: Key, ledgers: Ledgers) -> BoxPlan:
    plan = BoxPlan("none", f"{why}: every image is one crop", whole=True)
    for image in images:
        box = Box(key.id("box", image.name), WHOLE, True, {})
        ledgers.see("boxes", box.id)
        plan.boxes[image.radiograph] = [box]
    return plan


def _from_folders(images: Sequence[Entry], why: str, key: Key, ledgers: Ledgers) -> BoxPlan:
    plan = BoxPlan("folders", "", whole=True, boxless=CLASSLESS)
    classes = set()
    for image in images:
        folders = PurePosixPath(image.name.replace("\\", "/")).parts[1:-1]  # the first part is the source
        if not folders or folders[-1] in ("/", ".."):
            continue
        classes.add(folders[-1])
        box = Box(key.id("box", image.name), WHOLE, True, labels_of_class(folders[-1]))
        ledgers.see("boxes", box.id)
        plan.boxes[image.radiograph] = [box]
    plan.why = f"{why}: every image is one crop, its folder its class, {len(classes)} classes"
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


def _from_tables(
    tables: Sequence[Table], finder: ImageFinder, asked: Sequence[str], key: Key, ledgers: Ledgers
) -> BoxPlan:
    """Boxes from tables that are all of boxes or all of whole images."""
    named = ", ".join(dict.fromkeys(t.image for t in tables))
    if tables[0].boxes:
        plan = BoxPlan("csv", f"{len(tables)} table(s) with the columns {named}, {', '.join(CORNERS)}")
    else:
        kept = ", ".join(dict.fromkeys(c for t in tables for c in t.kept(asked)))
        why = f"{len(tables)} table(s) with the column {named}, labels ({kept}) and no boxes: a row is a whole image"
        plan = BoxPlan("csv of whole images", why, whole=True, boxless=ROWLESS)
    for table in tables:
        entry = table.text.entry
        plan.dropped_columns += table.dropped(asked)
        missing = set(asked) - set(table.others())
        if missing:
            there = ", ".join(table.others())
            raise PackError(f"no column {', '.join(sorted(missing))} for --labels: there are {there}")
        plan.files.setdefault(entry.file, [])
        for number, row in enumerate(table.rows()):
            id_ = key.id("box", entry.name, str(number))
            ledgers.see("boxes", id_)
            image = finder.named(row[table.image] or "")
            if image is None:
                plan.lose(id_, entry, number, ORPHAN, ledgers)
                continue
            corners = WHOLE
            if table.boxes:
                try:
                    x0, y0, x1, y1 = (float(row[c]) for c in CORNERS)
                except (TypeError, ValueError):
                    plan.lose(id_, entry, number, "its corners are not four numbers", ledgers)
                    continue
                corners = x0, y0, x1, y1
            labels = labels_of_row(row, table.kept(asked))
            plan.add(image, Box(id_, corners, not table.boxes, labels), entry)
    return plan
