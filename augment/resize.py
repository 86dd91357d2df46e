"""The deterministic resize of evaluation and downstream use, alike in shape to what the training views show."""

import cv2
import numpy as np

from augment.gray_levels import checked

MAX_STRETCH = 1.33
"""How far the shape of what is shown may be stretched, either way; what is missing then is filled by reflection."""

BORDER = cv2.BORDER_REFLECT
"""What lies beyond the image: its mirror image about the edge. Of tooth crops from panoramics (UFBA-425, 70 % of them
narrower than 3:4 by more than `MAX_STRETCH`) raw-pixel k-NN told tooth types at 0.805 with it, 0.756 with black."""

RESIZE_RULE = (
    "the gray levels stay as they are (white is 255 of 8 bits, 65535 of 16); an image whose aspect ratio differs from "
    "the target's by more than a factor of 1.33 is extended evenly on two sides, until it does not, by reflection "
    "about its edges (OpenCV BORDER_REFLECT); then it is resized to the target: area averaging along an axis that "
    "shrinks (INTER_AREA), bilinear along one that grows"
)
"""`fit` in words, for the facts file beside the weights."""


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `image` [h, w] to `size` (H, W) by `RESIZE_RULE`; returns the same dtype [H, W].

    uint8, uint16 (0 to 65535) and float32 (0 to 1). Raises `ViewError` for any other image.
    """
    image = checked(image)
    h, w = image.shape
    height, width = (round(side) for side in shown_size(h, w, size))
    if (height, width) != (h, w):
        top, left = (height - h) // 2, (width - w) // 2
        image = cv2.copyMakeBorder(image, top, height - h - top, left, width - w - left, BORDER)
    return resized(image, size)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` stretched to `size` (H, W) as a new array: area averaging where it shrinks, bilinear where it grows."""
    height, width = image.shape[:2]
    shrunk = (min(height, size[0]), min(width, size[1]))
    if shrunk != (height, width):
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # a copy where the size is reached


def shown_size(height: float, width: float, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of what a view of `size` (H, W) shows around a rectangle of `height` x `width`.

    The rectangle itself where its aspect is within `MAX_STRETCH` of the view's, else the rectangle made wider or
    taller until it is.
    """
    relative = width / height * size[0] / size[1]
    if relative * MAX_STRETCH < 1:
        width /= relative * MAX_STRETCH
    elif relative > MAX_STRETCH:
        height *= relative / MAX_STRETCH
    return height, width
