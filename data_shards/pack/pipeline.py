"""Archives of radiographs into shards of tooth crops.

Two passes: the first lists every file and reads the annotations, the second streams the radiographs through decode,
crop and encode into one spool file beside the output. Shards are then copied together in the order of ids, so their
bytes depend neither on the number of workers nor on the order of files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.annotations.box_plan import plan_boxes
from data_shards.annotations.boxes import BoxPlan
from data_shards.annotations.choices import Choices
from data_shards.annotations.external import given_annotations
from data_shards.annotations.masks.search import take_inventory
from data_shards.errors import MemberError
from data_shards.ledger import Ledgers
from data_shards.pack.config import PackConfig, check, conversion, recorded, within
from data_shards.pack.crop_job import Converted, Job, convert
from data_shards.pack.duplicates import read_earlier
from data_shards.pack.finalize import settle, write_parts
from data_shards.pack.jobs import digest_of, job_of, patients_of, radiographs_in
from data_shards.pack.resume_log import Chunk, Journal
from data_shards.pack.source_counts import source_id, source_shares
from data_shards.pack.work_dir import finish, fresh, unfinished, was_finishing, working_folder
from data_shards.pack.workers import spread
from data_shards.progress import progress
from data_shards.pseudonyms import Key, load_key, remember
from data_shards.shards.manifest import MANIFEST, read_manifest
from data_shards.shards.schema import RESERVED
from data_shards.sources.inventory import Entry, Inventory
from data_shards.sources.member import Member
from data_shards.sources.source import Source, open_sources
from tooth_foundations.core.text import counted, printable

__all__ = ["PackConfig", "pack"]


def pack(config: PackConfig) -> dict[str, Any]:
    """Make the shard folder `config.out` and return its manifest. Raises PackError.

    The folder appears under its name only when it is finished. Until then `.<name>.packing` beside it keeps what is
    converted, and the same pack continues from there.
    """
    out = Path(config.out)
    say: Callable[[str], None] = (lambda line: None) if config.quiet else lambda line: print(printable(line))
    if (out / MANIFEST).exists() and was_finishing(out):
        say(f"{out} is finished: an earlier pack was killed in its last moment, and nothing is packed now")
        return read_manifest(out)
    pattern = check(config)
    key, made = load_key(config.key)
    if made:
        say(f"made a new key for ids, {made}; keep it: with another, patients get other ids")
    own = [out, working_folder(out), *([Path(config.key)] if isinstance(config.key, str | Path) else [])]
    sources = open_sources(config.sources, config.spool_gb, [*own, *([key.table] if key.table else [])])
    ledgers = Ledgers()
    inventory = _inventory(sources, key, ledgers, config)
    given = given_annotations(str(config.boxes), sources, inventory, key, ledgers, config.spool_gb)
    choices = Choices(str(config.boxes), config.labels, config.patient_column, config.masks)
    plan = plan_boxes(choices, inventory, given, key, ledgers)
    say("\n".join([f"boxes: {plan.format} ({plan.why})", *plan.notes]))
    if plan.whole:
        say("warning: whole images are taken as crops; text burnt into their borders would enter the shards")
    if plan.dropped_columns:
        columns = [column for column in plan.dropped_columns if column not in RESERVED]
        ours = [column for column in plan.dropped_columns if column in RESERVED]
        if columns:
            say(f"columns left out, as they may hold names: {', '.join(columns)} (keep one with --labels)")
        if ours:
            say(f"columns left out, as samples have fields of these names: {', '.join(ours)}")
    for label, left in sorted(plan.withheld.items()):
        texts, boxes = counted(left.texts, "text"), counted(left.boxes, "box", "boxes")
        if label == "fdi":
            say(f"label withheld: {texts} of `fdi` ({boxes}) say no tooth of ISO 3950, the first in {left.first}")
            continue
        say(
            f"label withheld: {texts} of `{label}` ({boxes}) may name somebody, being no dental terms, the first in "
            f"{left.first}; if not, --labels {label} lets them through"
        )
    patients = patients_of(pattern, plan.patients, inventory.images, key, ledgers)
    if pattern is not None:
        told = len({patient for patient, _ in patients.values()})
        say(f"patients: {told} of {len(inventory.images)} radiographs, by --patient")
        strangers = [image.name for image in inventory.images if image.radiograph not in patients]
        if strangers:
            more = f", nor of {counted(len(strangers) - 1, 'other')}" if len(strangers) > 1 else ""
            say(f"--patient {config.patient} matches no part of {strangers[0]}{more}")
    elif plan.patients.names:
        say(
            f"patients: {len(plan.patients.names)} of {len(inventory.images)} radiographs, by the column "
            f"{', '.join(plan.patients.columns)} of a table; any other counts as one patient (DICOM: by the header)"
        )
    else:
        say(
            "patients: no --patient given, so each radiograph counts as one patient (DICOM: by the header's patient id)"
        )
    if config.near_bits is None and plan.whole:
        say("near duplicates are not sought among crops, as neighbouring teeth look alike (--near-bits seeks them)")
    earlier = read_earlier(config.against, key, config.quiet)
    near = within(config, plan.whole)
    for folder in earlier.unhashed if near is not None else []:
        say(f"near duplicates of {folder} cannot be found: it was packed without seeking them, so it has no hashes")
    with unfinished(out) as folder, closing(Journal(folder)) as journal:
        if len(journal):
            say(f"continuing: {len(journal)} files are converted already")
        done, chunks = _convert_all(config, sources, inventory.images, plan, patients, key, ledgers, journal)
        settled = settle(done, plan, earlier, inventory.images, near, config.drop_near, ledgers)
        if clipped := sum(frame.full_range for frame in settled.frames):
            say(
                f"warning: the DICOM window of {counted(clipped, 'radiograph')} would make most of the image black or "
                "white, so the full range of gray is used instead (their samples have `window`: full range)"
            )
        others = sum(earlier.radiographs.get(f.radiograph, f.pixels) != f.pixels for f in settled.frames)
        if others:
            say(
                f"warning: {others} radiographs have the ids of others in an earlier pack, as their archives have one "
                "name: rename this one (2026-02.zip, say) and pack it again"
            )
        for one, other in settled.patients.torn:
            who = f"{one} and {other}, who are one patient, were" if one != other else f"patient {one} was"
            say(
                f"warning: {who} trained on in an earlier pack and held out in one, and new films are not held out: "
                "pack those sources anew, or leave that patient out of scores"
            )
        entries = [*inventory.entries(), *given.entries()]
        shares = source_shares(sources, entries, settled.frames, key)
        settings = recorded(config, plan.format, plan.whole, plan.withheld)
        made = fresh(folder)
        manifest = write_parts(made, settled, chunks, journal, settings, shares, key, ledgers, config.quiet)
        if key.table is not None:
            remember(key.table, ((source_id(key, source), "source", str(source.path.resolve())) for source in sources))
            remember(key.table, _table(sources, entries, plan, patients, done))
        finish(made, out)
    return manifest


def _inventory(sources: list[Source], key: Key, ledgers: Ledgers, config: PackConfig) -> Inventory:
    with progress(desc="listing", unit=" files", disable=config.quiet) as bar:

        def watched(members: Iterable[Member]) -> Iterator[Member]:
            for member in members:
                bar.update()
                yield member

        return take_inventory(((n, s, watched(s.members())) for n, s in enumerate(sources)), key, ledgers)


def _convert_all(
    config: PackConfig,
    sources: Sequence[Source],
    images: Sequence[Entry],
    plan: BoxPlan,
    patients: dict[str, tuple[str, str]],
    key: Key,
    ledgers: Ledgers,
    journal: Journal,
) -> tuple[list[Converted], dict[str, Chunk]]:
    """Convert every radiograph that has boxes, or take it from the journal; all is in the journal then.

    Returns what became of each file, by the id of its first radiograph, and where the members of each radiograph lie.
    """
    wanted = [e for e in images if ledgers.is_used("radiographs", e.radiograph)]
    settings = conversion(config, plan.whole)
    digests: list[str] = []

    def missing() -> Iterator[Job]:
        for entry, member in radiographs_in(sources, wanted, ledgers):
            patient = patients[entry.radiograph][0]
            digest = digest_of(entry, member, patient, plan, key, settings)
            if digest in journal:
                digests.append(digest)
                bar.update()
                continue
            try:
                job = job_of(entry, member, digest, patient, plan)
            except MemberError as error:
                ledgers.reject("radiographs", entry.radiograph, str(error))
                continue
            digests.append(digest)
            yield job

    work = partial(convert, key=key, settings=settings)
    with progress(total=len(wanted), desc="packing", unit=" images", disable=config.quiet) as bar:
        for converted in spread(work, missing(), config.workers, config.dask):
            journal.add(converted)
            bar.update()
    done: list[Converted] = []
    chunks: dict[str, Chunk] = {}
    for digest in digests:
        converted, places = journal[digest]
        done.append(converted)
        chunks.update(zip((frame.radiograph for frame in converted.frames), places, strict=True))
    return sorted(done, key=lambda one: one.radiograph), chunks


def _table(
    sources: Sequence[Source],
    entries: Iterable[Entry],
    plan: BoxPlan,
    patients: dict[str, tuple[str, str]],
    done: Sequence[Converted],
) -> Iterator[tuple[str, str, str]]:
    """(id, kind, path) of every input, for the table beside the key."""

    def place(entry: Entry) -> str:
        source = sources[entry.source]
        path = source.path.resolve()
        inner = entry.name.removeprefix(f"{source.label}/")
        return str(path) if path.is_file() and inner in ("", path.name) else f"{path}/{inner}"

    for id_, entry, row in plan.lost:
        yield id_, "box", f"{place(entry)} (its row {row})"
    frames = {one.radiograph: one.frames for one in done}
    for entry in entries:
        where = place(entry)
        yield entry.file, "file", where
        if entry.radiograph in patients:
            yield entry.radiograph, "radiograph", where
            id_, name = patients[entry.radiograph]
            yield id_, "patient", name or f"the one whose radiograph is {where}"
        for number, frame in enumerate(frames.get(entry.radiograph, [])):
            if frame.patient != patients[entry.radiograph][0]:  # of a header, which no file of ours repeats
                yield frame.patient, "patient", f"the one whose radiograph is {where}"
            if number:
                yield frame.radiograph, "radiograph", f"{where} (image {number + 1} in it)"
            for id_ in frame.boxes:
                yield id_, "box", f"{where} (image {number + 1} in it)"
        for number, box in enumerate(plan.boxes.get(entry.radiograph, []), 1):
            yield box.id, "box", f"{where} (its box {number})"
