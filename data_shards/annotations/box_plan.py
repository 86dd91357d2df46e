"""From annotations of any format to the boxes of every radiograph: what was found, which kind counts, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_shards.annotations.base import Annotation, FormatError, Row
from data_shards.annotations.boxes import Box, BoxPlan
from data_shards.annotations.choices import Choices
from data_shards.annotations.detect import KINDS, Recognised, recognise
from data_shards.annotations.formats.csv_table import tables_in
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.annotations.labels import LabelList, column_name
from data_shards.annotations.leftovers import add_notes, check_columns, close
from data_shards.annotations.mismatch import check_matched
from data_shards.annotations.table_patients import table_patients
from data_shards.errors import PackError
from data_shards.ledger import Ledgers
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry, Inventory

ORPHAN = "no radiograph for it"
ROWLESS = "no row of a table labels it"
TAKEN = "another annotation file has its radiograph"
CLASSLESS = "no class: it lies in no folder of its source"
CHOICES = ("auto", "none", "folders", "labelled", *KINDS)
"""What `--boxes` may say beside the place of annotations."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
_NAMES = {
    "coco": "COCO file(s)",
    "labelme": "LabelMe file(s)",
    "cvat": "CVAT file(s)",
    "label_studio": "Label Studio file(s)",
    "via": "VIA file(s)",
    "supervisely": "Supervisely file(s)",
    "csv": "table(s)",
    "voc": "VOC file(s)",
    "yolo": "YOLO files",
    "lines": "file(s) of x0 y0 x1 y1 lines",
    "masks": "mask(s)",
}
NOTHING_FOUND = f"no annotations ({', '.join(KINDS)}) were found"


def plan_boxes(choices: Choices, inventory: Inventory, given: Inventory, key: Key, ledgers: Ledgers) -> BoxPlan:
    """Find the boxes of every radiograph; what cannot be used is entered in the ledgers with its reason.

    `given` are the annotations that `choices.boxes` is the path of. Raises PackError where the annotations asked for
    hold no boxes, can be read in two ways, or are of a format that is not read.
    """
    choice, labels = choices.boxes, [column_name(label) for label in choices.labels]
    choices = choices._replace(labels=labels)
    finder = ImageFinder(inventory.images)
    sought = inventory if choice in CHOICES else given
    forced = choice if choice in KINDS else ""
    found = recognise(sought, [*inventory.texts, *given.texts], finder, choices, forced)
    kinds = {kind: found.boxes[kind] for kind in KINDS if kind in found.boxes and forced in ("", kind)}
    images = sorted(inventory.images, key=lambda image: image.name)
    if choice not in ("none", "folders"):
        _check_read(choice, found, kinds)
    if choice in ("none", "folders"):
        plan = _whole(images, "asked for", choice == "folders", key, ledgers)
    elif kinds:
        plan = _from_annotations(kinds, found, images, finder, labels, key, ledgers)
    elif found.whole and forced in ("", "csv"):  # only now, as a table beside boxes is but a list of the images
        plan = _from_whole_tables(found, labels, finder, key, ledgers)
    elif choice in ("auto", "labelled"):
        _check_masks(inventory, found, images)
        plan = _whole(images, NOTHING_FOUND, choice == "labelled", key, ledgers)
    elif forced:
        raise PackError(f"no annotations of the kind {forced} were found: choose another --boxes")
    else:
        lacking = _unlabelled(found, labels)
        raise PackError(
            f"no boxes in {choice}{lacking}: give COCO json, VOC xml, YOLO text, lines of corners, masks, or a table "
            "with the columns image,x0,y0,x1,y1 (for whole images, image and a label: finding, class or one named with "
            "--labels)"
        )
    check_matched(plan, images, finder)
    tables = found.tables if sought is inventory else [*found.tables, *tables_in(inventory.texts)]
    plan.patients = table_patients(tables, finder, choices.patient_column)
    check_columns(found, labels, plan)
    add_notes(plan, images)
    close(plan, images, sought, [inventory, given], found, ledgers)
    return plan


