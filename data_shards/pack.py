"""Archives of radiographs into shards of tooth crops.

Two passes: the first lists every file and reads the annotations, the second streams the radiographs through decode,
crop and encode into one spool file beside the output. Shards are then copied together in the order of ids, so their
bytes depend neither on the number of workers nor on the order of files.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_shards.boxes import BoxPlan
from data_shards.config import PackConfig, check, recorded
from data_shards.convert import Converted, Job, convert
from data_shards.errors import MemberError, PackError
from data_shards.folder import Chunk
from data_shards.given import given_annotations
from data_shards.ids import Key, load_key, remember
from data_shards.inventory import Entry, Inventory, take_inventory
from data_shards.ledger import Ledgers
from data_shards.member import Member
from data_shards.parallel import spread
from data_shards.planning import plan_boxes
from data_shards.settle import settle, write_parts
from data_shards.shard_set import MANIFEST, ShardSet
from data_shards.shares import source_id, source_shares
from data_shards.sources import Source, open_sources

__all__ = ["PackConfig", "pack"]


def pack(config: PackConfig) -> dict[str, Any]:
    """Make the shard folder `config.out` and return its manifest. Raises PackError, and then leaves nothing behind.

    The folder appears under its name only when it is finished; until then it is `.<name>.packing` beside it.
    """
    out = Path(config.out)
    pattern = check(config)
    say: Callable[[str], None] = (lambda line: None) if config.quiet else print
    key, made = load_key(config.key)
    if made:
        say(f"made a new key for ids, {made}; keep it: with another, patients get other ids")
    sources = open_sources(config.sources, config.spool_gb)
    ledgers = Ledgers()
    inventory = _inventory(sources, key, ledgers, config)
    given = given_annotations(str(config.boxes), sources, inventory, key, ledgers, config.spool_gb)
    plan = plan_boxes(str(config.boxes), inventory, given, config.labels, key, ledgers)
    say(f"boxes: {plan.format} ({plan.why})")
    if plan.whole:
        say("warning: whole images are taken as crops; text burnt into their borders would enter the shards")
    if plan.dropped_columns:
        say(f"columns left out, as they may hold names: {', '.join(plan.dropped_columns)} (keep one with --labels)")
    patients = _patients(pattern, inventory.images, key, ledgers)
    if pattern is not None:
        say(f"patients: {len({p for p, _ in patients.values()})} of {len(patients)} radiographs, by --patient")
    else:
        say("patients: no --patient given, so each radiograph counts as one patient")
    earlier = _earlier(config.against, key)
    with _unfinished(out) as folder:
        spool = folder / "spool"
        done, chunks = _convert_all(config, sources, inventory.images, plan, patients, key, ledgers, spool)
        settle(done, plan, earlier, inventory.images, ledgers)
        entries = [*inventory.entries(), *given.entries()]
        shares = source_shares(sources, entries, done, ledgers, key)
        manifest = write_parts(folder, done, chunks, spool, recorded(config, plan.format), key, ledgers, shares)
        spool.unlink()
        if key.table is not None:
            remember(key.table, ((source_id(key, source), "source", str(source.path.resolve())) for source in sources))
            remember(key.table, _table(sources, entries, plan, patients))
        _finish(folder, out)
    return manifest


def _inventory(sources: list[Source], key: Key, ledgers: Ledgers, config: PackConfig) -> Inventory:
    with tqdm(desc="listing", unit=" files", disable=config.quiet) as bar:

        def watched(members: Iterable[Member]) -> Iterator[Member]:
            for member in members:
                bar.update()
                yield member

        return take_inventory(((n, s, watched(s.members())) for n, s in enumerate(sources)), key, ledgers)


def _patients(
    pattern: re.Pattern[str] | None, images: Sequence[Entry], key: Key, ledgers: Ledgers
) -> dict[str, tuple[str, str]]:
    """Patient id and what it was made from, by radiograph id."""
    patients = {}
    for image in images:
        if pattern is None:
            name = image.name
        elif match := pattern.search(image.name):
            name = match[1] if pattern.groups and match[1] is not None else match[0]
        else:
            ledgers.reject("radiographs", image.radiograph, "no patient in its name: --patient does not match")
            continue
        patients[image.radiograph] = (key.id("patient", name), name)
    return patients


def _earlier(folders: Sequence[str | Path], key: Key) -> dict[str, str]:
    """Radiograph ids by fingerprint, of earlier packs and their holdouts."""
    known: dict[str, str] = {}
    for folder in map(Path, folders):
        for part in [folder, *([folder / "holdout"] if (folder / "holdout" / MANIFEST).exists() else [])]:
            samples = ShardSet(part)
            if samples.manifest.get("key") != key.check():
                raise PackError(f"{part} was packed with another key, so its radiographs cannot be compared: use --key")
            for i in range(len(samples)):
                meta = samples.meta(i)
                known[meta["pixels"]] = meta["radiograph"]
    return known


def _convert_all(
    config: PackConfig,
    sources: list[Source],
    images: Sequence[Entry],
    plan: BoxPlan,
    patients: dict[str, tuple[str, str]],
    key: Key,
    ledgers: Ledgers,
    spool: Path,
) -> tuple[list[Converted], dict[str, Chunk]]:
    """Convert every radiograph that has boxes. Their tar members go to `spool`, their facts (without) are returned."""
    wanted = [e for e in images if ledgers.is_used("radiographs", e.radiograph)]
    work = partial(convert, key=key, pixel_aspect=config.pixel_aspect, margin=config.margin, min_side=config.min_side)
    done: list[Converted] = []
    chunks: dict[str, Chunk] = {}
    jobs = _jobs(sources, wanted, plan, patients, ledgers)
    with spool.open("wb") as file, tqdm(total=len(wanted), desc="packing", unit=" images", disable=config.quiet) as bar:
        for converted in spread(work, jobs, config.workers):
            chunks[converted.radiograph] = Chunk(file.tell(), len(converted.chunk), converted.samples)
            file.write(converted.chunk)
            converted.chunk = b""
            done.append(converted)
            bar.update()
    return sorted(done, key=lambda c: c.radiograph), chunks


def _jobs(
    sources: list[Source],
    images: Sequence[Entry],
    plan: BoxPlan,
    patients: dict[str, tuple[str, str]],
    ledgers: Ledgers,
) -> Iterator[Job]:
    """The radiographs' bytes, read in the order in which they lie in their sources."""
    for number, source in enumerate(sources):
        wanted = {e.name: e for e in images if e.source == number}
        try:
            for member in source.members() if wanted else ():
                entry = wanted.pop(source.name_of(member.name), None)
                if entry is None:
                    continue
                try:
                    raw = member.read()
                except MemberError as error:
                    ledgers.reject("radiographs", entry.radiograph, str(error))
                    continue
                boxes = tuple(plan.boxes[entry.radiograph])
                yield Job(entry.radiograph, entry.file, patients[entry.radiograph][0], raw, boxes)
        except MemberError as error:  # the archive ended early in this pass as in the first
            for entry in wanted.values():
                ledgers.reject("radiographs", entry.radiograph, str(error))
            continue
        for entry in wanted.values():
            ledgers.reject("radiographs", entry.radiograph, "it vanished from its source while packing")


