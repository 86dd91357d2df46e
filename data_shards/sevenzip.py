"""7z archives through py7zr (the extra `7z`), read forward, a member at a time; nothing is unpacked to the disk.

A 7z archive is a row of blocks, each one compressed stream of many members. py7zr's own `extract` stops at the first
damaged member, fetches a block's compressed bytes faster than they are used (so that memory grows with the archive)
and judges names by where it would write them. So its decoders are asked here directly.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_shards.errors import MemberError, PackError

CHUNK = 1 << 20
"""Bytes decoded at once: with `FEED`, all that is held beside the member that is being read."""
FEED = 1 << 16
"""Compressed bytes handed to a decoder at once."""


class Packed(NamedTuple):
    """A member of a 7z archive. To be opened once, before any that comes after it."""

    name: str
    size: int
    link: bool
    special: bool
    crc: int | None
    open: Callable[[], IO[bytes]]


def open_archive(path: Path) -> Any:
    """The archive (py7zr.SevenZipFile) with its list of members read.

    Raises PackError where that list is damaged or encrypted, and where py7zr is not installed.
    """
    try:
        import py7zr
    except ImportError:
        raise PackError(
            f'{path} is a 7z archive, which needs py7zr: pip install "tooth-foundations[7z]" '
            '(in a checkout: pip install -e ".[7z]")'
        ) from None
    try:
        return py7zr.SevenZipFile(path)
    except OSError:
        raise
    except py7zr.PasswordRequired:
        raise PackError(f"{path} is an encrypted 7z archive: pack a decrypted copy") from None
    except Exception:  # on damage py7zr raises anything from its own errors to KeyError and struct.error
        raise PackError(f"the list of members at the end of {path} is damaged or cut off: copy it again") from None


def check_archive(path: Path) -> None:
    """Raise PackError unless the archive can be opened and its list of members makes sense."""
    with open_archive(path) as archive:
        _listed(archive, path)


def packed_members(path: Path) -> Iterator[Packed]:
    """The members of the archive in their order, without its folders."""
    with open_archive(path) as archive:
        yield from _listed(archive, path)


def _listed(archive: Any, path: Path) -> list[Packed]:
    try:
        return list(_members(archive))
    except Exception:  # a list that py7zr read and that makes no sense
        raise PackError(f"the list of members at the end of {path} is damaged: copy it again") from None


def _members(archive: Any) -> Iterator[Packed]:
    blocks = _blocks(archive)
    offset = 0
    block: _Block | None = None
    for info in archive.files:
        if info.is_directory:
            continue
        link, special = info.is_symlink or info.is_junction, info.is_socket
        if info.emptystream:
            yield Packed(info.filename, 0, link, special, 0, io.BytesIO)
            continue
        if blocks[id(info.folder)] is not block:
            block, offset = blocks[id(info.folder)], 0
        size = int(info.uncompressed)
        yield Packed(info.filename, size, link, special, info.crc32, partial(_opened, block, offset, size, info.crc32))
        offset += size


def _blocks(archive: Any) -> dict[int, "_Block"]:
    """The blocks by the id of py7zr's object for each (which it calls folders)."""
    streams = getattr(archive.header, "main_streams", None)
    if streams is None:  # no member has content
        return {}
    blocks, first = {}, 0
    bounds = [archive.afterheader + position for position in streams.packinfo.packpositions]
    for folder in streams.unpackinfo.folders:
        start, end = bounds[first], bounds[first + 1]
        blocks[id(folder)] = _Block(archive.fp, folder, start, end - start)
        first += len(folder.packed_indices)
    return blocks


def _opened(block: "_Block", offset: int, size: int, crc: int | None) -> IO[bytes]:
    block.skip_to(offset)
    return io.BufferedReader(_Content(block, size, crc))


class _Content(io.RawIOBase):
    """The next `size` bytes of a block; at their end the checksum is compared."""

    def __init__(self, block: "_Block", size: int, crc: int | None) -> None:
        self._block, self._left, self._stated, self._crc = block, size, crc, 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._left:
            return 0
        found = self._block.read(min(len(target), self._left))
        target[: len(found)] = found
        self._left -= len(found)
        self._crc = zlib.crc32(found, self._crc)
        if not self._left and self._stated is not None and self._crc != self._stated:
            raise MemberError("damaged in its archive: its checksum is wrong")
        return len(found)


class _Feed:
    """The file that a decoder reads a block's compressed bytes from: it gets little, and only if it has none left."""

    def __init__(self, file: IO[bytes], start: int) -> None:
        self._file, self._at = file, start
        self.hungry, self.given = True, 0

    def read(self, size: int) -> bytes:
        if not self.hungry:
            return b""
        self._file.seek(self._at)
        found = self._file.read(min(size, FEED))
        self._at += len(found)
        self.given += len(found)
        return found


class _Block:
    """A block, decoded forward as far as it is read. After an error nothing more can be read from it."""

    def __init__(self, file: IO[bytes], folder: Any, start: int, packed: int) -> None:
        self._folder, self._packed = folder, packed
        self._feed = _Feed(file, start)
        self._left: int = folder.get_unpack_size()  # not yet decoded; LZMA may decode rubbish beyond its end
        self._decoder: Any = None
        self._decoded = bytearray()
        self._position = 0
        self._fault = ""

    def skip_to(self, offset: int) -> None:
        """Pass over members that nobody read."""
        if self._position > offset:
            raise OSError("an archive is read forward")
        while self._position < offset:
            self.read(offset - self._position)

    def read(self, size: int) -> bytes:
        """The next 1 to `size` bytes."""
        while not self._decoded:
            self._decode()
        found = bytes(self._decoded[: min(size, CHUNK)])
        del self._decoded[: len(found)]
        self._position += len(found)
        return found

    def _decode(self) -> None:
        if self._fault:
            raise MemberError(self._fault)
        try:
            if self._decoder is None:
                self._decoder = self._folder.get_decompressor(self._packed)
            self._feed.given = 0
            found = self._decoder.decompress(self._feed, min(CHUNK, self._left))
            if not found and not self._feed.given:
                raise EOFError
            first = self._decoder.chain[0]
            self._feed.hungry = getattr(getattr(first, "_decompressor", first), "needs_input", True)
        except Exception as error:  # py7zr and its decoders raise anything on damage
            kind = type(error).__name__
            self._fault = f"damaged in its archive or unreadable ({kind})"
            if kind == "PasswordRequired":
                self._fault = "encrypted: pack a decrypted copy"
            raise MemberError(self._fault) from None
        self._left -= len(found)
        self._decoded += found
