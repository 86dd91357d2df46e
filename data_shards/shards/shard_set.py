"""A folder of shards as an array: random access to images and metadata by sample number."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from data_shards.errors import CorruptError, ShardError
from data_shards.shards.cache import ShardCache
from data_shards.shards.codec import fields_of, gray_of, raised
from data_shards.shards.manifest import (
    INDEX,
    MANIFEST,
    REJECTED,
    bad_manifest,
    check_sizes,
    map_index,
    parse_manifest,
    read_manifest,
    sha256_of,
)
from data_shards.shards.remote import NotFound, RemoteFile, Url, download, read_small
from data_shards.shards.tar_index import BLOCK, index_shards, name_in_header, split_name

__all__ = ["INDEX", "MANIFEST", "REJECTED", "ShardSet", "read_manifest"]

OPEN_FILES = 128
"""Shards a process keeps open: enough for several groups of the stream's order, far under the usual limit of 1024."""

T = TypeVar("T")


class ShardSet:
    """Samples of a shard folder, of one `.tar`, or of a folder of tars that others wrote (indexed in memory).

    A text with `://` is the URL of a folder that `python -m data_shards pack` made and that was uploaded whole; its
    files come through `cache` (left out: one of the default size in the user's cache folder).

    `path` (Path; Url of a remote set), `shards` (list of Path; empty for a remote set), `shard_sizes` (int64 [shards],
    samples in each), `manifest` (dict; empty for foreign shards). Objects can be sent to worker processes; files are
    opened on first use in each. Raises ShardError where there are no shards, where they are not what the manifest or
    the tar headers say, and where the URL cannot be read.
    """

    def __init__(self, path: str | Path, cache: ShardCache | None = None) -> None:
        self.path: Path | Url
        self.shards: list[Path] = []
        self.manifest: dict[str, Any] = {}
        self._cache: ShardCache | None = None
        self._index: np.ndarray | None = None
        if isinstance(path, str) and "://" in path:
            self._find_remote(Url(path), cache or ShardCache())
        else:
            self._find_local(Path(path))
        if self.manifest:
            self._index = self._map_index(verify=True)
            self.shard_sizes = np.array([s["samples"] for s in self.manifest["shards"]], dtype=np.int64)
        else:
            self._index = index_shards(self.shards)
            self.shard_sizes = np.bincount(self._index["shard"], minlength=len(self.shards)).astype(np.int64)
        if not len(self):
            raise ShardError(
                f"no sample with an image in the shards of {self.path}: a sample is <key>.png + <key>.json"
            )
        self._keep_open()

    def _find_local(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise ShardError(f"no shards at {path}: make them with `python -m data_shards pack`, or check the path")
        if path.is_file():
            self.shards = [path]
        elif (path / MANIFEST).is_file():
            self.manifest = read_manifest(path)
            self.shards = [path / s["name"] for s in self.manifest["shards"]]
            check_sizes(self.shards, self.manifest)
        else:
            self.shards = sorted(path.glob("*.tar"))
        if not self.shards:
            raise ShardError(f"no .tar shard in {path}: make some with `python -m data_shards pack`")

    def _find_remote(self, url: Url, cache: ShardCache) -> None:
        self.path, self._cache = url, cache
        try:
            raw = read_small(url / MANIFEST, cache.patience)
        except NotFound:
            raise ShardError(
                f"there is no {url / MANIFEST}: pack with `python -m data_shards pack` and upload the whole folder, or "
                "check the URL (tars that others wrote are read from a local folder only)"
            ) from None
        self.manifest = parse_manifest(raw, url / MANIFEST)
        try:
            needed = self._remote_index().size + max(self._remote(s).size for s in range(len(self.manifest["shards"])))
        except (KeyError, ValueError):
            raise bad_manifest(url / MANIFEST) from None
        if needed > cache.limit:
            raise ShardError(
                f"a cache of {cache.limit / 1e9:g} GB cannot hold the index and one shard of {url} "
                f"({needed / 1e9:.3g} GB): raise --data.cache_gb"
            )

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def image(self, i: int) -> np.ndarray:
        """Sample `i` as gray uint8 or uint16 [H, W]. Raises ShardError naming shard and key where it is corrupt.

        uint16 has white at 65535: a sample whose JSON says `bits` 12 is raised from 4095, so that it is not black.
        """
        gray = self._decoded(i, "image", gray_of)
        bits = self.meta(i).get("bits", 16) if gray.dtype == np.uint16 else 16
        if bits == 16:
            return gray
        if not (isinstance(bits, int) and 8 <= bits <= 16 and gray.max() < 1 << bits):
            where = f"sample {self.key(i)} in {self._place(int(self._row(i)['shard']))}"
            raise CorruptError(f"{where} says bits {bits} and holds grays up to {gray.max()}: pack that shard again")
        return raised(gray, bits)

    def meta(self, i: int) -> dict[str, Any]:
        """The JSON of sample `i` (`id`, `patient`, `fdi` ...); a foreign sample without JSON has only `id`."""
        return self._decoded(i, "meta", fields_of) if self._row(i)["meta_size"] else {"id": self.key(i)}

    def holdout(self) -> "ShardSet | None":
        """The set that was held out of this one, in `holdout` below it and through the same cache; None without."""
        if isinstance(self.path, Path):
            return ShardSet(self.path / "holdout") if (self.path / "holdout").is_dir() else None
        if self._cache is None or not self.manifest.get("holdout", {}).get("samples"):
            return None
        below = self.path / "holdout"
        try:
            read_small(below / MANIFEST, self._cache.patience)
        except NotFound:  # it was not uploaded
            return None
        return ShardSet(below.address, self._cache)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Wish for these shards to be in the cache, most urgent first, instead of those wished for before.

        Returns at once: one background thread of this process serves all its sets. Nothing to do for local sets.
        """
        if self._cache is not None:
            self._cache.prefetch([self._remote(shard) for shard in shards], str(self.path))

    @property
    def index(self) -> np.ndarray:
        """Where every sample lies: a structured array [samples] of INDEX_DTYPE. Each process maps the file itself."""
        if self._index is None:
            self._index = self._map_index()
        return self._index

    @property
    def checksum(self) -> str:
        """SHA-256 that tells sets apart wherever they lie: of the manifest's checksums of index and shards.

        Foreign shards have none; theirs is of the index and the shards' sizes, so pixels changed in place go unnoticed.
        """
        if self.manifest:
            parts = [self.manifest["index"]["sha256"], *(s.get("sha256", "") for s in self.manifest["shards"])]
        else:
            parts = [hashlib.sha256(self.index.tobytes()).hexdigest(), *(str(p.stat().st_size) for p in self.shards)]
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
        if not 0 <= i < len(self.index):
            raise IndexError(f"sample {i} of {len(self)} in {self.path}")
        row: np.void = self.index[i]
        return row

    def _decoded(self, i: int, what: str, decode: Callable[[bytes], T | None]) -> T:
        """The `image` or `meta` of a sample. A cached shard that turns out damaged is fetched anew, once."""
        row = self._row(i)
        place = int(row["shard"]), int(row[what]), int(row[f"{what}_size"])
        found = decode(self._read(i, *place))
        if found is None and self._cache is not None:
            self._cache.drop(self._remote(place[0]))
            found = decode(self._read(i, *place))
        if found is None:
            raise CorruptError(
                f"sample {self.key(i)} in {self._place(place[0])} is corrupt: copy or pack that shard again"
            )
        return found

    def _read(self, i: int, shard: int, offset: int, size: int) -> bytes:
        if self._cache is not None:
            return self._cache.read(self._remote(shard), offset, size)
        try:
            file = self._file(shard)  # held until it was read: another thread may have evicted or replaced it
            raw = os.pread(file.fd, size, offset)
        except OSError as error:
            raise _unreadable(self.shards[shard], error) from None
        if len(raw) < size:
            raise CorruptError(f"the shard {self.shards[shard]} ends before sample {i}: copy or pack it again")
        return raw

    def _place(self, shard: int) -> Path | Url:
        return self.path / self.manifest["shards"][shard]["name"] if self.manifest else self.shards[shard]

    def _remote(self, shard: int) -> RemoteFile:
        assert isinstance(self.path, Url)
        stated = self.manifest["shards"][shard]
        return RemoteFile(self.path / stated["name"], stated["bytes"], stated.get("sha256", ""))

    def _remote_index(self) -> RemoteFile:
        assert isinstance(self.path, Url)
        return RemoteFile(self.path / INDEX, self.manifest["index"]["bytes"], self.manifest["index"]["sha256"])

    def _map_index(self, verify: bool = False) -> np.ndarray:
        """The index that the manifest describes. A cached one that turns out damaged is fetched anew, once."""
        if self._cache is not None:
            with self._open_remote_index(self._cache) as file:
                if not verify or sha256_of(file) == self.manifest["index"]["sha256"]:
                    return self._mapped(file)
            self._cache.drop(self._remote_index())
            with self._open_remote_index(self._cache) as file:
                return self._mapped(file)
        path = self.path / INDEX
        try:
            with Path(str(path)).open("rb") as file:
                if verify and sha256_of(file) != self.manifest["index"]["sha256"]:
                    raise ShardError(
                        f"{path} is not the one that {MANIFEST} describes (checksums differ): copy or pack it again"
                    )
                return self._mapped(file)
        except OSError:
            raise ShardError(f"{path} is missing: copy it, or pack again") from None

    def _open_remote_index(self, cache: ShardCache) -> BinaryIO:
        """In the cache, or in memory where the cache's disk fails."""
        descriptor = cache.open(self._remote_index())
        if descriptor is not None:
            return os.fdopen(descriptor, "rb")
        buffer = io.BytesIO()
        download(self._remote_index(), buffer, cache.patience)
        return buffer

    def _mapped(self, file: BinaryIO) -> np.ndarray:
        index = map_index(file)
        if index is None or len(index) != sum(s["samples"] for s in self.manifest["shards"]):
            raise ShardError(f"{self.path / INDEX} and {MANIFEST} disagree on the samples: pack again")
        return index

    def _keep_open(self) -> None:
        # Evicted files close when their last reader lets go of them, so that threads may share a set.
        self._file = lru_cache(maxsize=OPEN_FILES)(lambda shard: _OpenFile(self.shards[shard]))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_file"]
        if self.manifest:
            state["_index"] = None  # each process maps the file itself instead of receiving a copy
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep_open()


class _OpenFile:
    """A file descriptor that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _unreadable(path: Path, error: OSError) -> ShardError:
    return ShardError(f"cannot read the shard {path} ({error.strerror}): check the path, its rights and the disk")