def _check_read(choice: str, found: Recognised, kinds: Mapping[str, Sequence[Annotation]]) -> None:
    """Raise PackError where there are annotations that are not read, or that can be read in two ways."""
    questions = found.questions if kinds.keys() & {"yolo", "lines"} else []
    if not found.unread or choice in KINDS or (kinds and choice not in ("auto", "labelled")):
        if questions:
            raise PackError(questions[0])
        return
    text, name, remedy = found.unread[0]
    more = f" and {len(found.unread) - 1} more" if len(found.unread) > 1 else ""
    known = f"--boxes {next(iter(kinds))} to leave them, " if kinds else ""
    more_questions = "".join(f" Also: {q}." for q in [*questions, found.mask_question] if q)
    raise PackError(
        f"annotations in a format that is not read: {name} ({text.entry.name}{more}). To use them, {remedy}; otherwise "
        f"give {known}--boxes none for whole images, or move those files away.{more_questions}"
    )


def _check_masks(inventory: Inventory, found: Recognised, images: Sequence[Entry]) -> None:
    """Raise PackError where there are masks, and none of them belongs to a radiograph."""
    alone = [m.entry for m in inventory.masks if not m.mask.reason and m.entry.file not in found.left]
    if alone and images:
        raise PackError(
            f"masks that belong to no radiograph by name ({alone[0].name}, and a radiograph is called "
            f"{images[0].path}). Name them alike, or give --boxes none for whole images."
        )


def _whole(images: Sequence[Entry], why: str, classes: bool, key: Key, ledgers: Ledgers) -> BoxPlan:
    """Every image as one crop; with `classes`, labelled with the folder that directly holds it."""
    plan = BoxPlan("none", f"{why}: every image is one crop", whole=True)
    names = LabelList()
    for image in images:
        labels: Mapping[str, str | int] = {}
        if classes:
            folders = image.path.parts[1:-1]  # the first part is the source
            if not folders or folders[-1] in ("/", ".."):
                continue
            labels = {"class": folders[-1]}
        box = Box(key.id("box", image.name), WHOLE, True, names.of(labels))
        ledgers.see("boxes", box.id)
        plan.add(image, box)
    if classes:
        plan.format, plan.boxless = "folders", CLASSLESS
        plan.why += f", its folder its class, {len(names)} classes"
    names.name_teeth(["class"])  # folders were asked for by --boxes
    plan.settle(names, ["class"])
    return plan


def _unlabelled(found: Recognised, asked: Sequence[str]) -> str:
    """Of tables that name images, but say nothing of them that may be kept: what columns they have."""
    tables = [table for table in found.tables if not table.place and not table.whole(asked)]
    if not tables:
        return ""
    there = sorted({column for table in tables for column in table.others()})
    return f", whose table lacks {', '.join(asked) or 'a label'} and has {', '.join(there) or 'only images'}"


def _from_annotations(
    kinds: Mapping[str, Sequence[Annotation]],
    found: Recognised,
    images: Iterable[Entry],
    finder: ImageFinder,
    vouched: Sequence[str],
    key: Key,
    ledgers: Ledgers,
) -> BoxPlan:
    """Boxes of the kind that covers most radiographs, for each source by itself: a source is one annotator's work."""
    chosen = _chosen(kinds, images, finder)
    used = [kind for kind in KINDS if kind in chosen.values()] or list(kinds)[:1]
    if "masks" in used and found.mask_question:
        raise PackError(found.mask_question)
    why = "; ".join(_told(kind, kinds[kind], found) for kind in used)
    if left := [f"{len(kinds[kind])} {_NAMES[kind]}" for kind in kinds if kind not in used]:
        why += f"; left: {', '.join(left)}, which cover no more radiographs; "
        why += "to use these too, name their folders as sources of their own; to use one kind only, --boxes KIND"
    plan = BoxPlan("+".join(used), why)
    for kind in used:
        # What a mask calls a class are its pixels' values.
        _enter(kinds[kind], plan, finder, chosen, [*vouched, "class"] if kind == "masks" else vouched, key, ledgers)
    return plan


