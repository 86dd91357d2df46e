"""Tar members into a finished shard folder: shards, index, statistics, manifest."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.shards.manifest import INDEX, MANIFEST, sealed, stated
from data_shards.shards.tar_index import BLOCK, index_shards

FORMAT = 2
"""Version of the folder's format."""


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


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, sealed. Raises AssertionError where a ledger does not balance."""
    for name, ledger in manifest["ledgers"].items():
        assert ledger["seen"] == ledger["used"] + ledger["rejected"], f"the ledger of {name} does not balance"
    (folder / MANIFEST).write_bytes(sealed(manifest))
