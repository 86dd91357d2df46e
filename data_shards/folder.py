"""Tar members into a finished shard folder: shards, index, statistics, manifest."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.index import BLOCK, index_shards
from data_shards.labels import RESERVED
from data_shards.manifest import INDEX, MANIFEST, sealed, stated
from data_shards.shard_set import ShardSet

FORMAT = 1
"""Version of the folder's format."""
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class Chunk(NamedTuple):
    """The tar members of one radiograph: where they lie in the spool, and how many samples they are."""

    offset: int
    size: int
    samples: int


def write_shards(
    folder: Path, spool: Path, chunks: Iterable[Chunk], shard_bytes: int, shard_samples: int
) -> list[dict[str, Any]]:
    """Write chunks as `shard-NNNNNN.tar`, a radiograph never split; a shard ends before it would pass either limit.

    Returns each shard's `name`, `bytes`, `samples` and `sha256`.
    """
    shards: list[dict[str, Any]] = []
    batch: list[Chunk] = []
    with spool.open("rb") as source:
        for chunk in chunks:
            full = sum(c.size for c in batch) + chunk.size > shard_bytes
            if batch and (full or sum(c.samples for c in batch) + chunk.samples > shard_samples):
                shards.append(_write_shard(folder / f"shard-{len(shards):06d}.tar", source, batch))
                batch = []
            batch.append(chunk)
        if batch:
            shards.append(_write_shard(folder / f"shard-{len(shards):06d}.tar", source, batch))
    return shards


def _write_shard(path: Path, source: Any, batch: list[Chunk]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in batch:
            source.seek(chunk.offset)
            members = source.read(chunk.size)
            file.write(members)
            digest.update(members)
            size += len(members)
        end = bytes(2 * BLOCK)
        file.write(end)
        digest.update(end)
    samples = sum(c.samples for c in batch)
    return {"name": path.name, "bytes": size + len(end), "samples": samples, "sha256": digest.hexdigest()}


def write_index(folder: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Index the shards as written, by walking their headers. Returns the index's `name`, `bytes` and `sha256`."""
    path = folder / INDEX
    np.save(path, index_shards([folder / s["name"] for s in shards]), allow_pickle=False)
    return stated(path)


def statistics(folder: Path, count: int, total: int, squares: int) -> dict[str, Any]:
    """Statistics of a folder's samples, read back from its shards; the sums are over all pixels of the crops (0..255).

    Pixel mean and standard deviation are in units of full scale (0 to 1), sizes in pixels.
    """
    samples = ShardSet(folder)  # no manifest yet: the tars are walked, as a foreign reader would
    metas = [samples.meta(i) for i in range(len(samples))]
    mean = total / count
    return {
        "samples": len(metas),
        "radiographs": len({m["radiograph"] for m in metas}),
        "patients": len({m["patient"] for m in metas}),
        "pixel_mean": round(mean / 255, 6),
        "pixel_std": round(max(0.0, squares / count - mean * mean) ** 0.5 / 255, 6),
        "width": _quantiles([m["width"] for m in metas]),
        "height": _quantiles([m["height"] for m in metas]),
        "aspect": _quantiles([m["width"] / m["height"] for m in metas]),
        "labels": count_labels(metas),
    }


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
