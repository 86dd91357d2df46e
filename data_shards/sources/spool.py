"""One anonymous temporary file for inner archives that cannot be read forward, of limited size."""

import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from data_shards.errors import MemberError, PackError


class _OverLimit(MemberError):
    """More than the temporary file may hold."""


class Spool:
    """A temporary file in TMPDIR without a name, so that nothing is left behind even after `kill -9`.

    Archives inside one another lie in it one behind the other, the innermost last.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._end = limit, 0
        self._file: IO[bytes] | None = None

    @contextmanager
    def holding(self, chunks: Iterable[bytes], stated: int = -1) -> Iterator[tuple[IO[bytes], str]]:
        """The content that `chunks` gives, to be read at any place; and why it is not whole, if it is not.

        `stated` is its size where that is known: what is too large is not copied. Raises MemberError where the limit
        is passed, PackError where the disk is full.
        """
        start = self._end
        fault = ""
        try:
            try:
                self._check(stated)
                for chunk in chunks:
                    self._append(chunk)
            except _OverLimit:
                raise
            except MemberError as error:
                fault = str(error)
            yield io.BufferedReader(_Window(self._opened(), start, self._end - start)), fault
        finally:
            self._end = start
            if self._file is not None:
                self._file.truncate(start)

    def close(self) -> None:
        """Give the disk back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - kept for the next one
        return self._file

    def _check(self, size: int) -> None:
        if self._end + size > self._limit:
            raise _OverLimit(
                f"an inner archive that needs over {self._limit / 1e9:g} GB of temporary disk: raise --spool-gb, "
                "or unpack the archive around it"
            )

    def _append(self, chunk: bytes) -> None:
        self._check(len(chunk))
        try:
            file = self._opened()
            file.seek(self._end)
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise PackError(
                f"cannot keep an inner archive in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder "
                "on a disk with more space"
            ) from None
        self._end += len(chunk)


class _Window(io.RawIOBase):
    """Part of a file as a file by itself, which may be read between other reads and writes."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._size)[whence]
        if base + offset < 0:
            raise OSError("a place before the start")
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        count = min(len(target), max(0, self._size - self._position))
        self._file.seek(self._start + self._position)
        found = self._file.read(count)
        target[: len(found)] = found
        self._position += len(found)
        return len(found)
