"""Files behind a URL (http, https, s3 and whatever else fsspec opens), read in spite of failures.

Every request asks for a range of bytes of a file whose size is known. A failed request is repeated with growing pauses;
what already came is kept, so a large shard passes over a bad line.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

from data_shards.errors import CorruptError, ShardError

BLOCK_BYTES = 16 << 20
"""Bytes of one request: large beside the cost of a request, small enough to hold in memory and to repeat."""
STALL = 30.0
"""Seconds without a byte after which a connection counts as broken; one request may take ten times as long."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between tries: each pause is twice the one before."""
SMALL = 1 << 30
"""More bytes than any manifest has."""

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Url:
    """A folder or file behind a URL. As text it lacks what may be secret: user, password and query."""

    address: str

    def __truediv__(self, name: str) -> "Url":
        parts = urlsplit(self.address, allow_fragments=False)
        return Url(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl())

    def __str__(self) -> str:
        parts = urlsplit(self.address, allow_fragments=False)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class RemoteFile(NamedTuple):
    """A file that does not change: where it lies, its size in bytes and its SHA-256 (hex)."""

    url: Url
    size: int
    sha256: str


class NotFound(ShardError):
    """There is nothing at that URL."""


class _Failure(Exception):
    """One failed request, in plain words."""

    def __init__(self, words: str, error: Exception | None = None, corrupt: bool = False) -> None:
        super().__init__(words)
        self.kind = CorruptError if corrupt else ShardError
        self.missing = isinstance(error, FileNotFoundError)
        self.permanent = error is not None and _is_permanent(error)


def read_small(url: Url, patience: float) -> bytes:
    """A whole small file, in one request. Raises NotFound at once, other ShardErrors after `patience` seconds."""
    return _persist(lambda: _ask(url, 0, SMALL), url, patience)


def read_range(file: RemoteFile, start: int, end: int, patience: float) -> bytes:
    """The bytes `start` to `end` (exclusive) of a file, unverified. Raises ShardError as `read_small` does."""
    return _persist(lambda: _from(file, start, end), file.url, patience)[: end - start]


def download(file: RemoteFile, sink: BinaryIO, patience: float) -> None:
    """Write a whole file to `sink`, from its start, and verify it; damaged, it is fetched again.

    Raises ShardError after `patience` seconds of failures in a row, and whatever `sink` raises.
    """

    def attempt() -> None:
        digest = hashlib.sha256()
        sink.seek(0)
        for block in _blocks(file, patience):
            digest.update(block)
            sink.write(block)
        sink.flush()
        if digest.hexdigest() != file.sha256:
            raise _Failure(
                "its SHA-256 is not the manifest's; was it uploaded whole, and with this manifest?", corrupt=True
            )

    _persist(attempt, file.url, patience)


def _blocks(file: RemoteFile, patience: float) -> Iterator[bytes]:
    done = 0
    while done < file.size:
        start, end = done, min(done + BLOCK_BYTES, file.size)
        block = _persist(lambda start=start, end=end: _from(file, start, end), file.url, patience)  # type: ignore[misc]
        yield block
        done += len(block)


def _from(file: RemoteFile, start: int, end: int) -> bytes:
    """One request for `start` to `end`: these bytes, or all from `start` on where the server ignores ranges."""
    raw = _ask(file.url, start, end)
    if len(raw) == end - start:
        return raw
    if len(raw) == file.size:
        return raw[start:]
    if len(raw) < end - start:
        raise _Failure(f"it ended after {start + len(raw)} of {file.size} bytes")
    raise _Failure(f"it has {len(raw)} bytes, not the {file.size} of the manifest")


def _persist(attempt: Callable[[], T], url: Url, patience: float) -> T:
    """`attempt` until it succeeds, for `patience` seconds from its first failure on."""
    began, pause = 0.0, FIRST_PAUSE
    while True:
        try:
            return attempt()
        except _Failure as failure:
            now = time.monotonic()
            began = began or now
            left = began + patience - now
            if failure.missing:
                raise NotFound(f"there is no {url}: check the URL, and that the whole folder was uploaded") from None
            if failure.permanent:
                raise ShardError(f"cannot read {url}: {failure}; check the URL and your rights to it") from None
            if left <= 0:
                tried = f"tried for {now - began:.0f} s" if now - began >= 1 else "tried again at once"
                said = f"cannot read {url} ({tried}): {failure}; check the server, then resume"
                raise failure.kind(said) from None
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)


def _ask(url: Url, start: int, end: int) -> bytes:
    filesystem = _filesystem(urlsplit(url.address).scheme, os.getpid(), STALL)
    limit = {"timeout": 10 * STALL} if filesystem.async_impl else {}
    try:
        return bytes(filesystem.cat_file(url.address, start=start, end=end, **limit))
    except Exception as error:  # each of fsspec's backends raises its own
        raise _Failure(_words(error), error) from error


@cache
def _filesystem(scheme: str, _process: int, stall: float) -> Any:
    """fsspec's access to one scheme, made in the process that uses it.

    It is never let go of: a forked child that dropped its parent's would close connections in the epoll set that it
    shares with the parent, which then waits for them in vain. So it is also kept out of fsspec's own store, which
    forgets all on a fork.
    """
    try:
        import fsspec

        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
            options: dict[str, Any] = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        elif scheme in ("s3", "s3a"):
            once = {"total_max_attempts": 1}  # the pauses are ours alone
            options = {"config_kwargs": {"connect_timeout": stall, "read_timeout": stall, "retries": once}}
        else:
            options = {}
        filesystem = fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError:
        if scheme not in ("http", "https", "s3", "s3a"):
            raise _unknown(scheme) from None
        raise ShardError(
            f'{scheme}:// shards need packages that are not installed: pip install -e ".[remote]"'
        ) from None
    except (ValueError, TypeError):
        raise _unknown(scheme) from None
    if scheme in ("s3", "s3a"):
        filesystem.retries = 1
    return filesystem


def _unknown(scheme: str) -> ShardError:
    return ShardError(f"{scheme}:// is not known: use http://, https:// or s3://, or a local folder")


def _is_permanent(error: Exception) -> bool:
    """Whether another try cannot help: nothing there, no right to it, no credentials, a request that is wrong."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
    lacking = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "InvalidURL")
    return isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ in lacking


def _words(error: Exception) -> str:
    """What went wrong, on one line and without secrets; aiohttp puts whole URLs into its messages."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        known = status in set(HTTPStatus)
        return f"the server answered {status}" + (f" {HTTPStatus(status).phrase}" if known else "")
    if "Timeout" in type(error).__name__:
        return f"the server was silent for {STALL:g} s or slower than {10 * STALL:g} s a request"
    if type(error).__name__ in ("ClientPayloadError", "IncompleteRead", "IncompleteReadError"):
        return "the connection broke off"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    line = text.strip().partition("\n")[0] or type(error).__name__
    return re.sub(r"//[^/\s@]*@", "//", re.sub(r"\?\S*", "", line))[:200]
