"""Where every sample lies: (shard, offset, length) of its image and its metadata, found by walking tar headers.

One walk serves both our own shards, after packing, and tars that others wrote. Only headers are read, so a shard of
any size costs one small read a member.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_shards.errors import ShardError

INDEX_DTYPE = np.dtype(
    [("shard", "<u4"), ("image", "<u8"), ("image_size", "<u4"), ("meta", "<u8"), ("meta_size", "<u4")]
)
"""One sample, 28 bytes: number of its shard, byte offset and length of the image and of the JSON (length 0: none)."""

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
BLOCK = 512
_KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # as webdataset splits: at the first dot of the base name


class Member(NamedTuple):
    """A regular file in a tar: its name, and the offset and length of its bytes."""

    name: str
    offset: int
    size: int


def split_name(name: str) -> tuple[str, str] | None:
    """`a/b.c.png` -> (`a/b`, `c.png`), the WebDataset key and suffix; None where the name has no suffix."""
    match = _KEY_AND_SUFFIX.match(name)
    return (match[1], match[2].lower()) if match else None


def name_in_header(header: bytes) -> str:
    """The member name that one 512-byte tar header holds (up to 255 characters with the USTAR prefix)."""
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def walk_tar(path: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar (USTAR, GNU or pax), reading headers only.

    Raises ShardError where the file ends early, has no end mark, or a header's checksum is wrong.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        yield from _walk(fd, os.fstat(fd).st_size, path)
    finally:
        os.close(fd)


def _walk(fd: int, total: int, path: Path) -> Iterator[Member]:
    position, name, size_above = 0, "", -1  # name and size_above: what an extended header said of the next member
    while True:
        header = os.pread(fd, BLOCK, position)
        if len(header) < BLOCK:
            raise ShardError(f"the shard {path} is cut short at byte {total}: copy or pack it again")
        if header == bytes(BLOCK):
            return
        size = _size_in(header)
        if size is None:
            if position == 0:
                raise ShardError(f"{path} is no shard: pack it with `python -m data_shards pack`, or copy it again")
            raise ShardError(f"the shard {path} has a damaged tar header at byte {position}: copy or pack it again")
        kind = header[156:157]
        data = position + BLOCK
        if kind in (b"0", b"\0", b"7") and size_above >= 0:
            size = size_above
        if data + size > total:
            raise ShardError(f"the shard {path} is cut short at byte {total}: copy or pack it again")
        if kind == b"L":
            name = _text(os.pread(fd, size, data))
        elif kind == b"x":
            fields = _pax(os.pread(fd, size, data))
            name = fields.get("path", name)
            size_above = int(fields["size"]) if re.fullmatch(r"[0-9]{1,19}", fields.get("size", "")) else -1
        elif kind != b"g":
            if kind in (b"0", b"\0", b"7"):
                yield Member(name or name_in_header(header), data, size)
            name, size_above = "", -1
        position = data + -(-size // BLOCK) * BLOCK


def index_shards(paths: list[Path]) -> np.ndarray:
    """Index every sample with an image (png, jpg, jpeg, webp; `.json` beside it) in these tars, in their order.

    Returns a structured array [samples] of INDEX_DTYPE; `shard` counts along `paths`. Members of one sample are
    adjacent, as WebDataset demands. Raises ShardError as `walk_tar` does.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for number, path in enumerate(paths):
        key, image, meta = None, None, None
        for member in walk_tar(path):
            split = split_name(member.name)
            if split is None:
                continue
            if split[0] != key:
                _add(rows, number, image, meta)
                key, image, meta = split[0], None, None
            if split[1] in IMAGE_SUFFIXES and image is None:
                image = member
            elif split[1] == "json":
                meta = member
        _add(rows, number, image, meta)
    return np.array(rows, dtype=INDEX_DTYPE)


def _add(rows: list[tuple[int, int, int, int, int]], shard: int, image: Member | None, meta: Member | None) -> None:
    if image is not None:
        place = (meta.offset, meta.size) if meta is not None else (0, 0)
        rows.append((shard, image.offset, image.size, *place))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _number(raw: bytes) -> int:
    """A tar number: octal text, or base 256 where the first bit is set (files over 8 GiB)."""
    if raw[0] & 0x80:
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    digits = raw.split(b"\0", 1)[0].strip() or b"0"
    if not digits.isdigit():  # int would take a sign
        raise ValueError
    return int(digits, 8)


def _size_in(header: bytes) -> int | None:
    """The member's size, or None where the header's checksum or numbers are wrong."""
    try:
        holds = _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
        return _number(header[124:136]) if holds else None
    except ValueError:
        return None


def _pax(raw: bytes) -> dict[str, str]:
    """The `length key=value` records of a pax header."""
    fields: dict[str, str] = {}
    while number := re.match(rb"([0-9]{1,19}) ", raw):
        length = int(number[1])
        if length <= number.end():
            break
        key, _, value = raw[number.end() : length].rstrip(b"\n").partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        raw = raw[length:]
    return fields
