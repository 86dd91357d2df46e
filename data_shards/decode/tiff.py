"""TIFF files into gray pages at their full depth."""

import io
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import Image, TiffImagePlugin

from data_shards.decode.bit_depth import (
    DAMAGED,
    MAX_FRAMES,
    Radiograph,
    RadiographError,
    check_size,
    of_floats,
    of_integers,
)
from data_shards.decode.raster import deep_gray, eight_bits, pixel_aspect

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Little and big-endian, TIFF and BigTIFF."""

_BIG_ENDIAN_BIG = SIGNATURES[3]

# TIFF 6.0 tags and values
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 254, 256, 257, 258, 262, 274, 277
_COMPRESSION, _PLANES, _ACROSS, _DOWN, _FORMAT = 259, 284, 282, 283, 339
_TAGS = (
    *(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANES),
    *(_ACROSS, _DOWN, _FORMAT),
)
_READ = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
"""Compressions: none, CCITT, LZW, JPEG, deflate, PackBits. Others depend on how a library was built."""
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _FLOAT = 0, 1, 2, 3
_REDUCED_OR_MASK = 1 | 4


def frames(raw: bytes) -> Iterator[Radiograph | RadiographError]:
    """Every page of a TIFF, upright, gray, at its full depth; a damaged one as an error in its place."""
    for number, (start, tags) in enumerate(_directories(raw)):
        if number == MAX_FRAMES:
            yield RadiographError(f"images after the first {MAX_FRAMES} of a file are not read")
            return
        try:
            yield _decode(raw, start, tags)
        except RadiographError as error:
            yield error
        except Exception:  # damaged tags and strips raise anything
            yield RadiographError(DAMAGED)


def _directories(raw: bytes) -> Iterator[tuple[int, dict[int, Any]]]:
    """Where each page's directory starts, and its tags (none where it is damaged: there the chain ends)."""
    if raw.startswith(_BIG_ENDIAN_BIG):
        raise RadiographError("a big-endian BigTIFF, which is not read: save it as TIFF")
    stream = io.BytesIO(raw)
    directory = TiffImagePlugin.ImageFileDirectory_v2(raw[: 16 if _is_big(raw) else 8])
    start, seen = directory.next, set[int]()
    while start and start not in seen:
        seen.add(start)
        stream.seek(start)
        try:
            directory.load(stream)
            tags = {tag: directory[tag] for tag in directory if tag in _TAGS}
        except Exception:  # struct.error and others; this page is lost, those before it are not
            yield start, {}
            return
        following = directory.next
        yield start, tags
        start = following


def _is_big(raw: bytes) -> bool:
    return 43 in raw[2:4]


def _from_page(raw: bytes, start: int) -> bytes:
    """The file as if the page whose directory is at `start` were its first."""
    order: Literal["little", "big"] = "little" if raw[:2] == b"II" else "big"
    at, size = (8, 8) if _is_big(raw) else (4, 4)
    return raw[:at] + start.to_bytes(size, order) + raw[at + size :]


def _decode(raw: bytes, start: int, tags: dict[int, Any]) -> Radiograph:
    if tags.get(_SUBFILE, 0) & _REDUCED_OR_MASK:
        raise RadiographError("a page that is a reduced copy or a mask of another page")
    check_size(tags[_WIDTH], tags[_HEIGHT])
    if tags.get(_COMPRESSION, 1) not in _READ:
        raise RadiographError("a TIFF compression that is not read: save it with LZW or deflate, or uncompressed")
    page = _from_page(raw, start)
    depth, form = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (_UNSIGNED,)))
    if depth > 8:
        pixels, bits = _deep(page, depth, form, tags)
    else:
        with Image.open(io.BytesIO(page), formats=("TIFF",)) as image:
            image.load()
            gray = eight_bits(image)
        pixels, bits = of_integers(gray.view(np.int8) if form == _SIGNED else gray)
    aspect = pixel_aspect(tags.get(_ACROSS, 1), tags.get(_DOWN, 1), tags.get(_ORIENTATION, 1))
    return Radiograph(pixels, bits, aspect, {"format": "tiff"}, "")


def _deep(page: bytes, depth: int, form: int, tags: dict[int, Any]) -> tuple[np.ndarray, int]:
    """More than 8 bits, or floating point: by OpenCV, which turns pages upright and keeps white at zero."""
    apart = tags.get(_PLANES) == 2 and tags.get(_SAMPLES, 1) > 1  # of which OpenCV returns memory it never wrote
    if tags.get(_SAMPLES, 1) not in (1, 3, 4) or apart:
        raise RadiographError("a TIFF with samples that are not read: save it as gray with 8 or 16 bits")
    values = deep_gray(page)
    declared = depth if depth < 16 else None
    if declared and form != _FLOAT:
        values = values >> 16 - declared  # OpenCV stretches to 16
    pixels, bits = of_floats(values) if form == _FLOAT else of_integers(values, declared)
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return ((1 << bits) - 1 - pixels.astype(np.int32)).astype(pixels.dtype) if inverted else pixels, bits
