"""What a plan of boxes leaves out: columns, radiographs and files, each with its reason."""

from collections.abc import Iterable, Sequence

from data_shards.annotations.boxes import BoxPlan
from data_shards.annotations.detect import Recognised
from data_shards.annotations.labels import OF_TEETH
from data_shards.errors import PackError
from data_shards.ledger import Ledgers
from data_shards.sources.inventory import NEITHER, Entry, Inventory

NOT_ASKED = "left, as --boxes names other annotations"
NO_IMAGE_COLUMN = "a table without a column that names images, such as `image` or `file_name`"


def add_notes(plan: BoxPlan, images: Sequence[Entry]) -> None:
    """Say which radiographs are left out, and what became of rotated boxes."""
    left = sum(image.radiograph not in plan.boxes for image in images)
    if left and plan.boxes and not plan.whole:
        plan.notes.append(
            f"warning: {left} of {len(images)} radiographs have no boxes and are left out; --boxes none takes every "
            "radiograph as a whole image"
        )
    if plan.turned:
        plan.notes.append(f"{plan.turned} rotated boxes are taken as their bounding rectangles")


def check_columns(found: Recognised, asked: Sequence[str], plan: BoxPlan) -> None:
    """Enter the columns that are left out. Raises PackError for a label that is asked for and not there."""
    there = set(plan.columns)
    if "csv" in plan.format:
        for table in found.whole if plan.whole else (t for t in found.tables if t.place):
            plan.dropped_columns += [c for c in table.dropped(asked) if c not in plan.patients.columns]
            there |= set(table.others())
    missing = set(asked) - there - OF_TEETH
    if missing and plan.boxes:
        named = f"there are {', '.join(sorted(there))}" if there else "the boxes have none"
        raise PackError(f"no label {', '.join(sorted(missing))}: {named}")


def close(
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
    unread = {text.entry.file: name for text, name, _ in found.unread}
    looked_at = {text.entry.file for text in sought.texts}
    for inventory in inventories:
        for text in inventory.texts:
            file = text.entry.file
            if file in plan.files or file in plan.patients.files:
                continue
            if file in known:
                reason = f"annotations of another kind than {plan.format}"
            elif file in unread:
                reason = f"annotations in a format that is not read: {unread[file]}"
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
                other = f"a mask, and the boxes are of another kind ({plan.format})"
                reason = found.left.get(masked.entry.file, other)
                ledgers.reject("files", masked.entry.file, masked.mask.reason or reason)
