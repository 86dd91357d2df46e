"""A folder of shards as an array: random access to images and metadata by sample number."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_shards.errors import ShardError
from data_shards.index import BLOCK, INDEX_DTYPE, index_shards, name_in_header, split_name

MANIFEST, INDEX, REJECTED = "manifest.json", "index.npy", "rejected.jsonl"
OPEN_FILES = 128
"""Shards a process keeps open: enough for several groups of the stream's order, far under the usual limit of 1024."""


class ShardSet:
    """Samples of a shard folder, of one `.tar`, or of a folder of tars that others wrote (indexed in memory).

    `path`, `shards` (list of Path), `shard_sizes` (int64 [shards], samples in each), `manifest` (dict; empty for
    foreign shards). Objects can be sent to worker processes; files are opened on first use in each.
    Raises ShardError where there are no shards, or where they are not what the manifest or the tar headers say.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = {}
        if not self.path.exists():
            raise ShardError(
                f"no shards at {self.path}: make them with `python -m data_shards pack`, or check the path"
            )
        if self.path.is_file():
            self.shards = [self.path]
        elif (self.path / MANIFEST).is_file():
            self.manifest = read_manifest(self.path)
            self.shards = [self.path / s["name"] for s in self.manifest["shards"]]
            self._check_sizes()
        else:
            self.shards = sorted(self.path.glob("*.tar"))
        if not self.shards:
            raise ShardError(f"no .tar shard in {self.path}: make some with `python -m data_shards pack`")
        self._index = self._read_index() if self.manifest else index_shards(self.shards)
        self.shard_sizes = np.bincount(self._index["shard"], minlength=len(self.shards)).astype(np.int64)
        if not len(self._index):
            raise ShardError(
                f"no sample with an image in the shards of {self.path}: a sample is <key>.png + <key>.json"
            )
        self._open_cached()

    def __len__(self) -> int:
        return len(self._index)

    def image(self, i: int) -> np.ndarray:
        """Sample `i` as gray uint8 or uint16 [H, W]. Raises ShardError naming shard and key where it is corrupt."""
        row = self._row(i)
        raw = self._read(i, int(row["shard"]), int(row["image"]), int(row["image_size"]))
        try:
            pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            pixels = None
        if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
            raise self._corrupt(i)
        return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY)

    def meta(self, i: int) -> dict[str, Any]:
        """The JSON of sample `i` (`id`, `patient`, `fdi` ...); a foreign sample without JSON has only `id`."""
        row = self._row(i)
        if not row["meta_size"]:
            return {"id": self.key(i)}
        try:
            meta = json.loads(self._read(i, int(row["shard"]), int(row["meta"]), int(row["meta_size"])))
        except ValueError:
            raise self._corrupt(i) from None
        if not isinstance(meta, dict):
            raise self._corrupt(i)
        return meta

    @property
    def index(self) -> np.ndarray:
        """Where every sample lies: a structured array [samples] of INDEX_DTYPE."""
        return self._index

    @property
    def checksum(self) -> str:
        """SHA-256 that tells sets apart wherever they lie: of the manifest's checksums of index and shards.

        Foreign shards have none; theirs is of the index and the shards' sizes, so pixels changed in place go unnoticed.
        """
        if self.manifest:
            parts = [self.manifest["index"]["sha256"], *(s.get("sha256", "") for s in self.manifest["shards"])]
        else:
            parts = [hashlib.sha256(self._index.tobytes()).hexdigest(), *(str(p.stat().st_size) for p in self.shards)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def image_bytes(self, i: int) -> bytes:
        """The encoded image of sample `i` as stored."""
        row = self._row(i)
        return self._read(i, int(row["shard"]), int(row["image"]), int(row["image_size"]))

    def key(self, i: int) -> str:
        """The WebDataset key of sample `i`; for our own shards its id."""
        row = self._row(i)
        name = name_in_header(self._read(i, int(row["shard"]), int(row["image"]) - BLOCK, BLOCK))
        return (split_name(name) or (name, ""))[0]

    def _row(self, i: int) -> np.void:
        if not 0 <= i < len(self._index):
            raise IndexError(f"sample {i} of {len(self)} in {self.path}")
        return self._index[i]

    def _read(self, i: int, shard: int, offset: int, size: int) -> bytes:
        raw = os.pread(self._file(shard).fd, size, offset)
        if len(raw) < size:
            raise ShardError(f"the shard {self.shards[shard]} ends before sample {i}: copy or pack it again")
        return raw

    def _corrupt(self, i: int) -> ShardError:
        shard = self.shards[int(self._index[i]["shard"])]
        return ShardError(f"sample {self.key(i)} in {shard} is corrupt: copy or pack that shard again")

    def _check_sizes(self) -> None:
        """Sizes on disk against the manifest's: one stat a shard catches what a broken copy leaves."""
        for stated, path in zip(self.manifest["shards"], self.shards, strict=True):
            if not path.is_file():
                raise ShardError(f"the shard {path} is missing: copy it, or pack again")
            size = path.stat().st_size
            if size != stated["bytes"]:
                what = "cut short" if size < stated["bytes"] else "too long"
                raise ShardError(
                    f"the shard {path} is {what} ({size} bytes; {MANIFEST} says {stated['bytes']}): "
                    "copy or pack it again"
                )

    def _read_index(self) -> np.ndarray:
        path, stated = self.path / INDEX, self.manifest["index"]
        try:
            raw = path.read_bytes()
        except OSError:
            raise ShardError(f"{path} is missing: copy it, or pack again") from None
        if hashlib.sha256(raw).hexdigest() != stated["sha256"]:
            raise ShardError(
                f"{path} is not the one that {MANIFEST} describes (checksums differ): copy or pack it again"
            )
        index = np.load(path, mmap_mode="r", allow_pickle=False)
        if index.dtype != INDEX_DTYPE or len(index) != sum(s["samples"] for s in self.manifest["shards"]):
            raise ShardError(f"{path} and {MANIFEST} disagree on the samples: pack again")
        return index

    def _open_cached(self) -> None:
        # Evicted files close when their last reader lets go of them, so that threads may share a set.
        self._file = lru_cache(maxsize=OPEN_FILES)(lambda shard: _OpenFile(self.shards[shard]))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_file"]
        if self.manifest:
            del state["_index"]  # each process maps the file itself instead of receiving a copy
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.manifest:
            self._index = np.load(self.path / INDEX, mmap_mode="r", allow_pickle=False)
        self._open_cached()


class _OpenFile:
    """A file descriptor that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(
                f"cannot read the shard {path} ({error.strerror}): check the path and its rights"
            ) from None

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a shard folder. Raises ShardError where it is not a manifest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(s["bytes"], int) and s["name"] == Path(s["name"]).name for s in manifest["shards"]):
            manifest["index"]["sha256"]
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ShardError(f"{path} is not a readable manifest: copy it, or pack again")
