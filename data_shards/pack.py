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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_shards.boxes import BoxPlan, plan_boxes
from data_shards.convert import PNG_LEVEL, Converted, Job, convert
from data_shards.crops import MARGIN, MIN_SIDE
from data_shards.errors import PackError
from data_shards.folder import Chunk
from data_shards.ids import Key, load_key, remember
from data_shards.inventory import Entry, Inventory, take_inventory
from data_shards.ledger import Ledgers
from data_shards.parallel import spread
from data_shards.settle import settle, write_parts
from data_shards.shard_set import MANIFEST, ShardSet
from data_shards.sources import Member, MemberError, Source, open_sources


@dataclass(frozen=True)
class PackConfig:
    """What to pack, and how."""

    sources: Sequence[str | Path]
    """Folders, zip or tar archives, or image files. Nothing is unpacked."""
    out: str | Path
    """The shard folder to make; it must not hold a finished pack."""
    boxes: str = "auto"
    """auto: look for a table, then for YOLO files, else take whole images, and say so; none: whole images; or a table,
    label file, folder or archive with the annotations. auto, because most archives carry their boxes."""
    patient: str | None = None
    """Regular expression on `archive/member`; its first group (or whole match) is the patient. Left out, each
    radiograph counts as one patient, since nothing in a file name says otherwise by itself."""
    pixel_aspect: float = 1.0
    """Displayed width of a stored pixel over its height. Crops are stretched so that their pixels are square; 1, as
    detectors have square pixels and only rescaled images do not."""
    workers: int = 1
    """Processes that decode, crop and encode. They do not change a byte. 1, so that a shared machine is asked first."""
    key: str | Path | bytes | None = None
    """File with the secret that ids are made with (made with mode 0600 if absent). Left out, the user's own key, so
    that one patient is one id across packs."""
    against: Sequence[str | Path] = ()
    """Earlier shard folders; radiographs with the same pixels are dropped. None, as the first pack has no other."""
    holdout: float = 0.0
    """Share of the patients, chosen by a hash of their ids, that goes to OUT/holdout. 0: a test set is asked for."""
    labels: Sequence[str] = ()
    """Columns of the table to keep as labels beside the known ones. None, as any other column may hold a name."""
    margin: float = MARGIN
    """Share of a box's sides added on each side. 0.05 takes in the periodontal ligament, which boxes leave out."""
    min_side: int = MIN_SIDE
    """Square pixels that a box must show on each side. Under 8 nothing of a tooth's structure is left."""
    shard_mb: float = 64.0
    """A shard's size in 10^6 bytes: big enough for one request to an object store, small enough to copy again."""
    shard_samples: int = 4096
    """A shard's most samples, so that small crops still make enough shards for many readers."""
    quiet: bool = False
    """Print nothing, draw no progress bar. False, since a pack may take hours."""


def pack(config: PackConfig) -> dict[str, Any]:
    """Make the shard folder `config.out` and return its manifest. Raises PackError, and then leaves nothing behind.

    The folder appears under its name only when it is finished; until then it is `.<name>.packing` beside it.
    """
    out = Path(config.out)
    pattern = _check(config, out)
    say: Callable[[str], None] = (lambda line: None) if config.quiet else print
    key, made = load_key(config.key)
    if made:
        say(f"made a new key for ids, {made}; keep it: with another, patients get other ids")
    sources = open_sources(config.sources)
    ledgers = Ledgers()
    inventory = _inventory(sources, key, ledgers, config)
    plan = _plan(config, inventory, key, ledgers)
    say(f"boxes: {plan.format} ({plan.why})")
    if plan.format == "none":
        say("warning: whole images are taken as crops; text burnt into their borders would enter the shards")
    if plan.dropped_columns:
        say(f"columns left out, as they may hold names: {', '.join(plan.dropped_columns)} (keep one with --labels)")
    patients = _patients(pattern, inventory.images, key, ledgers)
    if pattern is None:
        say("patients: no --patient given, so each radiograph counts as one patient")
    earlier = _earlier(config.against, key)
    with _unfinished(out) as folder:
        spool = folder / "spool"
        done, chunks = _convert_all(config, sources, inventory.images, plan, patients, key, ledgers, spool)
        settle(done, plan, earlier, inventory.images, ledgers)
        manifest = write_parts(folder, done, chunks, spool, _settings(config, plan), key, ledgers)
        spool.unlink()
        if key.table is not None:
            remember(key.table, _table(sources, inventory, plan, patients))
        _finish(folder, out)
    return manifest


