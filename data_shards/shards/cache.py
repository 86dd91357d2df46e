"""A node's cache of remote shards: a folder of bounded size that all processes of all runs on the node share.

Files bear the SHA-256 of their content, so two sets with a shard in common hold it once, nothing is ever stale, and no
name from a URL reaches the disk. `<sha256>.part` is a file on its way; who writes it holds its lock, and it has its
full size from the start, so that the bound counts it.
"""

import errno
import fcntl
import functools
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from data_shards.errors import ShardError
from data_shards.shards.remote import RemoteFile, download, read_range

LIMIT_BYTES = 20 * 10**9
PATIENCE = 300.0
TOUCH_EVERY = 10.0
"""Seconds after which a file in use is marked as used again, whichever process uses it."""
RETRY_AFTER = 30.0
"""Seconds for which a folder that could not be written is left alone."""
WEEK = 7 * 24 * 3600.0
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|npy|part)")


class ShardCache:
    """Remote files on this node's disk. `folder`, `limit` (bytes, of all in it), `patience` (seconds).

    `folder`: by default in the user's cache folder; made with mode 0700. `patience`: how long a download that fails is
    tried again. Objects hold no lock and no descriptor, so they may be forked, pickled and used by several threads.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES, patience: float = PATIENCE) -> None:
        self.folder = folder or Path(platformdirs.user_cache_dir("tooth-foundations")) / "shards"
        self.limit = limit_bytes
        self.patience = patience
        self._left_alone_until = 0.0
        self._failed: dict[str, tuple[float, ShardError]] = {}  # by SHA-256: until when not to try again, and why

    def read(self, file: RemoteFile, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; straight from the URL where the cache's disk fails.

        Raises ShardError with the URL where that fails. Opening and closing the file for each read costs some 10
        microseconds more (12 in all for 8 kB, measured), and so evicted files give their room back at once.
        """
        descriptor = self.open(file)
        if descriptor is not None:
            try:
                return os.pread(descriptor, size, offset)
            except OSError as error:
                self._warn(error)
            finally:
                os.close(descriptor)
        return read_range(file, offset, offset + size, self.patience)

    def open(self, file: RemoteFile) -> int | None:
        """A descriptor of the cached file, which is fetched first where it is absent; the caller closes it.

        None where the cache's disk fails or has no room. Raises ShardError with the URL where the download fails; for
        as long again it then raises at once, since a shard's other samples are asked for next.
        """
        until, failure = self._failed.get(file.sha256, (0.0, None))
        if failure and time.monotonic() < until:
            raise failure
        try:
            descriptor = self._cached(file)
            if descriptor is None and time.monotonic() >= self._left_alone_until:
                descriptor = self._fetch(file)
            return descriptor
        except ShardError as error:
            self._failed[file.sha256] = time.monotonic() + self.patience, error
            raise
        except OSError as error:
            self._left_alone_until = time.monotonic() + RETRY_AFTER
            self._warn(error)
            return None

    def prefetch(self, files: Sequence[RemoteFile], wisher: str) -> None:
        """Fetch these in the background, most urgent first, as far as they fit together. Returns at once.

        Replaces what `wisher` wished before; wishers take turns. Failures are left to who reads the file.
        """
        total = itertools.accumulate(file.size for file in files)
        fitting = [file for file, bytes_ in zip(files, total, strict=True) if bytes_ <= self.limit]
        with suppress(RuntimeError):  # a process without room for another thread goes without
            _background(os.getpid()).wish(wisher, self, fitting)

    def drop(self, file: RemoteFile) -> None:
        """Forget a file that turned out damaged."""
        with suppress(OSError):
            self._place(file).unlink(missing_ok=True)

    def _place(self, file: RemoteFile) -> Path:
        return self.folder / f"{file.sha256}{'.npy' if file.url.address.partition('?')[0].endswith('.npy') else '.tar'}"

    def _cached(self, file: RemoteFile) -> int | None:
        try:
            descriptor = os.open(self._place(file), os.O_RDONLY)
        except FileNotFoundError:
            return None
        status = os.fstat(descriptor)
        if status.st_size != file.size:
            os.close(descriptor)
            self.drop(file)
            return None
        if time.time() - status.st_mtime > TOUCH_EVERY:
            with suppress(OSError):
                os.utime(descriptor)
        return descriptor

    def _fetch(self, file: RemoteFile) -> int:
        """Download a file, or wait for who is downloading it. Returns its descriptor, good even if evicted by then."""
        part = self.folder / f"{file.sha256}.part"
        began = time.monotonic()
        with _locked(part) as descriptor:
            ready = self._cached(file)
            if ready is not None:
                part.unlink(missing_ok=True)
                return ready
            # Others who wait have seen this failure too: one try each is left to them, not the whole patience again.
            patience = max(0.0, self.patience - (time.monotonic() - began))
            try:
                self._reserve(descriptor, part, file.size)
                with os.fdopen(descriptor, "r+b", closefd=False) as sink:
                    download(file, sink, patience)
                os.truncate(descriptor, file.size)
                with _locked(self.folder / "lock"):  # who counts the files must not miss it under both names
                    if _is_at(descriptor, part):  # else the folder was removed meanwhile; the bytes are still good
                        part.replace(self._place(file))
                return os.dup(descriptor)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _reserve(self, descriptor: int, part: Path, size: int) -> None:
        """Make room for `size` bytes and take them. Raises OSError where there is none for a `patience`."""
        until = time.monotonic() + self.patience
        while not self._try_to_reserve(descriptor, part, size):
            if time.monotonic() > until:
                raise OSError(errno.ENOSPC, "it is full of files that others are downloading")
            time.sleep(0.05)

    def _try_to_reserve(self, descriptor: int, part: Path, size: int) -> bool:
        with _locked(self.folder / "lock"):
            oldest_last = sorted((f for f in _files(self.folder) if f[1] != part), reverse=True)
            used = sum(bytes_ for _, _, bytes_ in oldest_last)
            while used + size > self.limit and oldest_last:
                _, path, bytes_ = oldest_last.pop()
                used -= bytes_ * _evict(path)
            if used + size > self.limit:
                return False
            while True:
                try:
                    os.posix_fallocate(descriptor, 0, size)
                    return True
                except OSError as error:  # the disk is full of other things: ours make way, then we give up
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not oldest_last:
                        raise
                    _evict(oldest_last.pop()[1])

    def _warn(self, error: OSError) -> None:
        _print_once(
            f"warning: the shard cache {self.folder} failed ({error.strerror or error}); samples are read "
            "one by one from their URL, which is slow: free some space, or name another folder with --data.cache"
        )


