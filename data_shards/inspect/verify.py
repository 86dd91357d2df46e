"""Whether a shard folder is what its manifest says, to the byte."""

import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.decode.silence import quiet
from data_shards.errors import ShardError
from data_shards.inspect.consistency import Part, check_books, check_files
from data_shards.pack.workers import begin_worker
from data_shards.progress import progress
from data_shards.shards.codec import fields_of, gray_of
from data_shards.shards.manifest import INDEX, MANIFEST, REJECTED, sha256_of
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.statistics import Tally, pixel_sums
from data_shards.shards.tar_index import BLOCK, index_shards, name_in_header, split_name

RUN = 2048
"""Samples that one task checks: a second's work, so that the bar moves and a shard of any size is shared out."""
BYTES_A_PROCESS = 32_000_000
"""Below this a process takes longer to start than to check."""
IDS = np.dtype([("key", "<u8"), ("radiograph", "<u8"), ("patient", "<u8"), ("source", "<u8")])
"""What is remembered of a sample, so that ten million of them take 320 MB: its ids as numbers."""


def verify(folder: Path, quiet: bool = False, workers: int | None = None) -> list[str]:
    """Everything that is wrong with a shard folder and its holdout, a line each; empty where all is well.

    Any changed, cut, missing or foreign byte: the manifest against its own checksum, every file against the
    manifest's, ledgers against the rejected inputs and the samples, the index against the tars' headers, and every
    sample: its image decodes, its size, depth and id agree with its JSON, no id stands twice, no patient is on both
    sides of the holdout. Foreign shards have only their headers, images and keys. `workers` processes (left out: as
    many as there are cores, fewer for small folders).
    """
    if not is_packed(folder):
        return _check_samples(ShardSet(folder), quiet, workers).problems
    problems = list(check_files(folder))
    parts: list[Part] = []
    for part in [folder, *([folder / "holdout"] if (folder / "holdout" / MANIFEST).is_file() else [])]:
        try:
            samples = ShardSet(part)
        except ShardError as error:
            problems = problems or [str(error)]
            continue
        found = _check_samples(samples, quiet, workers)
        parts.append(Part(samples.manifest, found.ids, found.tally))
        problems += found.problems
    return problems or list(check_books(folder, parts))


def is_packed(folder: Path) -> bool:
    """Whether a pack made this folder: then its manifest is missed where it is not there."""
    return any((folder / name).exists() for name in (MANIFEST, INDEX, REJECTED))


class Found(NamedTuple):
    """What was found in some samples: `problems`, a line each, `ids`, IDS [samples], and counts of all."""

    problems: list[str]
    ids: np.ndarray
    tally: Tally


class Run(NamedTuple):
    """Some samples of one shard: `rows` of its index; `stated`, the manifest's words on it (empty if foreign).

    `first`: they are the shard's first, and its checksum and headers are to be checked with them.
    """

    path: Path
    rows: np.ndarray
    stated: dict[str, Any]
    first: bool


