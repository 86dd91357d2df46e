"""A file of a source, read forward once: its first bytes to tell what it is, then its content."""

import errno
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from data_shards.errors import MemberError, PackError
from data_shards.sources.limits import MAX_MEMBER_BYTES, too_large

HEAD_BYTES = 4096
"""Enough to tell every kind of file by its content: DICOM's magic lies at 128, a tar's at 257."""
CHUNK = 1 << 20
"""Bytes read at once: what a member claims to hold is never allocated before it is there."""

DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,  # zipfile: encrypted, or compressed in a way it does not know
    ValueError,
    LookupError,
    ArithmeticError,  # places in the archive beyond what its reader counts to
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
"""What the readers of archives raise on damaged input. PackError and MemberError are of these and are let through."""


class Readable(Protocol):
    """A stream of bytes, read forward."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, `size` at most, and none only at the end."""

    def close(self) -> None:
        """Let go of it."""


class Member:
    """A file of a source. Valid until the next member is asked for.

    `name` is its path in the source (`inner.zip/a.png` where an archive lies in it), `size` the bytes that its archive
    states or -1, `refused` the reason why it cannot be read (empty: it can, as far as is known), and `stamp` a short
    text that changes when the content does, found without reading it. `open` gives a stream of the content; `path` is
    where it lies by itself on the disk, if it does.
    """

    def __init__(
        self,
        name: str,
        size: int,
        open: Callable[[], Readable],
        refused: str = "",
        stamp: str = "",
        path: Path | None = None,
    ) -> None:
        self.name, self.size, self.refused, self.stamp, self.path = name, size, refused, stamp, path
        self._open: Callable[[], Readable] | None = open
        self._file: Readable | None = None
        self._kept = b""
        self._unread = True
        self._position = 0

    def head(self, size: int = HEAD_BYTES) -> bytes:
        """Its first `size` bytes (all, where it has fewer), kept for `read`. Raises MemberError."""
        self._check_unread()
        while len(self._kept) < size and (more := self._more(size - len(self._kept))):
            self._kept += more
        return self._kept[:size]

    def read(self, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """Its content, once: most archives can only be read forward.

        Raises MemberError where it is damaged or refused or has more than `limit` bytes.
        """
        content = io.BytesIO()  # its value is handed over without another copy
        for chunk in self.chunks():
            if content.tell() + len(chunk) > limit:
                self._fail(too_large(limit))
            content.write(chunk)
        return content.getvalue()

    def chunks(self) -> Iterator[bytes]:
        """Its content in pieces of at most CHUNK bytes, once. Raises MemberError."""
        stream = self.stream()
        while chunk := stream.read(CHUNK):
            yield chunk

    def stream(self) -> Readable:
        """Its content from the start, once; reading raises MemberError."""
        self._check_unread()
        self._unread = False
        return _Content(self)

    def close(self) -> None:
        """Let go of its stream: nothing more can be read."""
        self._open = None
        if self._file is not None:
            self._file.close()

    def _check_unread(self) -> None:
        if self.refused:
            raise MemberError(self.refused)
        if not self._unread:
            raise MemberError("read already, and an archive does not turn back")

    def _take(self, size: int) -> bytes:
        found, self._kept = self._kept[:size], self._kept[size:]
        return found or (self._more(size) if size else b"")

    def _more(self, size: int) -> bytes:
        if self.refused:
            raise MemberError(self.refused)
        try:
            if self._file is None:
                if self._open is None:
                    raise EOFError
                self._file, self._open = self._open(), None
            found = self._file.read(size)
        except DAMAGE as error:
            self._fail(reason_of(error, "damaged in its archive or unreadable"))
        self._position += len(found)
        if not found and self.size not in (-1, self._position):
            self._fail("its length is not the one stated: damaged, or it changed while it was read")
        return found

    def _fail(self, reason: str) -> None:
        self.refused = reason
        raise MemberError(reason) from None


class _Content:
    """A member's content as a stream."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def read(self, size: int, /) -> bytes:
        return self._member._take(size)

    def close(self) -> None:
        self._member.close()


class Checked:
    """A stream whose checksum (CRC-32) is compared at its end, after all of it was given."""

    def __init__(self, file: Readable, stated: int) -> None:
        self._file, self._stated, self._crc = file, stated, 0

    def read(self, size: int, /) -> bytes:
        """The next bytes. Raises MemberError at the end where the checksum is wrong."""
        found = self._file.read(size)
        self._crc = zlib.crc32(found, self._crc)
        if not found and self._crc != self._stated:
            raise MemberError("damaged in its archive: its checksum is wrong")
        return found

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


def reason_of(error: Exception, otherwise: str) -> str:
    """A reason for the ledger; `otherwise` says what failed where the error does not speak for itself.

    Raises PackError where that is the error: it ends the pack.
    """
    if isinstance(error, PackError):
        raise error
    if isinstance(error, MemberError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return "it may not be read: check its rights"
    if isinstance(error, EOFError):
        return "the archive ends early: copy it again"
    if isinstance(error, UnicodeDecodeError):
        return "its name is not the UTF-8 that it is marked as in its archive: pack an unpacked copy"
    return f"{otherwise} ({type(error).__name__})"
