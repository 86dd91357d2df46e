"""What a pack has converted so far, in a folder that outlives a killed process.

`spool` holds the tar members of every file converted, `journal.jsonl` a line for each: what became of it and where its
members lie. A line is written after its members, so what a kill cuts short is the end of either, which is cut off. The
CRC-32 of the members stands in the line and that of the line before it, so what a disk lost or changed is made again.
Neither holds a name.
"""

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from data_shards.pack.crop_job import Converted, Frame

SPOOL, JOURNAL = "spool", "journal.jsonl"
_READ = 1 << 20
_CRC = 9  # characters, with the space behind


class Chunk(NamedTuple):
    """The tar members of one radiograph: where they lie in the spool, and how many samples they are."""

    offset: int
    size: int
    samples: int


class Journal:
    """The conversions kept in `folder`, by the digest of their job. Continues what lies there."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, tuple[int, int]] = {}  # of lines in the journal file, by digest
        self._spool = (folder / SPOOL).open("a+b")
        self._lines = (folder / JOURNAL).open("a+b")
        self._end, ends = 0, 0
        self._lines.seek(0)
        for line in self._lines:
            read = _read_line(line)
            if read is None:
                break
            if self._is_whole(read):
                self._places[read["digest"]] = ends, len(line)
                self._end = read["offset"] + read["size"]
            ends += len(line)
        self._lines.truncate(ends)
        self._spool.truncate(self._end)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, digest: str) -> tuple[Converted, list[Chunk]]:
        """What became of a file, without its members, and where those of its frames lie."""
        offset, size = self._places[digest]
        self._lines.seek(offset)
        read = json.loads(self._lines.read(size)[_CRC:])
        frames = [Frame(**frame) for frame in read["frames"]]
        chunks, at = [], read["offset"]
        for frame in frames:
            frame.rejected = [(id_, reason) for id_, reason in frame.rejected]
            chunks.append(Chunk(at, frame.size, frame.samples))
            at += frame.size
        return Converted(digest, read["file"], read["radiograph"], read["reason"], frames), chunks

    def add(self, done: Converted) -> None:
        """Keep a conversion: members first, then its line. Raises OSError on a full disk; then it is not kept."""
        self._spool.write(done.chunk)
        self._spool.flush()
        place = {"offset": self._end, "size": len(done.chunk), "crc": zlib.crc32(done.chunk)}
        fields = {name: value for name, value in vars(done).items() if name not in ("chunk", "frames")}
        text = json.dumps({**fields, **place, "frames": [asdict(frame) for frame in done.frames]}).encode() + b"\n"
        line = b"%08x %s" % (zlib.crc32(text), text)
        at = self._lines.seek(0, os.SEEK_END)
        self._lines.write(line)
        self._lines.flush()
        self._places[done.digest] = at, len(line)
        self._end += len(done.chunk)

    def members(self, chunk: Chunk) -> bytes:
        """The tar members of one radiograph."""
        self._spool.seek(chunk.offset)
        return self._spool.read(chunk.size)

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._spool, self._lines):
            try:
                file.close()
            except OSError:  # a full disk, told already: what could not be written was not kept
                continue

    def _is_whole(self, line: dict[str, Any]) -> bool:
        """Whether the members that a line vouches for are there."""
        self._spool.seek(line["offset"])
        left, crc = line["size"], 0
        for block in _blocks(self._spool, left):
            crc = zlib.crc32(block, crc)
            left -= len(block)
        return left == 0 and crc == line["crc"]


def _blocks(file: Any, size: int) -> Iterator[bytes]:
    while size and (block := file.read(min(size, _READ))):
        size -= len(block)
        yield block


def _read_line(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None for one cut short or damaged."""
    whole = line.endswith(b"\n") and line[:_CRC] == b"%08x " % zlib.crc32(line[_CRC:])
    return dict(json.loads(line[_CRC:])) if whole else None
