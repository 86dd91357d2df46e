"""Whose a radiograph is, by a column of the tables that name radiographs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from data_shards.annotations.formats.csv_table import Table
from data_shards.annotations.image_matcher import ImageFinder
from data_shards.annotations.labels import column_name
from data_shards.decode.dicom_header import NOBODY
from data_shards.errors import PackError
from data_shards.sources.inventory import Entry

PATIENT_COLUMNS = (
    *("patient", "patientid", "patientidentifier", "patientno", "patientnr", "patientnumber", "patientcode"),
    *("patientkey", "patientuid", "patientname", "pid", "patid", "patno", "patnr", "pat", "patients", "pseudonym"),
    *("subject", "subjectid", "subjectno", "subjectnumber", "subjectcode", "subjectname", "participant"),
    *("participantid", "person", "personid", "individual", "individualid", "case", "caseid", "caseno", "casenumber"),
    *("casename", "casecode"),
)
"""Names of a column that says whose an image is, in small letters and digits alone; the first that a table has."""
TWO_PATIENTS = "its table names two patients for it: correct the table"


@dataclass
class TablePatients:
    """Patients by radiograph id, as the tables name them; `torn` are radiographs of which they name two.

    `columns` are the columns that name them, and `files` the ids of their tables.
    """

    names: dict[str, str] = field(default_factory=dict)
    torn: set[str] = field(default_factory=set)
    columns: dict[str, None] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


def patient_column(columns: Sequence[str], asked: str | None) -> str:
    """Return the column that names patients: the `asked` one, else the first known; empty where there is none."""
    if asked is not None:
        return next((c for c in columns if _plain(c) == _plain(asked)), "")
    by_name = {_plain(column): column for column in reversed(columns)}
    return next((by_name[name] for name in PATIENT_COLUMNS if name in by_name), "")


def table_patients(tables: Iterable[Table], finder: ImageFinder, asked: str | None) -> TablePatients:
    """Return the patients that tables name. Raise PackError where no table has the column that is `asked` for."""
    found, there = TablePatients(), dict[str, None]()
    named: dict[str, dict[str, str]] = {}
    for table in tables:
        there.update(dict.fromkeys(table.columns))
        column = patient_column([c for c in table.columns if c != table.image], asked)
        if column:
            found.columns[column] = None
            _enter(table, column, finder, named.setdefault(_plain(column), {}), found)
    if asked is not None and not found.columns:
        has = f"the tables have {', '.join(c for c in there if c)}" if there else "there is no table that names images"
        raise PackError(f"--patient-column {asked}: no table has such a column ({has}). Name one that is there.")
    for column in sorted(named, key=PATIENT_COLUMNS.index) if asked is None else named:
        _add(found.names, named[column], column)
    return found


def _enter(table: Table, column: str, finder: ImageFinder, names: dict[str, str], found: TablePatients) -> None:
    """Enter what a column of a table names into `names`, by radiograph id."""
    images: dict[str, Entry | None] = {}
    for row in table.rows():
        name, called = patient_name(row.get(column) or ""), row.get(table.image) or ""
        if name and called not in images:
            images[called] = finder.named(called, table.text.entry)
        image = images[called] if name else None
        if image is None:
            continue
        found.files.add(table.text.entry.file)
        if names.setdefault(image.radiograph, name) != name:
            found.torn.add(image.radiograph)


def _add(names: dict[str, str], further: dict[str, str], column: str) -> None:
    """Add what a less certain column says of radiographs without a patient, such as the case that they are of.

    A case is one patient's. A column in which one name stands for several patients counts something else.
    """
    patients: dict[str, set[str]] = {}
    for radiograph, name in further.items():
        if radiograph in names:
            patients.setdefault(name, set()).add(names[radiograph])
    if any(len(several) > 1 for several in patients.values()):
        return
    first = not names
    for radiograph, name in further.items():
        known = next(iter(patients.get(name, ())), name if first else f"{column} {name}")
        names.setdefault(radiograph, known)


def patient_name(text: str) -> str:
    """Return a patient's name or number in small letters and digits alone, as a DICOM header's: `A-1` is `a1`.

    Spreadsheets write whole numbers as `7.0` in a column that lacks some. Words for an unknown patient give nothing.
    """
    text = text.strip()
    text = text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text
    plain = _plain(text)
    return "" if plain == "nan" or plain in NOBODY else plain


def _plain(name: str) -> str:
    return "".join(character for character in column_name(name) if character.isalnum())
