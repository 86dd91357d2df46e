"""A box on a radiograph into the crop of one tooth."""

import math
from typing import NamedTuple

import cv2
import numpy as np

MARGIN = 0.05
"""Share of a box's width and height added on each side: annotators draw to the enamel's edge, and the periodontal
ligament just outside belongs to the tooth."""
MIN_SIDE = 8
"""Square pixels, after stretching. Below this a crop shows no structure of a tooth."""
MAX_ASPECT = 10.0
"""Longer side over shorter. The longest box of UFBA-425's 11,558 teeth has 6.2; beyond lie strips and slips of hand."""
MIN_CONTRAST = 0.01
"""Standard deviation of the pixels over full scale. The flattest of the same teeth has 0.037."""


class CropError(ValueError):
    """A box that gives no crop. The message is a reason for the ledger."""


class Rules(NamedTuple):
    """How a crop is cut and what is none: the settings of those names (config.PackConfig)."""

    margin: float = MARGIN
    min_side: int = MIN_SIDE
    max_side: int | None = None
    max_aspect: float = MAX_ASPECT
    min_contrast: float = MIN_CONTRAST


def region(
    corners: tuple[float, float, float, float],
    height: int,
    width: int,
    margin: float,
    min_side: float,
    pixel_aspect: float,
) -> tuple[int, int, int, int]:
    """The whole pixels x0, y0, x1, y1 (end-exclusive) of a box in pixels with its margin, clipped to the image.

    Raises CropError for a box that is inverted, empty, outside, or shows under `min_side` square pixels on a side.
    """
    x0, y0, x1, y1 = corners
    if not all(math.isfinite(v) for v in corners):
        raise CropError("its coordinates are not finite")
    if x1 < x0 or y1 < y0:
        raise CropError("an inverted box: its end lies before its start")
    if x1 == x0 or y1 == y0:
        raise CropError("an empty box: it has no area")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise CropError("outside the image")
    wider, taller = stretch(pixel_aspect)
    if min(wider * (min(x1, width) - max(x0, 0)), taller * (min(y1, height) - max(y0, 0))) < min_side:
        raise CropError(f"under {min_side} pixels on a side inside the image")
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = max(0, math.floor(x0 - dx)), max(0, math.floor(y0 - dy))
    return left, top, min(width, math.ceil(x1 + dx)), min(height, math.ceil(y1 + dy))


def stretch(pixel_aspect: float) -> tuple[float, float]:
    """Factors of width and height that make pixels of this displayed width over height square.

    One of them is 1 and neither is below, so that no detail is lost: 1.767 widens by 1.767, 0.5 doubles the height.
    """
    return max(1.0, pixel_aspect), max(1.0, 1.0 / pixel_aspect)


def crop_of(
    pixels: np.ndarray, bits: int, corners: tuple[float, float, float, float], pixel_aspect: float, rules: Rules
) -> np.ndarray:
    """The crop [h, w] of a box in pixels, of the dtype of `pixels` (values of `bits` bits), its pixels square.

    Raises CropError for a box without a region, a crop too long for its width, and one in which nothing is seen.
    """
    height, width = pixels.shape
    bounds = region(corners, height, width, rules.margin, rules.min_side, pixel_aspect)
    crop = cut(pixels, bounds, pixel_aspect, bits, rules.max_side)
    if max(crop.shape) > rules.max_aspect * min(crop.shape):
        raise CropError(f"over {rules.max_aspect:g} times as long as wide")
    if crop.min() == crop.max():
        raise CropError("constant: all its pixels are equal")
    if crop.std() < rules.min_contrast * ((1 << bits) - 1):
        raise CropError(f"blank: its pixels vary by less than {rules.min_contrast:.3g} of full scale")
    return crop


def cut(
    pixels: np.ndarray,
    bounds: tuple[int, int, int, int],
    pixel_aspect: float,
    bits: int = 8,
    max_side: int | None = None,
) -> np.ndarray:
    """The crop [h, w] of `bounds`, resampled so that its pixels are square and no side is over `max_side`.

    Bicubic, as `stretch` says, within 0 to 2^bits - 1; where it shrinks, by averages over areas.
    """
    x0, y0, x1, y1 = bounds
    crop = pixels[y0:y1, x0:x1]
    wider, taller = stretch(pixel_aspect)
    width, height = (x1 - x0) * wider, (y1 - y0) * taller
    smaller = min(1.0, max_side / max(width, height)) if max_side else 1.0
    size = max(1, round(width * smaller)), max(1, round(height * smaller))
    if size == (x1 - x0, y1 - y0):
        return np.ascontiguousarray(crop)
    shrinks = size[0] <= x1 - x0 and size[1] <= y1 - y0
    resized = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized if resized.dtype == np.uint8 else np.minimum(resized, (1 << bits) - 1)  # cubic overshoots
