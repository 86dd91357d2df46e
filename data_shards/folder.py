"""Tar members into a finished shard folder: shards, index, statistics, manifest."""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.convert import Frame
from data_shards.index import BLOCK, index_shards
from data_shards.labels import RESERVED
from data_shards.manifest import INDEX, MANIFEST, sealed, stated

FORMAT = 2
"""Version of the folder's format."""
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class Piece(NamedTuple):
    """The tar members of one radiograph, `size` bytes and so many samples, made when they are written."""

    size: int
    samples: int
    members: Callable[[], bytes]


def write_shards(folder: Path, pieces: Iterable[Piece], shard_bytes: int, shard_samples: int) -> list[dict[str, Any]]:
    """Write pieces as `shard-NNNNNN.tar`, a radiograph never split; a shard ends before it would pass either limit.

    Returns each shard's `name`, `bytes`, `samples` and `sha256`.
    """
    shards: list[dict[str, Any]] = []
    batch: list[Piece] = []
    for piece in pieces:
        full = sum(p.size for p in batch) + piece.size > shard_bytes
        if batch and (full or sum(p.samples for p in batch) + piece.samples > shard_samples):
            shards.append(_write_shard(folder / f"shard-{len(shards):06d}.tar", batch))
            batch = []
        batch.append(piece)
    if batch:
        shards.append(_write_shard(folder / f"shard-{len(shards):06d}.tar", batch))
    return shards


def _write_shard(path: Path, batch: list[Piece]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in [*(piece.members for piece in batch), lambda: bytes(2 * BLOCK)]:
            members = part()
            file.write(members)
            digest.update(members)
            size += len(members)
    return {"name": path.name, "bytes": size, "samples": sum(p.samples for p in batch), "sha256": digest.hexdigest()}


def of_patient(members: bytes, patient: str) -> bytes:
    """Tar members whose samples are to be another patient's: their JSON says so, and nothing else changes.

    Ids have one length, so no member changes its size.
    """
    changed = bytearray(members)
    at = 0
    while at < len(changed):
        info = tarfile.TarInfo.frombuf(changed[at : at + BLOCK], "utf-8", "strict")
        start, end = at + BLOCK, at + BLOCK + info.size
        if info.name.endswith(".json"):
            fields = json.loads(changed[start:end])
            changed[start:end] = json.dumps({**fields, "patient": patient}).encode()
        at = start + -(-info.size // BLOCK) * BLOCK
    return bytes(changed)


def write_index(folder: Path, shards: list[dict[str, Any]]) -> tuple[np.ndarray, dict[str, Any]]:
    """Index the shards as written, by walking their headers; with what a manifest says of the index's file."""
    path = folder / INDEX
    index = index_shards([folder / s["name"] for s in shards])
    np.save(path, index, allow_pickle=False)
    return index, stated(path)


def statistics(
    folder: Path, shards: list[dict[str, Any]], index: np.ndarray, frames: Iterable[Frame]
) -> dict[str, Any]:
    """Statistics of a folder's samples, read back from its shards, and of their pixels from the sums in `frames`.

    Pixel mean and standard deviation are in units of full scale (0 to 1), sizes in pixels.
    """
    metas = list(_metas(folder, shards, index))
    sums = Counter[tuple[int, str]]()  # by depth: full scale differs, and sums of integers are exact
    for frame in frames:
        for name in ("count", "total", "squares"):
            sums[frame.bits, name] += getattr(frame, name)
    depths = sorted({bits for bits, _ in sums})
    count = sum(sums[bits, "count"] for bits in depths)
    mean = sum(sums[bits, "total"] / ((1 << bits) - 1) for bits in depths) / count
    square = sum(sums[bits, "squares"] / ((1 << bits) - 1) ** 2 for bits in depths) / count
    return {
        "samples": len(metas),
        "radiographs": len({m["radiograph"] for m in metas}),
        "patients": len({m["patient"] for m in metas}),
        "pixel_mean": round(mean, 6),
        "pixel_std": round(max(0.0, square - mean * mean) ** 0.5, 6),
        "width": _quantiles([m["width"] for m in metas]),
        "height": _quantiles([m["height"] for m in metas]),
        "aspect": _quantiles([m["width"] / m["height"] for m in metas]),
        "labels": count_labels(metas),
    }


def _metas(folder: Path, shards: list[dict[str, Any]], index: np.ndarray) -> Iterator[dict[str, Any]]:
    """The JSON of every sample, in order."""
    for number, shard in enumerate(shards):
        with (folder / shard["name"]).open("rb") as file:
            for row in index[index["shard"] == number]:
                yield json.loads(os.pread(file.fileno(), int(row["meta_size"]), int(row["meta"])))


def count_labels(metas: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How often each value of each label occurs, labels and values sorted."""
    counts: dict[str, Counter[str]] = {}
    for meta in metas:
        for name, value in meta.items():
            if name not in RESERVED:
                counts.setdefault(name, Counter())[str(value)] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _quantiles(values: list[float]) -> dict[str, float]:
    found = np.quantile(np.asarray(values, dtype=np.float64), _QUANTILES)
    return {f"{100 * q:g}%": round(float(v), 3) for q, v in zip(_QUANTILES, found, strict=True)}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, sealed. Raises AssertionError where a ledger does not balance."""
    for name, ledger in manifest["ledgers"].items():
        assert ledger["seen"] == ledger["used"] + ledger["rejected"], f"the ledger of {name} does not balance"
    (folder / MANIFEST).write_bytes(sealed(manifest))
