"""A decoded radiograph, and how many bits of a pixel say something."""

from typing import Any, NamedTuple

import numpy as np

MAX_PIXELS = 89_478_485
"""Of one image (Pillow's own limit against decompression bombs); a panoramic radiograph has 4 to 10 million."""
MAX_FRAMES = 1000
"""Images read of one file."""
DAMAGED = "the image is damaged or cut short"
BOMB = f"over {MAX_PIXELS} pixels, taken for a decompression bomb"
FULL_RANGE = "full range"
"""The fact `window` of a radiograph whose stated DICOM window clips most of the image, so that it is not applied."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors deliver."""


class RadiographError(ValueError):
    """An image that cannot be a radiograph. The message is a reason for the ledger: no name, path or header value."""


class Radiograph(NamedTuple):
    """One upright gray image, dense bright.

    `pixels` uint8 or uint16 [H, W], 0 to 2^`bits` - 1 (or to 255 where the highest 8 bits were asked for); `bits` the
    depth found in the source, 8 to 16; `pixel_aspect` the declared width of a pixel over its height; `facts` technical
    metadata, numbers and words of closed lists only; `patient` the header's patient id, to be hashed and never
    written, "" where there is none.
    """

    pixels: np.ndarray
    bits: int
    pixel_aspect: float
    facts: dict[str, Any]
    patient: str


def check_size(width: int, height: int) -> None:
    """Raise RadiographError where an image has more than MAX_PIXELS, before anything of it is decoded."""
    if width * height > MAX_PIXELS:
        raise RadiographError(BOMB)


def depth_of(lowest: int, highest: int) -> int:
    """Bits of DEPTHS that hold the values from `lowest` to `highest`: as two's complement where any is negative."""
    for bits in DEPTHS:
        least, top = (-(1 << bits - 1), 1 << bits - 1) if lowest < 0 else (0, 1 << bits)
        if least <= lowest and highest < top:
            return bits
    raise RadiographError("pixel values of more than 16 bits: save it with 8 or 16 bits")


def of_integers(values: np.ndarray, declared: int | None = None) -> tuple[np.ndarray, int]:
    """Integers of any type [H, W] as uint8 or uint16 and their bits.

    `declared` bits are believed if the values fit, but 16, which tell of the container only; otherwise the values'
    range decides (`depth_of`). Where a value is negative, all are lifted by half of the depth, so that the order of
    gray stays.
    """
    lowest, highest = int(values.min()), int(values.max())
    bits = depth_of(lowest, highest)
    if declared and 8 <= declared < 16 and _fits(lowest, highest, declared):
        bits = declared
    lifted = values.astype(np.int32) + (1 << bits - 1) if lowest < 0 else values
    return lifted.astype(np.uint8 if bits == 8 else np.uint16), bits


def _fits(lowest: int, highest: int, bits: int) -> bool:
    return highest < 1 << bits - (lowest < 0) and lowest >= -(1 << bits - 1)


def of_floats(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Floating-point values [H, W]: 0 to 1 is the full range of 16 bits, whole numbers are as integers.

    Anything else states no range and raises RadiographError.
    """
    if np.isfinite(values).all():
        if values.min() >= 0 and values.max() <= 1:
            return np.rint(values.astype(np.float64) * 65535).astype(np.uint16), 16
        if np.abs(values).max() < 1 << 31 and np.array_equal(values, np.rint(values)):
            return of_integers(values.astype(np.int64))
    raise RadiographError(
        "floating-point pixels that are neither 0 to 1 nor whole numbers have no stated range: save it with 16 bits"
    )


def highest_eight(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The highest 8 of `bits` bits of `pixels`, uint8."""
    return pixels if pixels.dtype == np.uint8 else (pixels >> (bits - 8)).astype(np.uint8)
