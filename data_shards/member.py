"""A file of a source, read forward once: its first bytes to tell what it is, then its content."""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO

from data_shards.errors import MemberError

MAX_MEMBER_BYTES = 1 << 30
"""A member over 1 GiB is no radiograph (the largest scans are some 100 MB) but may be a decompression bomb."""
HEAD_BYTES = 4096
"""Enough to tell every kind of file by its content: a tar's magic lies at 257, a disc image's beyond any head."""
CHUNK = 1 << 20
"""Bytes read at once: what a member claims to hold is never allocated before it is there."""

DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,  # zipfile: encrypted, or compressed in a way it does not know
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
"""What the readers of archives raise on damaged input."""


class Member:
    """A file of a source. Valid until the next member is asked for.

    `name` is its path in the source (`inner.zip/a.png` where an archive lies in it), `size` the bytes that its archive
    states or -1, `refused` the reason why it cannot be read (empty: it can, as far as is known), and `stamp` a short
    text that changes when the content does, found without reading it. `open` gives a stream of the content.
    """

    def __init__(self, name: str, size: int, open: Callable[[], IO[bytes]], refused: str = "", stamp: str = "") -> None:
        self.name, self.size, self.refused, self.stamp = name, size, refused, stamp
        self._open: Callable[[], IO[bytes]] | None = open
        self._file: IO[bytes] | None = None
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
        self._check_unread()
        kept, self._kept, self._unread = self._kept, b"", False
        if kept:
            yield kept
        while more := self._more(CHUNK):
            yield more

    def close(self) -> None:
        """Let go of its stream: nothing more can be read."""
        self._open = None
        if self._file is not None:
            self._file.close()

    def _check_unread(self) -> None:
        if not self._unread:
            raise MemberError("read already, and an archive does not turn back")

    def _more(self, size: int) -> bytes:
        if self.refused:
            raise MemberError(self.refused)
        try:
            if self._file is None:
                if self._open is None:
                    raise EOFError
                self._file, self._open = self._open(), None
            found = self._file.read(size)
        except MemberError as error:
            self._fail(str(error))
        except DAMAGE as error:
            self._fail(f"damaged in its archive or unreadable ({type(error).__name__})")
        self._position += len(found)
        if not found and self.size not in (-1, self._position):
            self._fail("its length is not the one stated: damaged, or it changed while it was read")
        return found

    def _fail(self, reason: str) -> None:
        self.refused = reason
        raise MemberError(reason) from None


def too_large(limit: int) -> str:
    """The reason for refusing a member of more than `limit` bytes."""
    return f"over {limit >> 20} MiB, larger than any radiograph or table"
