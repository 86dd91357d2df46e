"""What an archive may ask of the machine: how large, how deep, how much from how little. Judged on actual bytes."""

from data_shards.errors import MemberError

MAX_MEMBER_BYTES = 1 << 30
"""A member over 1 GiB is no radiograph (the largest scans are some 100 MB) but may be a decompression bomb."""
MAX_RATIO = 200
"""Bytes that may come out for one that went in. Radiographs give 1 to 10, masks as bitmaps some 100, bombs 1000."""
FREE_BYTES = 64 << 20
"""So much may come out whatever went in: a small file of one colour has a ratio of 1000 and harms nobody."""
FREE_IN_ALL = 1 << 30
"""The same for all that is in an outermost archive, at any depth, together."""
MAX_DEPTH = 4
"""Archives inside one another, the outermost counted. Clinics send two or three; a bomb multiplies at each."""
MAX_WINDOW = 512 << 20
"""What a decoder may remember: 7-Zip's and zstd's highest settings ask for 256 and 128 MiB, hostile files for 4 GiB."""
MAX_TAR_HEADER = 16 << 10
"""A tar's header for one long name or for attributes; names end at 4 KiB in every file system."""
SPOOL_GB = 20.0
"""Size in 10^9 bytes of the temporary file for inner archives; a larger one is better packed as a source of its own."""

BOMB = (
    f"a decompression bomb, over {MAX_RATIO} times its stored size: unpack it yourself if you trust it, and pack that"
)


class Expansion:
    """Bytes that came out of `packed` ones. `whole` is that of the outermost archive, which counts all inside it."""

    def __init__(self, packed: int = 0, whole: "Expansion | None" = None) -> None:
        self._packed, self._given, self._whole = packed, 0, whole
        self._free = FREE_BYTES if whole else FREE_IN_ALL  # so that one bomb does not use up what the rest needs

    def take(self, size: int) -> None:
        """Count compressed bytes."""
        self._packed += size

    def give(self, size: int) -> None:
        """Count what came out of them. Raises MemberError where that is out of all proportion."""
        self._given += size
        if self._given > max(self._free, MAX_RATIO * self._packed):
            raise MemberError(BOMB)
        if self._whole is not None:
            self._whole.give(size)


def too_large(limit: int) -> str:
    """The reason for refusing a member of more than `limit` bytes."""
    return f"over {limit >> 20} MiB, larger than any radiograph or table"
