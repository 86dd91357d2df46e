"""Bytes of an image file, of whatever format, into gray radiographs."""

import re
from collections.abc import Iterator
from typing import Literal

from data_shards.decode import dicom, tiff
from data_shards.decode import raster as images
from data_shards.decode.bit_depth import DAMAGED, DEPTHS, MAX_PIXELS, Radiograph, RadiographError, highest_eight
from data_shards.decode.dicom_bytes import looks_like_dicom
from data_shards.decode.silence import quiet

__all__ = [
    "DEPTHS",
    "MAX_PIXELS",
    "Radiograph",
    "RadiographError",
    "decode",
    "frames",
    "highest_eight",
    "looks_like_image",
]

MOST_PIXELS_A_BYTE = 200
"""Pixels of all images of a file for each byte of it, above MAX_PIXELS: lossless codecs save a radiograph as 1 to 5."""
MANY_BOMB = f"images of over {MOST_PIXELS_A_BYTE} pixels for each byte of their file, taken for a decompression bomb"
MOST_SCANS, BYTES_A_SCAN = 1000, 10_000
"""JPEG scans of a file: a progressive image has some 10, a DICOM file one a frame. One of 129 bytes can take 20 ms."""
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
_COST_OF_DAMAGE = MAX_PIXELS // 100
"""Pixels that an image which cannot be decoded counts as: trying took time, and nobody knows its size."""
_SIGNATURES = (*tiff.SIGNATURES, b"\x89PNG", b"\xff\xd8\xff", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"GIF8")
_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(".jp2", ".j2k", ".jpx", ".pnm", ".pgm", ".ppm", ".pbm", ".dcm", ".dicom"),
)
_PNM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def looks_like_image(head: bytes, name: str) -> bool:
    """Whether the first bytes are an image's, or the name promises one (then reading it will say what is wrong)."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    pnm = _PNM.match(head) is not None
    known = webp or bmp or pnm or looks_like_dicom(head)
    return known or head.startswith(_SIGNATURES) or name.lower().endswith(_SUFFIXES)


def decode(raw: bytes, depth: Literal[8, 16] = 8, burned_in: Literal["reject", "keep"] = "reject") -> Radiograph:
    """The first image of a file, as `frames` gives it. Raises RadiographError."""
    first = next(frames(raw, depth, burned_in), None)
    if isinstance(first, Radiograph):
        return first
    raise first or RadiographError("a file without an image")


def frames(
    raw: bytes, depth: Literal[8, 16] = 8, burned_in: Literal["reject", "keep"] = "reject"
) -> Iterator[Radiograph | RadiographError]:
    """Every image of a file, upright and gray; one that cannot be used is its RadiographError, in its place.

    `depth` 8 keeps the highest 8 of the bits found (uint8); 16 keeps all (uint16 where there are more than 8). All
    metadata but the allowed facts is left behind. One error stands for all images after those that a file of its size
    may hold. The first `next` raises RadiographError where the whole file is
    unusable. Nothing is printed or logged, as decoders quote headers.
    """
    if not raw:
        raise RadiographError("an empty file")
    if raw.startswith(b"version https://git-lfs"):
        raise RadiographError("a Git LFS pointer: fetch the file that it stands for")
    is_dicom = looks_like_dicom(raw[:4096])
    if (is_dicom or raw.startswith(_JPEG)) and raw.count(_SCAN) > MOST_SCANS + len(raw) // BYTES_A_SCAN:
        raise RadiographError("thousands of JPEG scans, taken for a decompression bomb")
    if is_dicom:
        found = dicom.frames(raw, burned_in)
    else:
        found = (tiff if raw.startswith(tiff.SIGNATURES) else images).frames(raw)
    started, budget = False, max(MAX_PIXELS, MOST_PIXELS_A_BYTE * len(raw))
    while True:
        try:
            frame = _next(found)
        except RadiographError as error:  # the iterator has ended with it
            if not started:
                raise
            frame = error
        if frame is None:
            return
        started = True
        budget -= frame.pixels.size if isinstance(frame, Radiograph) else _COST_OF_DAMAGE
        if budget < 0:
            yield RadiographError(MANY_BOMB)
            return
        if isinstance(frame, Radiograph) and depth == 8:
            frame = frame._replace(pixels=highest_eight(frame.pixels, frame.bits))
        yield frame


def _next(found: Iterator[Radiograph | RadiographError]) -> Radiograph | RadiographError | None:
    try:
        with quiet():
            return next(found, None)
    except RadiographError:
        raise
    except Exception:  # decoders raise anything on damaged files, and their messages quote headers
        raise RadiographError(DAMAGED) from None
