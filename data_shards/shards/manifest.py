"""What a packed folder says of itself: its manifest, and the index that the manifest vouches for."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_shards.errors import ShardError
from data_shards.shards.remote import Url
from data_shards.shards.tar_index import INDEX_DTYPE

MANIFEST, INDEX, REJECTED, NEAR = "manifest.json", "index.npy", "rejected.jsonl", "near.jsonl"
WORKING = ".packing"
"""End of the name of a folder in which a pack that is not finished works."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a shard folder. Raises ShardError where it is not a manifest."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    except OSError:
        raise bad_manifest(folder / MANIFEST) from None


def is_pack(folder: Path) -> bool:
    """Whether a folder holds shards that `pack` made."""
    try:
        return (folder / INDEX).is_file() and bool(read_manifest(folder))
    except ShardError:
        return False


def sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as the file's bytes: JSON, its last field `sha256` that of the JSON without it.

    So a reader can tell whether any byte of it was changed: it is what `sealed` makes of its own content, or not.
    """
    fields = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(fields, indent=1).encode()).hexdigest()
    return (json.dumps({**fields, "sha256": digest}, indent=1) + "\n").encode()


def stated(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its `name`, `bytes` and `sha256`."""
    with path.open("rb") as file:
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(file)}


def parse_manifest(raw: bytes, place: Path | Url) -> dict[str, Any]:
    """The manifest in these bytes, which were read at `place`. Raises ShardError where it is none."""
    try:
        manifest = json.loads(raw.decode("utf-8"))
        if all(
            isinstance(s["bytes"], int) and isinstance(s["samples"], int) and s["name"] == Path(s["name"]).name
            for s in manifest["shards"]
        ):
            manifest["index"]["sha256"]
            return dict(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise bad_manifest(place)


def bad_manifest(place: Path | Url) -> ShardError:
    """The error for a manifest that lacks what is needed."""
    return ShardError(f"{place} is not a readable manifest: copy it, or pack again")


def check_sizes(shards: list[Path], manifest: dict[str, Any]) -> None:
    """Sizes on disk against the manifest's: one stat a shard catches what a broken copy leaves."""
    for stated, path in zip(manifest["shards"], shards, strict=True):
        try:
            size = path.stat().st_size
        except OSError:
            raise ShardError(f"the shard {path} is missing: copy it, or pack again") from None
        if size != stated["bytes"]:
            what = "cut short" if size < stated["bytes"] else "too long"
            raise ShardError(
                f"the shard {path} is {what} ({size} bytes; {MANIFEST} says {stated['bytes']}): copy or pack it again"
            )


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 (hex) of an open file, read a block at a time from its start."""
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def map_index(file: BinaryIO) -> np.ndarray | None:
    """An index as saved by NumPy, mapped where it is a file on disk; None where it is none."""
    file.seek(0)
    if isinstance(file, io.BytesIO):
        index = np.load(file, allow_pickle=False)
    else:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        index = np.memmap(file, dtype, "r", file.tell(), shape)
    return index if index.dtype == INDEX_DTYPE else None
