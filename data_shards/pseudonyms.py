"""Keyed ids: the same patient or file has the same id in every pack of one key, and only the key's owner can tell.

An id is the first 16 hex digits of HMAC-SHA256(key, kind, name) (RFC 2104): 64 bits, so that among ten million inputs
a collision has a chance of 3 in a million. The table from id to path lies beside the key, never with the shards.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from platformdirs import user_config_dir

from data_shards.errors import PackError

SHORTEST_KEY = 16
"""Bytes. A shorter secret can be guessed, and with it every patient number."""


class Key(NamedTuple):
    """The secret, and the table that ids are written to (None: ids that identify nobody need none)."""

    secret: bytes
    table: Path | None

    def id(self, kind: str, *names: str) -> str:
        """The id of a `file`, `radiograph`, `patient` or `box` by its names: 16 hex digits."""
        return self._digest(kind.encode(), *(n.encode("utf-8", "surrogateescape") for n in names))[:16]

    def of_pixels(self, pixels: np.ndarray) -> str:
        """A fingerprint of decoded pixels, 32 hex digits: equal for equal images, whatever file they came in."""
        shape = f"{pixels.dtype.str} {pixels.shape}".encode()
        return self._digest(b"pixels", shape, np.ascontiguousarray(pixels).data)[:32]

    def check(self) -> str:
        """What tells two keys apart without saying anything about them."""
        return self._digest(b"key")[:16]

    def _digest(self, *parts: bytes | memoryview) -> str:
        mac = hmac.new(self.secret, digestmod=hashlib.sha256)
        for part in parts:  # lengths first, so that no two lists of parts are the same message
            mac.update(memoryview(part).nbytes.to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest()


def default_key_file() -> Path:
    """The user's own key, in the user's configuration folder."""
    return Path(user_config_dir("tooth-foundations")) / "key"


def table_beside(key_file: Path) -> Path:
    """The table of the ids made with `key_file`."""
    return key_file.with_name(key_file.name + ".ids.jsonl")


def load_key(key: bytes | str | Path | None) -> tuple[Key, Path | None]:
    """The key in a file (None: the user's own), made with mode 0600 if absent; or `key` itself where it is bytes.

    Returns it, and its file where it was made now. Raises PackError where it cannot be read, made or trusted.
    """
    if isinstance(key, bytes):
        return Key(key, None), None
    path = Path(key) if key is not None else default_key_file()
    try:
        made = _make_key(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise PackError(f"cannot read or make the key {path} ({error.strerror}): name another with --key") from None
    if len(secret) < SHORTEST_KEY:
        raise PackError(f"the key {path} has under {SHORTEST_KEY} bytes and could be guessed: name another with --key")
    return Key(secret, table_beside(path)), path if made else None


def _make_key(path: Path) -> bool:
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another pack made it in this moment
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return True


def remember(table: Path, entries: Iterable[tuple[str, str, str]]) -> None:
    """Append (id, kind, path) to the table, mode 0600, leaving out what it has. Raises PackError if it cannot."""
    try:
        _append(table, entries)
    except OSError as error:
        raise PackError(
            f"cannot write the table of ids {table} ({error.strerror}): make it writable or free some space, then the "
            "same command goes on"
        ) from None


def _append(table: Path, entries: Iterable[tuple[str, str, str]]) -> None:
    wanted = {(id_, path): kind for id_, kind, path in entries}
    for entry in _entries(table):  # of all packs with this key: not to be held in memory
        wanted.pop((entry["id"], entry["path"]), None)
    descriptor = os.open(table, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    size = os.fstat(descriptor).st_size
    cut = size and os.pread(descriptor, 1, size - 1) != b"\n"  # by a kill or a full disk
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write("\n" if cut else "")
        for (id_, path), kind in wanted.items():
            file.write(json.dumps({"id": id_, "kind": kind, "path": path}) + "\n")


def locate(table: Path, id_: str) -> list[tuple[str, str]]:
    """The (kind, path) that `id_` stands for. Raises PackError where the table is absent or does not have it."""
    if not table.is_file():
        raise PackError(f"no table of ids at {table}: name the key of that pack with --key")
    found = [(e["kind"], e["path"]) for e in _entries(table) if e["id"] == id_.strip().lower()]
    if not found:
        raise PackError(f"{table} does not have the id {id_}: check it, or name the key of that pack with --key")
    return found


def _entries(table: Path) -> Iterator[dict[str, str]]:
    if not table.is_file():
        return
    with table.open(encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
                if isinstance(entry, dict) and {"id", "kind", "path"} <= entry.keys():
                    yield entry
            except ValueError:  # a line cut short by a killed pack
                continue
