"""The second pass over the sources: the radiographs that have boxes, with all that their conversion depends on."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence

from data_shards.annotations.boxes import BoxPlan
from data_shards.annotations.table_patients import TWO_PATIENTS, TablePatients
from data_shards.errors import MemberError
from data_shards.ledger import Ledgers
from data_shards.pack.crop_job import Job, Settings
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry
from data_shards.sources.member import Member
from data_shards.sources.source import Source

CONVERSION = 4
"""Version of `convert`: raised whenever it makes other bytes of the same job, so that old ones are not continued."""


_VERSION = re.compile(r"\.rf\.[0-9A-Za-z]{20,}\.\w+$")
"""What Roboflow puts behind a name: augmented versions of one radiograph differ in this alone."""


def patients_of(
    pattern: re.Pattern[str] | None, tables: TablePatients, images: Sequence[Entry], key: Key, ledgers: Ledgers
) -> dict[str, tuple[str, str]]:
    """Return the patient's id and what it was made from, by radiograph id.

    The pattern decides, else tables (whose texts stay out of the second), else each radiograph is a patient, with its
    augmented versions.
    """
    patients = {}
    for image in images:
        if pattern is None and image.radiograph in tables.torn:
            ledgers.reject("radiographs", image.radiograph, TWO_PATIENTS)
            continue
        if pattern is None and (stated := tables.names.get(image.radiograph)):
            patients[image.radiograph] = (key.id("patient", "dicom", stated), "")  # as if a header stated it
            continue
        if pattern is None:
            name = _VERSION.sub("", image.name)
        elif match := pattern.search(image.name):
            name = match[1] if pattern.groups and match[1] is not None else match[0]
        else:
            ledgers.reject("radiographs", image.radiograph, "no patient in its name: --patient does not match")
            continue
        patients[image.radiograph] = (key.id("patient", name), name)
    return patients


def radiographs_in(
    sources: Sequence[Source], images: Sequence[Entry], ledgers: Ledgers
) -> Iterator[tuple[Entry, Member]]:
    """The members of these images in the order in which they lie in their sources; others are not read.

    What cannot be reached any more is rejected.
    """
    for number, source in enumerate(sources):
        wanted = {e.name: e for e in images if e.source == number}
        try:
            for member in source.members() if wanted else ():
                entry = wanted.pop(source.name_of(member.name), None)
                if entry is not None:
                    yield entry, member
        except MemberError as error:  # the archive ended early in this pass as in the first
            for entry in wanted.values():
                ledgers.reject("radiographs", entry.radiograph, str(error))
            continue
        for entry in wanted.values():
            ledgers.reject("radiographs", entry.radiograph, "it vanished from its source while packing")


def digest_of(entry: Entry, member: Member, patient: str, plan: BoxPlan, key: Key, settings: Settings) -> str:
    """What tells whether a conversion kept from before is still the one wanted (SHA-256, hex).

    Of the version, the settings, the key, the boxes and the member's stamp, which changes with its content.
    """
    boxes = list(plan.boxes[entry.radiograph])
    parts = [CONVERSION, settings, key.check(), entry.file, entry.radiograph, patient, plan.whole, member.stamp, boxes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def job_of(entry: Entry, member: Member, digest: str, patient: str, plan: BoxPlan) -> Job:
    """The job of a member, its bytes read. Raises MemberError."""
    boxes = tuple(plan.boxes[entry.radiograph])
    stated = entry.radiograph in plan.patients.names
    return Job(digest, entry.radiograph, entry.file, patient, member.read(), boxes, plan.whole, stated)
