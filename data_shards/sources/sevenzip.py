"""7z archives through py7zr (the extra `7z`), read forward, a member at a time; nothing is unpacked to the disk.

A 7z archive is a row of blocks, each one compressed stream of many members. py7zr's own `extract` stops at the first
damaged member, fetches a block's compressed bytes faster than they are used (so that memory grows with the archive)
and judges names by where it would write them. So its decoders are asked here directly.
"""

import io
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from data_shards.errors import MemberError
from data_shards.sources.limits import Expansion
from data_shards.sources.member import CHUNK, Checked, Member, Readable
from data_shards.sources.zip_tar import ENCRYPTED, refusal

FEED = 1 << 12
"""Compressed bytes handed to a decoder at once: some give all that is in them, and of 4 KiB at most 128 MiB come."""


def seven_zip_members(file: IO[bytes], whole: Expansion) -> Iterator[Member]:
    """The files of a 7z in their order. Raises MemberError."""
    with _opened_archive(file) as archive:
        try:
            listed = list(_members(archive, whole))
        except Exception:  # a list that py7zr read and that makes no sense
            raise MemberError(f"a 7z archive {_DAMAGED}") from None
        yield from listed


_DAMAGED = (
    "whose list of members, at its end, is damaged or cut off: copy it again (or join the parts of a split archive)"
)


def _opened_archive(file: IO[bytes]) -> Any:
    """The archive (py7zr.SevenZipFile) with its list of members read."""
    try:
        import py7zr
    except ImportError:
        raise MemberError(
            'a 7z archive, which needs py7zr: pip install "tooth-foundations[7z]" '
            '(in a checkout: pip install -e ".[7z]")'
        ) from None
    try:
        return py7zr.SevenZipFile(file)
    except py7zr.PasswordRequired:
        raise MemberError("an encrypted 7z archive: pack a decrypted copy") from None
    except Exception:  # on damage py7zr raises anything from its own errors to KeyError and struct.error
        raise MemberError(f"a 7z archive {_DAMAGED}") from None


def _members(archive: Any, whole: Expansion) -> Iterator[Member]:
    blocks = _blocks(archive, whole)
    offset = 0
    block: _Block | None = None
    for info in archive.files:
        if info.is_directory:
            continue
        link, special = info.is_symlink or info.is_junction, info.is_socket
        if info.emptystream:
            yield Member(info.filename, 0, io.BytesIO, refusal(link, special), "0")
            continue
        if blocks[id(info.folder)] is not block:
            block, offset = blocks[id(info.folder)], 0
        size = int(info.uncompressed)
        opened = partial(_opened, block, offset, size, info.crc32)
        yield Member(info.filename, size, opened, refusal(link, special), f"{size}-{info.crc32}")
        offset += size


def _blocks(archive: Any, whole: Expansion) -> dict[int, "_Block"]:
    """The blocks by the id of py7zr's object for each (which it calls folders)."""
    streams = getattr(archive.header, "main_streams", None)
    if streams is None:  # no member has content
        return {}
    blocks, first = {}, 0
    bounds = [archive.afterheader + position for position in streams.packinfo.packpositions]
    for folder in streams.unpackinfo.folders:
        start, end = bounds[first], bounds[first + 1]
        blocks[id(folder)] = _Block(archive.fp, folder, start, end - start, whole)
        first += len(folder.packed_indices)
    return blocks


def _opened(block: "_Block", offset: int, size: int, crc: int | None) -> Readable:
    block.skip_to(offset)
    content = _Content(block, size)
    return content if crc is None else Checked(content, crc)


class _Content:
    """The next `size` bytes of a block."""

    def __init__(self, block: "_Block", size: int) -> None:
        self._block, self._left = block, size

    def read(self, size: int, /) -> bytes:
        found = self._block.read(min(size, self._left)) if self._left else b""
        self._left -= len(found)
        return found

    def close(self) -> None:
        """Nothing to let go of: the block is the archive's."""


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

    def __init__(self, file: IO[bytes], folder: Any, start: int, packed: int, whole: Expansion) -> None:
        self._folder, self._packed = folder, packed
        self._feed = _Feed(file, start)
        self._growth = Expansion(packed, whole)
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
            self._growth.give(len(found))
            self._feed.hungry = getattr(getattr(first, "_decompressor", first), "needs_input", True)
        except Exception as error:  # py7zr and its decoders raise anything on damage
            kind = type(error).__name__
            self._fault = f"damaged in its archive or unreadable ({kind})"
            if kind == "PasswordRequired":
                self._fault = ENCRYPTED
            if isinstance(error, MemberError):
                self._fault = str(error)
            raise MemberError(self._fault) from None
        self._left -= len(found)
        self._decoded += found