def _check_samples(samples: ShardSet, quiet: bool, workers: int | None) -> Found:
    runs = list(_runs(samples))
    total = sum(path.stat().st_size for path in samples.shards)
    if workers is None:
        workers = max(1, min(len(os.sched_getaffinity(0)), total // BYTES_A_PROCESS))
    found = []
    with progress(total=total, desc="verifying", unit="B", unit_scale=True, disable=quiet) as bar:
        for run, one in zip(runs, _spread(runs, workers), strict=True):
            found.append(one)
            bar.update(int(run.rows["image_size"].sum() + run.rows["meta_size"].sum()))
        bar.update(total - bar.n)  # headers and padding
    ids = np.concatenate([one.ids for one in found])
    problems = [problem for one in found for problem in one.problems]
    keys, counts = np.unique(ids["key"], return_counts=True)
    for i in np.flatnonzero(np.isin(ids["key"], keys[counts > 1])):
        problems.append(f"sample {samples.key(int(i))} stands more than once in {samples.path}: pack again")
    tally = Tally()
    for one in found:
        tally.merge(one.tally)
    return Found(problems, ids, tally)


def _runs(samples: ShardSet) -> Iterator[Run]:
    stated = samples.manifest["shards"] if samples.manifest else [{}] * len(samples.shards)
    ends = np.cumsum(samples.shard_sizes)
    for number, path in enumerate(samples.shards):
        rows = np.array(samples.index[ends[number] - samples.shard_sizes[number] : ends[number]])
        for start in range(0, max(1, len(rows)), RUN):
            yield Run(path, rows[start : start + RUN] if start else rows, stated[number], start == 0)


def _spread(runs: list[Run], workers: int) -> Iterator[Found]:
    if workers == 1:
        yield from map(check_run, runs)
        return
    # spawn: forking a process that runs threads (a progress bar, torch) may hang it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, begin_worker, (os.getpid(),)) as pool:
        try:
            yield from pool.map(check_run, runs)
        except BrokenProcessPool:
            raise ShardError("a process of `verify` died, most likely for want of memory: verify again") from None


def check_run(run: Run) -> Found:
    """Check one run of samples; with a shard's first run also its checksum and its headers."""
    problems: list[str] = []
    rows, tally = run.rows, Tally()
    try:
        with run.path.open("rb") as file:
            if run.first:
                problems += _check_shard(run, sha256_of(file) if run.stated else "")
                rows = rows[:RUN]
            found = [_check_sample(file.fileno(), row, run, problems, tally) for row in rows]
    except OSError as error:
        raise ShardError(f"cannot read the shard {run.path} ({error.strerror}): check the disk") from None
    return Found(problems, np.array(found, IDS), tally)


def _check_shard(run: Run, checksum: str) -> Iterable[str]:
    if not run.stated:
        return  # its index was made from its headers just now
    if checksum != run.stated.get("sha256"):
        yield f"the shard {run.path} is damaged (its checksum differs): copy or pack it again"
    try:
        walked = index_shards([run.path])
        walked["shard"] = run.rows["shard"][:1]
        if not np.array_equal(walked, run.rows):
            yield f"the index does not fit the shard {run.path}: pack again"
    except ShardError as error:
        yield str(error)


def _check_sample(fd: int, row: np.void, run: Run, problems: list[str], tally: Tally) -> tuple[int, int, int, int]:
    """A sample's ids as numbers; it enters `tally`, and what is wrong with it `problems`."""
    start, image_size = int(row["image"]), int(row["image_size"])
    name = name_in_header(os.pread(fd, BLOCK, start - BLOCK))
    key = (split_name(name) or (name, ""))[0]
    with quiet():  # or libpng says what the line below does
        pixels = gray_of(os.pread(fd, image_size, start))
    meta = fields_of(os.pread(fd, int(row["meta_size"]), int(row["meta"]))) if row["meta_size"] else {}
    if pixels is None or meta is None:
        what = "image" if pixels is None else "JSON"
        problems.append(f"the {what} of sample {key} in {run.path} cannot be decoded: copy or pack that shard again")
        return _number(key), 0, 0, 0
    if run.stated and not _agree(key, pixels, meta):
        problems.append(f"sample {key} in {run.path} and its JSON disagree: pack again")
    elif run.stated:
        tally.add(meta)
        tally.add_pixels(meta["bits"], *pixel_sums(pixels))
    radiograph, patient, source = (_number(str(meta.get(name, ""))) for name in ("radiograph", "patient", "source"))
    return _number(key), radiograph, patient, source


def _agree(key: str, pixels: np.ndarray, meta: dict[str, Any]) -> bool:
    bits = meta.get("bits")
    deep = pixels.dtype == np.uint16
    if meta.get("id") != key or [meta.get("height"), meta.get("width")] != [*pixels.shape]:
        return False
    if any(type(meta[name]) is not int for name in ("height", "width")):  # 100.0 is no number of pixels
        return False
    if not all(isinstance(meta.get(name), str) for name in ("radiograph", "patient", "source")):
        return False
    return type(bits) is int and (8 < bits <= 16 and int(pixels.max()) < 1 << bits if deep else bits == 8)


def _number(id_: str) -> int:
    """An id as a number: its own for 16 hex digits, a digest (64 bits of SHA-256) for a foreign key."""
    try:
        return int(id_, 16) if len(id_) == 16 else int(hashlib.sha256(id_.encode()).hexdigest()[:16], 16)
    except ValueError:
        return int(hashlib.sha256(id_.encode()).hexdigest()[:16], 16)
