"""From annotations of any format to the boxes of every radiograph: what was found, which kind counts, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_shards.annotation import Annotation, FormatError, Row
from data_shards.boxes import Box, BoxPlan
from data_shards.errors import PackError
from data_shards.finder import ImageFinder
from data_shards.ids import Key
from data_shards.inventory import NEITHER, Entry, Inventory
from data_shards.labels import OF_TEETH, LabelList, column_name
from data_shards.ledger import Ledgers
from data_shards.recognise import KINDS, Recognised, recognise

ORPHAN = "no radiograph for it"
ROWLESS = "no row of a table labels it"
TAKEN = "another annotation file has its radiograph"
CLASSLESS = "no class: it lies in no folder of its source"
CHOICES = ("auto", "none", "folders", "labelled", *KINDS)
"""What `--boxes` may say beside the place of annotations."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
_NAMES = {
    "coco": "COCO file(s)",
    "csv": "table(s)",
    "voc": "VOC file(s)",
    "yolo": "YOLO files",
    "lines": "file(s) of x0 y0 x1 y1 lines",
    "masks": "mask(s)",
}
NOTHING_FOUND = f"no annotations ({', '.join(KINDS)}) were found"

NOT_ASKED = "left, as --boxes names other annotations"
NO_IMAGE_COLUMN = "a table without a column that names images, such as `image` or `file_name`"


def plan_boxes(
    choice: str, inventory: Inventory, given: Inventory, labels: Sequence[str], key: Key, ledgers: Ledgers
) -> BoxPlan:
    """Find the boxes of every radiograph; what cannot be used is entered in the ledgers with its reason.

    `choice` is one of CHOICES, or anything else for the annotations `given`; `labels` names the labels whose texts
    travel whatever they are, columns beside KNOWN_COLUMNS among them. Raises PackError where the annotations asked for
    hold no boxes.
    """
    labels = [column_name(label) for label in labels]
    finder = ImageFinder(inventory.images)
    sought = inventory if choice in CHOICES else given
    forced = choice if choice in KINDS else ""
    found = recognise(sought, [*inventory.texts, *given.texts], finder, labels, forced)
    kinds = {kind: found.boxes[kind] for kind in KINDS if kind in found.boxes and forced in ("", kind)}
    images = sorted(inventory.images, key=lambda image: image.name)
    if choice in ("none", "folders"):
        plan = _whole(images, "asked for", choice == "folders", key, ledgers)
    elif kinds:
        plan = _from_annotations(kinds, found, images, finder, labels, key, ledgers)
    elif found.whole and forced in ("", "csv"):  # only now, as a table beside boxes is but a list of the images
        plan = _from_whole_tables(found, labels, finder, key, ledgers)
    elif choice in ("auto", "labelled"):
        plan = _whole(images, NOTHING_FOUND, choice == "labelled", key, ledgers)
    elif forced:
        raise PackError(f"no annotations of the kind {forced} were found: choose another --boxes")
    else:
        lacking = _unlabelled(found, labels)
        raise PackError(
            f"no boxes in {choice}{lacking}: give COCO json, VOC xml, YOLO text, lines of corners, masks, or a table "
            "with the "
            "columns image,x0,y0,x1,y1 (for whole images, image and a label: finding, class or one named with --labels)"
        )
    _check_columns(found, labels, plan)
    _close(plan, images, sought, [inventory, given], found, ledgers)
    return plan


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
        if found.unsure:
            told += f"; {found.unsure} could be x0 y0 x1 y1 lines as well: --boxes lines reads them so"
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
                elif chosen.get(image.source, annotation.kind) != annotation.kind:
                    reason = "its radiograph has boxes of another kind"
                elif annotation.single and taken.setdefault(image.radiograph, entry) is not entry:
                    reason = TAKEN
                if reason or image is None:
                    plan.lose(id_, entry, row.number, reason, ledgers)
                    continue
                ids.append(id_)
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


def _check_columns(found: Recognised, asked: Sequence[str], plan: BoxPlan) -> None:
    """Enter the columns that are left out. Raises PackError for a label that is asked for and not there."""
    there = set(plan.columns)
    if "csv" in plan.format:
        for table in found.whole if plan.whole else (t for t in found.tables if t.place):
            plan.dropped_columns += table.dropped(asked)
            there |= set(table.others())
    missing = set(asked) - there - OF_TEETH
    if missing and plan.boxes:
        named = f"there are {', '.join(sorted(there))}" if there else "the boxes have none"
        raise PackError(f"no label {', '.join(sorted(missing))}: {named}")


def _close(
    plan: BoxPlan,
    images: Iterable[Entry],
    sought: Inventory,
    inventories: Iterable[Inventory],
    found: Recognised,
    ledgers: Ledgers,
) -> None:
    """Reject the radiographs without boxes, and the annotations that were not gone through."""
    for image in images:
        if image.radiograph not in plan.boxes:
            ledgers.reject("radiographs", image.radiograph, plan.boxless)
    known = {annotation.entry.file for annotations in found.boxes.values() for annotation in annotations}
    known |= {text.entry.file for text in [*found.lists, *(table.text for table in found.whole)]}
    tables = {table.text.entry.file for table in found.tables}
    looked_at = {text.entry.file for text in sought.texts}
    for inventory in inventories:
        for text in inventory.texts:
            file = text.entry.file
            if file in plan.files:
                continue
            if file in known:
                reason = f"annotations of another kind than {plan.format}"
            elif file in tables:
                reason = "a table of images without a label column that is kept, or with boxes in unknown columns"
            elif text.text.strip() and text.suffix in (".csv", ".tsv"):
                reason = NO_IMAGE_COLUMN if file in looked_at else NOT_ASKED
            elif text.text.strip():
                reason = NEITHER if file in looked_at else NOT_ASKED
            else:
                reason = "an empty file"
            ledgers.reject("files", file, reason)
        for masked in inventory.masks:
            if masked.entry.file not in plan.files:
                reason = f"a mask, and the boxes are of another kind ({plan.format})"
                ledgers.reject("files", masked.entry.file, masked.mask.reason or reason)