def _table(
    sources: list[Source], entries: Iterable[Entry], plan: BoxPlan, patients: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:
    """(id, kind, path) of every input, for the table beside the key."""

    def place(entry: Entry) -> str:
        source = sources[entry.source]
        path = source.path.resolve()
        inner = entry.name.removeprefix(f"{source.label}/")
        return str(path) if path.is_file() and inner == path.name else f"{path}/{inner}"

    for id_, entry, row in plan.lost:
        yield id_, "box", f"{place(entry)} (its row {row})"
    for entry in entries:
        where = place(entry)
        yield entry.file, "file", where
        if entry.radiograph in patients:
            yield entry.radiograph, "radiograph", where
            yield patients[entry.radiograph][0], "patient", patients[entry.radiograph][1]
        for number, box in enumerate(plan.boxes.get(entry.radiograph, []), 1):
            yield box.id, "box", f"{where} (its box {number})"


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in: locked while in use, removed on failure, renamed to `out` by `_finish`."""
    folder = out.absolute().parent / f".{out.absolute().name}.packing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise PackError(f"cannot write beside {out} ({error.strerror}): name another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PackError(f"another pack is writing {out}: wait for it, or name another --out") from None
        try:
            for left in folder.iterdir():  # of a pack that was killed
                if left.name != "lock":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
        except OSError as error:
            raise PackError(
                f"cannot write {folder} ({error.strerror}): free some space, or name another --out"
            ) from None
        finally:
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)


def _finish(folder: Path, out: Path) -> None:
    """Bring everything to the disk, then give the folder its name: what has the name is whole."""
    (folder / "lock").unlink()
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    folder.replace(out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