def _told(kind: str, annotations: Sequence[Annotation], found: Recognised) -> str:
    """What was found of a kind, for the terminal."""
    told = f"{len(annotations)} {_NAMES[kind]}"
    if kind == "csv":
        columns = dict.fromkeys(f"{t.image}, {', '.join(t.place)}" for t in found.tables if t.place)
        told += f" with the columns {' or '.join(columns)}"
    if kind == "yolo":
        told += " and their class names" if found.lists else ", no class names"
    return told


def _chosen(kinds: Mapping[str, Sequence[Annotation]], images: Iterable[Entry], finder: ImageFinder) -> dict[int, str]:
    """The kind that counts for each source of radiographs that any covers, by the source's number."""
    if len(kinds) == 1:
        return {image.source: kind for kind in kinds for image in images}
    covered: dict[int, dict[str, set[str]]] = {}
    for kind, annotations in kinds.items():
        for annotation in annotations:
            try:
                for row, image in _placed(annotation, finder):
                    if image is not None and not row.reason:
                        covered.setdefault(image.source, {}).setdefault(kind, set()).add(image.radiograph)
            except FormatError:
                continue
    return {source: max(by_kind, key=lambda kind: len(by_kind[kind])) for source, by_kind in covered.items()}


def _placed(annotation: Annotation, finder: ImageFinder) -> Iterator[tuple[Row, Entry | None]]:
    """Rows, each with its radiograph: the one that it names, else (in a file about one image) the one beside the file.

    Raises FormatError.
    """
    beside = finder.beside(annotation.entry) if annotation.single else None
    for row in annotation.rows():
        yield row, (finder.named(row.image, annotation.entry) if row.image else None) or beside


def _enter(
    annotations: Iterable[Annotation],
    plan: BoxPlan,
    finder: ImageFinder,
    chosen: Mapping[int, str],
    vouched: Sequence[str],
    key: Key,
    ledgers: Ledgers,
) -> None:
    """Enter every row of annotations of one kind, as a box or as lost."""
    lists: dict[str, LabelList] = {}
    taken: dict[str, Entry] = {}
    for annotation in annotations:
        entry = annotation.entry
        names = lists.setdefault(annotation.scope, LabelList(annotation.listed))
        ids = plan.files.setdefault(entry.file, [])
        rows = 0
        try:
            for row, image in _placed(annotation, finder):
                rows += 1
                id_ = key.id("box", entry.name, str(row.number))
                ledgers.see("boxes", id_)
                reason = row.reason
                if image is None:
                    reason = reason or ORPHAN
                    plan.orphan = plan.orphan or (entry, row.image)
                elif chosen.get(image.source, annotation.kind) != annotation.kind:
                    reason = "its radiograph has boxes of another kind"
                elif annotation.single and taken.setdefault(image.radiograph, entry) is not entry:
                    reason = TAKEN
                if reason or image is None:
                    plan.lose(id_, entry, row.number, reason, ledgers)
                    continue
                ids.append(id_)
                plan.turned += row.turned
                labels = names.of(row.labels, f"{entry.name}, row {row.number}")
                plan.add(image, Box(id_, row.corners, row.relative, labels, row.stated))
            if not rows:
                ledgers.reject("files", entry.file, "it holds no boxes")
        except FormatError as error:
            ledgers.reject("files", entry.file, str(error))
        if not ids and annotation.single and finder.beside(entry) is None:
            ledgers.reject("files", entry.file, ORPHAN)
        if annotation.lists is not None:
            plan.files.setdefault(annotation.lists.file, []).extend(ids)
    for names in lists.values():
        names.name_teeth(vouched)
        plan.settle(names, vouched)


def _from_whole_tables(
    found: Recognised, asked: Sequence[str], finder: ImageFinder, key: Key, ledgers: Ledgers
) -> BoxPlan:
    """Whole images, labelled by the rows of tables."""
    named = ", ".join(dict.fromkeys(t.image for t in found.whole))
    kept = ", ".join(dict.fromkeys(c for t in found.whole for c in t.kept(asked)))
    why = f"{len(found.whole)} table(s) with the column {named}, labels ({kept}) and no boxes: a row is a whole image"
    plan = BoxPlan("csv of whole images", why, whole=True, boxless=ROWLESS)
    _enter([table.annotation(asked) for table in found.whole], plan, finder, {}, asked, key, ledgers)
    return plan