def _files(folder: Path) -> Iterator[tuple[float, Path, int]]:
    """(age, path, bytes) of all that is ours: what sorts first goes first. Other files in the folder stay."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if _OURS.fullmatch(entry.name):
                    status = entry.stat()
                    # An index is small and mapped for the whole run, so it stays a week longer than shards.
                    age = status.st_mtime + (WEEK if entry.name.endswith(".npy") else 0)
                    yield (0 if entry.name.endswith(".part") else age), Path(entry.path), status.st_size


def _evict(path: Path) -> bool:
    """Remove a file; False for one that is on its way, which its lock shows. A killed download's is removed."""
    if path.suffix != ".part":
        path.unlink(missing_ok=True)
        return True
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False  # finished by now, under another name
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        abandoned = _is_at(descriptor, path)
        if abandoned:
            path.unlink(missing_ok=True)
        return abandoned
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file at `path`, made where absent, which no other thread of the node has meanwhile."""
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield descriptor
                return
        finally:
            if descriptor in _held:  # not so in a child that was forked meanwhile: `_let_go` has closed it
                _held.discard(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


_held: set[int] = set()


def _let_go() -> None:
    """A forked child closes its copies of locked files: were its parent killed, they would keep the locks."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


class _Background:
    """The thread of a process that fetches ahead. It never ends, and never keeps the process from ending."""

    def __init__(self) -> None:
        self._wishes: dict[str, tuple[ShardCache, list[RemoteFile]]] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, name="shards ahead", daemon=True).start()

    def wish(self, wisher: str, cache: ShardCache, files: list[RemoteFile]) -> None:
        with self._changed:
            self._wishes[wisher] = cache, files
            self._changed.notify()

    def _next(self) -> tuple[ShardCache, RemoteFile]:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._wishes)
                wisher = next(iter(self._wishes))
                cache, files = self._wishes.pop(wisher)
                if files:
                    self._wishes[wisher] = cache, files[1:]  # at the end now: the others come first
                    return cache, files[0]

    def _serve(self) -> None:
        while True:
            cache, file = self._next()
            with suppress(Exception):
                descriptor = cache.open(file)
                if descriptor is not None:
                    os.close(descriptor)


@functools.cache
def _background(_process: int) -> _Background:
    """This process's own: a forked child has its parent's object, but not the thread."""
    return _Background()


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
