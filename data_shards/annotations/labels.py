"""What is known of a tooth under stated names: `fdi`, `tooth_type`, `position`, and the source's own columns."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from data_shards.dental_terms import is_dental
from data_shards.shards.schema import RESERVED

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
"""Columns of a table that travel along unasked, as far as their texts are dental terms (`dental_terms`). Any other may
hold a name or a date and must be asked for."""

ATTRIBUTES = {
    **dict.fromkeys(("fdi_number", "fdi_code", "fdi_notation", "fdi_id", "tooth_fdi", "fdi_label"), "fdi"),
    **dict.fromkeys(("tooth_number", "tooth_no", "tooth_nr", "tooth_id", "toothnumber"), "tooth"),
}
"""Other names of attributes that hold a known label."""

OF_TEETH = frozenset(("fdi", "tooth_type", "position", "primary_tooth"))
"""Labels that follow from a tooth's number, whatever told it."""


_FDI = re.compile(r"(?<!\d)([1-4][1-8]|[5-8][1-5])(?!\d)")
_NUMBER = re.compile(r"(\d+)(?:\.0+)?")  # a column of numbers that lacks one is of floats
_GRADED = re.compile(
    r"grade|stage|degree|level|score|icdas|pai|severity|%|[0-9][.,][1-9]|\b(?:[DE]|K0)\d", re.IGNORECASE
)
_TOOTH_COLUMNS = ("fdi", "tooth", "class", "label")
"""Columns that may hold a tooth's number, in the order of trust."""
_LONGEST = 64  # a label is a category; anything longer is prose


def tooth_labels(fdi: int) -> dict[str, str | int]:
    """What follows from an FDI number. Of a permanent tooth, 11 to 48: `fdi`, `tooth_type`, and `position`, the number
    with left folded onto right. Of a primary tooth, 51 to 85: `primary_tooth` alone, as it is none of those classes.

    Positions are 11 to 18 in the upper and 41 to 48 in the lower jaw: 16 classes that a mirror does not change.
    """
    quadrant, place = divmod(fdi, 10)
    if quadrant > 4:
        return {"primary_tooth": fdi}
    return {"fdi": fdi, "tooth_type": TOOTH_TYPES[place], "position": {1: 10, 2: 10, 3: 40, 4: 40}[quadrant] + place}


def tooth_in(text: str) -> int | None:
    """The one FDI number in a text such as `11`, `tooth_36`, `FDI 48` or `55` (a primary tooth); of a grade, None."""
    found = set() if _GRADED.search(text) else set(_FDI.findall(text))
    return int(found.pop()) if len(found) == 1 else None


@dataclass
class Withheld:
    """What stays behind of a column: so many different texts, of so many boxes, the first of them at a place."""

    texts: int
    boxes: int
    first: str


def column_name(text: str) -> str:
    """Return the name under which a column or attribute is known: `Image Name` is `image_name`."""
    return "_".join(text.lower().replace("-", " ").split())


def labels_from(name: object, attributes: Mapping[str, object], asked: Collection[str]) -> dict[str, str | int]:
    """Return an object's labels: its name as `class`, and those of its attributes that are known or `asked`.

    An attribute may be a text, a number, a truth value, a list, or an object of truth values (boxes that are ticked).
    """
    labels: dict[str, str | int] = {}
    if isinstance(name, str | int) and str(name).strip():
        labels["class"] = str(name).strip()
    for key, value in attributes.items():
        column = column_name(key)
        column = ATTRIBUTES.get(column, column)
        if (column in KNOWN_COLUMNS or column in asked) and column not in RESERVED and (said := _as_text(value)):
            labels.setdefault(column, said)
    return labels


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict):
        return ", ".join(str(key) for key, ticked in value.items() if ticked in (True, "true"))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).strip() if isinstance(value, str | int | float) else ""


class LabelList:
    """Labels of one list of classes or one table: each kept once, however many boxes have it.

    The values that a source gives are texts; a class's number without its name is an int, and is no tooth's.
    """

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self._listed = frozenset(listed)
        self._kept: dict[tuple[tuple[str, str | int], ...], dict[str, str | int]] = {}
        self._boxes = Counter[tuple[tuple[str, str | int], ...]]()
        self._first: dict[tuple[tuple[str, str | int], ...], str] = {}
        self._toothless: list[tuple[str, tuple[tuple[str, str | int], ...]]] = []

    def of(self, labels: Mapping[str, str | int], place: str = "") -> dict[str, str | int]:
        """These labels, of a box at a `place` (file and row), as an object that all boxes with them share."""
        key = tuple(labels.items())
        if key not in self._kept:
            self._kept[key] = {k: v[:_LONGEST] if isinstance(v, str) else v for k, v in key}
            self._first[key] = place
        self._boxes[key] += 1
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def columns(self) -> set[str]:
        """Names of all labels in the list."""
        return {column for key in self._kept for column, _ in key}

    def name_teeth(self, vouched: Collection[str]) -> None:
        """Add to all what their texts say of teeth, once everything in the list has been seen.

        Only texts that may stay say anything: of a date, the month would be a tooth.
        """
        kept = self._kept.values()
        columns = [c for c in _TOOTH_COLUMNS if c == "fdi" or _counts_teeth(c, kept, self._listed)]
        for key, labels in self._kept.items():
            texts = ((c, v) for c in columns if isinstance(v := labels.get(c), str))
            teeth = (tooth_in(v) for c, v in texts if c in vouched or is_dental(v))
            tooth = next((t for t in teeth if t is not None), None)
            if (stated := labels.pop("fdi", None)) is not None and tooth is None:
                self._toothless.append((str(stated), key))  # it stays only as the number of a permanent tooth
            labels.update(tooth_labels(tooth) if tooth else {})

    def withhold(self, vouched: Collection[str]) -> dict[str, Withheld]:
        """Take out what may name somebody: all texts and numbers that are no dental terms.

        Columns `vouched` for keep theirs. Returns what was taken out, by column, and with it what `fdi` said that is no
        tooth.
        """
        withheld: dict[str, Withheld] = {}
        texts: set[tuple[str, str]] = set()

        def count(column: str, text: str, key: tuple[tuple[str, str | int], ...]) -> None:
            found = withheld.setdefault(column, Withheld(0, 0, self._first[key]))
            found.texts += (column, text) not in texts
            found.boxes += self._boxes[key]
            texts.add((column, text))

        for text, key in self._toothless:
            count("fdi", text, key)
        for key, labels in self._kept.items():
            for column in labels.keys() - set(vouched):
                if not is_dental(text := str(labels[column])):
                    del labels[column]
                    count(column, text, key)
            labels.update({k: str(v) for k, v in labels.items() if k not in OF_TEETH})
        return withheld


def _counts_teeth(column: str, kept: Iterable[Mapping[str, str | int]], listed: Iterable[str]) -> bool:
    """Whether numbers in a column are FDI numbers: the one number of each text, unless it is a grade, is a tooth's.

    Else a list that counts to 32 would have its 11 taken for an incisor.
    """
    texts = {v for labels in kept if isinstance(v := labels.get(column), str)}
    found = [_NUMBER.findall(text) for text in (*texts, *listed) if not _GRADED.search(text)]
    numbers = [each[0] for each in found if len(each) == 1]
    return all(_FDI.fullmatch(number) or int(number) == 0 for number in numbers)  # 0: background