def _check(config: PackConfig, out: Path) -> re.Pattern[str] | None:
    """Every setting that can be judged at once, before hours are spent. Returns the patient pattern."""
    if (out / MANIFEST).exists():
        raise PackError(f"{out} already holds a finished pack: name another --out, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists and is not an empty folder: name another --out, or remove it")
    if not config.sources:
        raise PackError("nothing to pack: name a folder, an archive or an image")
    if not 0.05 <= config.pixel_aspect <= 20:
        raise PackError(f"pixel aspect {config.pixel_aspect}: give width over height of a pixel, 0.05 to 20")
    if not 0 <= config.holdout < 1:
        raise PackError(f"holdout {config.holdout}: give the share of patients to hold out, from 0 to under 1")
    if config.workers < 1:
        raise PackError(f"{config.workers} workers: give at least 1")
    if config.margin < 0 or config.min_side < 1:
        raise PackError(f"margin {config.margin}, min_side {config.min_side}: give at least 0 and at least 1")
    if config.shard_mb <= 0 or config.shard_samples < 1:
        raise PackError(f"shard_mb {config.shard_mb}, shard_samples {config.shard_samples}: both must be above 0")
    try:
        return re.compile(config.patient) if config.patient else None
    except re.error as error:
        raise PackError(f"--patient {config.patient!r} is no regular expression ({error}): correct it") from None


def _settings(config: PackConfig, plan: BoxPlan) -> dict[str, Any]:
    """What the manifest says of the settings: all that shapes the shards, nothing that may hold a name."""
    return {
        "boxes": plan.format,
        "patients": "by pattern" if config.patient else "one per radiograph",
        "pixel_aspect": config.pixel_aspect,
        "margin": config.margin,
        "min_side": config.min_side,
        "holdout": config.holdout,
        "shard_mb": config.shard_mb,
        "shard_samples": config.shard_samples,
        "codec": f"png, level {PNG_LEVEL}",
        "polarity": "dense is bright, as stored in the sources",
    }


def _inventory(sources: list[Source], key: Key, ledgers: Ledgers, config: PackConfig) -> Inventory:
    with tqdm(desc="listing", unit=" files", disable=config.quiet) as bar:

        def watched(members: Iterable[Member]) -> Iterator[Member]:
            for member in members:
                bar.update()
                yield member

        return take_inventory(((n, s, watched(s.members())) for n, s in enumerate(sources)), key, ledgers)


def _plan(config: PackConfig, inventory: Inventory, key: Key, ledgers: Ledgers) -> BoxPlan:
    given = []
    if config.boxes not in ("auto", "none"):
        apart = take_inventory(((n, s, s.members()) for n, s in enumerate(open_sources([config.boxes]))), key, ledgers)
        given = apart.texts
        for image in apart.images:
            ledgers.reject("files", image.file, "an image beside the annotations: name it as a source")
            ledgers.reject("radiographs", image.radiograph, "an image beside the annotations: name it as a source")
    return plan_boxes(config.boxes, inventory, given, config.labels, key, ledgers)


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
        wanted = {e.number: e for e in images if e.source == number}
        try:
            for member in source.members() if wanted else ():
                entry = wanted.pop(member.number, None)
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
    sources: list[Source], inventory: Inventory, plan: BoxPlan, patients: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:
    """(id, kind, path) of every input, for the table beside the key."""
    for entry in [*inventory.images, *(t.entry for t in inventory.texts)]:
        source = sources[entry.source]
        path = source.path.resolve()
        inner = entry.name.removeprefix(f"{source.label}/")
        where = str(path) if path.is_file() and inner == path.name else f"{path}/{inner}"
        yield entry.file, "file", where
        if entry.radiograph in patients:
            yield entry.radiograph, "radiograph", where
            yield patients[entry.radiograph][0], "patient", patients[entry.radiograph][1]
        for number, box in enumerate(plan.boxes.get(entry.radiograph, []), 1):
            yield box.id, "box", f"{where} (its box {number})"


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` to work in: locked while in use, removed on failure, renamed to `out` by `_finish`."""
    folder = out.parent / f".{out.name}.packing"
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
