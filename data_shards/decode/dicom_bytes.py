"""The form of a DICOM file's bytes: whether it is one, how far it inflates, how large its compressed images are."""

import zlib
from typing import Literal

from data_shards.decode.bit_depth import BOMB, DAMAGED, MAX_PIXELS, RadiographError

MAX_INFLATED = 4 * MAX_PIXELS
"""Bytes of a deflated file that are inflated."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GROUPS = (0x0002, 0x0008)
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT_VRS = (
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
)


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are DICOM: with its preamble, or beginning with elements of group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    return any(_begins_with_elements(head, order) for order in ("little", "big"))


def _begins_with_elements(head: bytes, order: Literal["little", "big"]) -> bool:
    """Whether three elements follow each other, in ascending order."""
    at, before = 0, -1
    for place in range(3):
        if len(head) < at + 8:
            return False
        group, tag = (int.from_bytes(head[at + i : at + i + 2], order) for i in (0, 2))
        if (place == 0 and group not in _GROUPS) or (group << 16 | tag) <= before:
            return False
        before = group << 16 | tag
        kind = head[at + 4 : at + 6]
        if kind in _LONG_VRS:
            at += 12 + int.from_bytes(head[at + 8 : at + 12], order)
        elif kind in _SHORT_VRS:
            at += 8 + int.from_bytes(head[at + 6 : at + 8], order)
        elif order == "little" and head[at + 6 : at + 8] == b"\0\0":  # implicit: an early element is short
            at += 8 + int.from_bytes(head[at + 4 : at + 8], order)
        else:
            return False
    return True


def check_inflated(raw: bytes) -> None:
    """Raise RadiographError where a file of the deflated transfer syntax inflates beyond MAX_INFLATED bytes."""
    start = 132 if raw[128:132] == b"DICM" else 0
    end = _end_of_meta(raw, start)
    if _DEFLATED not in raw[start : min(end, start + 65536)]:
        return
    if end >= len(raw):
        raise RadiographError(DAMAGED)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(raw[end:], MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise RadiographError(BOMB)


def _end_of_meta(raw: bytes, at: int) -> int:
    """Where the elements of group 2 that begin at `at` end; their group length may be wrong or absent."""
    while at < len(raw) and raw[at : at + 2] == b"\x02\0":
        place, size = (8, 4) if raw[at + 4 : at + 6] in _LONG_VRS else (6, 2)
        at += place + size + int.from_bytes(raw[at + place : at + place + size], "little")
    return at


def coded_size(codestream: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None for others (RLE has no header)."""
    if codestream.startswith(b"\xff\xd8"):
        at = _frame_header(codestream)
        return int.from_bytes(codestream[at + 7 : at + 9], "big"), int.from_bytes(codestream[at + 5 : at + 7], "big")
    at = codestream.find(b"\xff\x4f\xff\x51")
    if at < 0:
        return None
    right, bottom, left, top = (int.from_bytes(codestream[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    return right - left, bottom - top


def guessed_syntax(codestream: bytes) -> str:
    """The UID of a transfer syntax whose decoder reads this codestream."""
    if codestream.startswith(b"\xff\x4f\xff\x51"):
        return "1.2.840.10008.1.2.4.91"
    if not codestream.startswith(b"\xff\xd8"):
        return "1.2.840.10008.1.2.5"
    kind = codestream[_frame_header(codestream) + 1]
    return "1.2.840.10008.1.2.4." + {0xC0: "50", 0xC1: "51", 0xC3: "57", 0xF7: "81"}.get(kind, "50")


def _frame_header(codestream: bytes) -> int:
    """Where the frame header (SOF) of a JPEG or JPEG-LS starts (ISO/IEC 10918-1, B.1.1.3)."""
    at = 2
    while at + 9 <= len(codestream) and codestream[at] == 0xFF:
        kind = codestream[at + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            return at
        at += 1 if kind == 0xFF else 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    raise RadiographError(DAMAGED)
