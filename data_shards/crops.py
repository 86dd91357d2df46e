"""A box on a radiograph into the crop of one tooth."""

import math

import cv2
import numpy as np

MARGIN = 0.05
"""Share of a box's width and height added on each side: annotators draw to the enamel's edge, and the periodontal
ligament just outside belongs to the tooth."""
MIN_SIDE = 8
"""Square pixels, after stretching. Below this a crop shows no structure of a tooth."""


class CropError(ValueError):
    """A box that gives no crop. The message is a reason for the ledger."""


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


def cut(pixels: np.ndarray, bounds: tuple[int, int, int, int], pixel_aspect: float) -> np.ndarray:
    """The crop uint8 [h, w] of `bounds`, resampled so that its pixels are square.

    Bicubic, as `stretch` says.
    """
    x0, y0, x1, y1 = bounds
    crop = pixels[y0:y1, x0:x1]
    if pixel_aspect == 1.0:
        return np.ascontiguousarray(crop)
    wider, taller = stretch(pixel_aspect)
    size = max(1, round((x1 - x0) * wider)), max(1, round((y1 - y0) * taller))
    return cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
