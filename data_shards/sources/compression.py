"""Compressed streams (gzip, bzip2, xz, zstd) read forward, with bounded memory and bounded growth."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import Any

import zstandard

from data_shards.errors import MemberError
from data_shards.sources.limits import MAX_WINDOW, Expansion
from data_shards.sources.member import Readable

_SIGNATURES = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # the first block's magic, or that of the end
WINDOW = f"its decoder asks for over {MAX_WINDOW >> 20} MiB of memory: pack an unpacked copy"


def compression_of(head: bytes) -> str:
    """`gzip`, `bzip2`, `xz` or `zstd` by the first bytes; empty where it is none of them."""
    if head.startswith(b"BZh") and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    if head[1:4] == b"\x2a\x4d\x18" and head[:1] in b"PQRSTUVWXYZ[\\]^_":  # a frame to skip, as parallel zstd writes
        return "zstd"
    return next((kind for kind, signature in _SIGNATURES.items() if head.startswith(signature)), "")


def decompressed(kind: str, packed: Readable, whole: Expansion) -> Readable:
    """What `packed` holds. Reading raises MemberError for a bomb, and anything of DAMAGE for damage."""
    growth = Expansion(whole=whole)
    source: Any = _Counted(packed, growth)
    if kind == "gzip":
        return Metered(gzip.GzipFile(fileobj=source), growth)
    if kind == "bzip2":
        return Metered(bz2.BZ2File(source), growth)
    return Metered(_Frames(source, *((_xz, 1 << 16) if kind == "xz" else (_zstd, 1 << 12))), growth)


def _xz() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()


class Metered:
    """A stream whose bytes are counted as they come out, at most `most` at once."""

    def __init__(self, file: Readable, growth: Expansion, most: int = MAX_WINDOW) -> None:
        self._file, self._growth, self._most = file, growth, most

    def read(self, size: int, /) -> bytes:
        """The next bytes. Raises MemberError where too many came out."""
        found = self._file.read(min(size, self._most))
        self._growth.give(len(found))
        return found

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


class _Counted:
    """The compressed bytes, counted as they go in."""

    def __init__(self, file: Readable, growth: Expansion) -> None:
        self._file, self._growth = file, growth

    def read(self, size: int, /) -> bytes:
        found = self._file.read(size)
        self._growth.take(len(found))
        return found

    def close(self) -> None:
        self._file.close()


class _Frames:
    """xz streams or zstd frames, one after another. `fresh` makes a decoder, fed with `feed` bytes at once.

    LZMAFile has no limit on the decoder's memory; zstandard's stream_reader takes a frame that is cut off for whole.
    Its decoder gives all that is in its food, and 4 KiB of that can become 128 MiB, but no more.
    """

    def __init__(self, file: Readable, fresh: Callable[[], Any], feed: int) -> None:
        self._file, self._fresh, self._feed = file, fresh, feed
        self._decoder: Any = None
        self._packed = b""
        self._ready = b""

    def read(self, size: int, /) -> bytes:
        while not self._ready and self._feed_decoder(size):
            pass
        found, self._ready = self._ready[:size], self._ready[size:]
        return found

    def _feed_decoder(self, size: int) -> bool:
        packed, self._packed = self._packed, b""
        if not packed and getattr(self._decoder, "needs_input", True):
            packed = self._file.read(self._feed)
            if not packed and self._decoder is not None:
                raise EOFError
            if not packed:
                return False
        if self._decoder is None:
            packed = packed.lstrip(b"\0")  # padding between xz streams
            if not packed:
                return True
            self._decoder = self._fresh()
        try:
            bounded = hasattr(self._decoder, "needs_input")
            self._ready = self._decoder.decompress(packed, size) if bounded else self._decoder.decompress(packed)
        except (lzma.LZMAError, zstandard.ZstdError) as error:
            if "limit" in str(error) or "too much memory" in str(error):
                raise MemberError(WINDOW) from None
            raise
        if self._decoder.eof:
            self._packed, self._decoder = self._decoder.unused_data, None
        return True

    def close(self) -> None:
        self._file.close()
