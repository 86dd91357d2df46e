"""What is known of a tooth under stated names: `fdi`, `tooth_type`, `position`, and the source's own columns."""

import re
from collections.abc import Iterable, Mapping

TOOTH_TYPES = {
    1: "incisor",
    2: "incisor",
    3: "canine",
    4: "premolar",
    5: "premolar",
    6: "molar",
    7: "molar",
    8: "molar",
}
"""Kind of tooth by the second digit of its FDI number (ISO 3950, permanent teeth)."""

KNOWN_COLUMNS = frozenset(
    (
        *("fdi", "tooth", "tooth_type", "position", "quadrant", "jaw", "side"),
        *("class", "label", "category", "finding", "findings", "diagnosis", "pathology", "severity", "grade"),
        *("caries", "filling", "restoration", "crown", "implant", "root_canal", "endodontic", "lesion"),
        *("periapical_lesion", "bone_loss", "impacted", "icdas", "pai"),
    )
)
"""Columns of a table that travel along unasked. Any other may hold a name or a date and must be asked for."""

RESERVED = frozenset(
    ("id", "patient", "source", "radiograph", "pixels", "box", "pixel_aspect", "bits", "width", "height")
)
"""Fields of a sample that no label may overwrite."""

_FDI = re.compile(r"(?<!\d)([1-4][1-8])(?!\d)")
_LONGEST = 64  # a label is a category; anything longer is prose


def tooth_labels(fdi: int) -> dict[str, str | int]:
    """`fdi` 11 to 48 with what follows from it: `tooth_type`, and `position`, the number with left folded onto right.

    Positions are 11 to 18 in the upper and 41 to 48 in the lower jaw: 16 classes that a mirror does not change.
    """
    quadrant, place = divmod(fdi, 10)
    return {"fdi": fdi, "tooth_type": TOOTH_TYPES[place], "position": {1: 10, 2: 10, 3: 40, 4: 40}[quadrant] + place}


def fdi_in(text: str) -> int | None:
    """The one FDI number of a permanent tooth (11 to 48) in a text such as `11`, `tooth_36` or `FDI 48`; else None."""
    found = set(_FDI.findall(text))
    return int(found.pop()) if len(found) == 1 else None


def labels_of_class(name: str) -> dict[str, str | int]:
    """Labels of a detection class: its name as `class`, and the tooth's where the name is an FDI number."""
    fdi = fdi_in(name)
    labels: dict[str, str | int] = {"class": name[:_LONGEST]}
    return labels if fdi is None else labels | tooth_labels(fdi)


def bare_class(number: int) -> dict[str, str | int]:
    """Labels of a class without a name: its number, which must not be taken for a tooth's."""
    return {"class": str(number)}


def labels_of_row(row: Mapping[str, str], kept: Iterable[str]) -> dict[str, str | int]:
    """Labels of a table's row: the `kept` columns that are filled, and what an FDI number in them says of the tooth."""
    labels: dict[str, str | int] = {c: row[c].strip()[:_LONGEST] for c in kept if (row.get(c) or "").strip()}
    for column in ("fdi", "tooth", "class", "label"):
        fdi = fdi_in(str(labels.get(column, "")))
        if fdi is not None:
            return {**labels, **tooth_labels(fdi)}
    labels.pop("fdi", None)  # not a permanent tooth's number, so not under that name
    return labels
