"""Gray levels of every depth: uint8 to 255, uint16 to 65535 (or fewer bits, raised to them), float32 to 1."""

from collections.abc import Sequence

import cv2
import numpy as np

from augment.config import ViewError

WHITE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}
"""Full scale by dtype."""


def checked(image: np.ndarray, bits: int | None = None) -> np.ndarray:
    """`image` [h, w] if it is uint8, uint16 or float32; with `bits`, a uint16 image of so many, raised to 16.

    2^bits - 1 becomes 65535: without it, 12 bits stored in 16 are nearly black. Raises `ViewError` for another dtype
    or number of axes, an empty image, values above `bits`, and floats outside 0 to 1.
    """
    if image.ndim != 2 or not image.size or image.dtype not in WHITE:
        shape = "x".join(str(n) for n in image.shape) or "no axes"
        raise ViewError(
            f"views are made of non-empty [h, w] images in uint8, uint16 or float32, this one is {image.dtype} of "
            f"{shape}: convert it to one gray channel first"
        )
    if image.dtype == np.float32 and not cv2.checkRange(image, minVal=0.0, maxVal=np.nextafter(np.float32(1), 2))[0]:
        raise ViewError("a float32 image holds values outside 0 (black) to 1 (white): scale it to them first")
    if bits is None or image.dtype != np.uint16 or bits == 16:
        return image
    if not isinstance(bits, int):
        raise ViewError(f"the bits of an image are {bits!r}: give a whole number")
    highest = 2**bits - 1
    if not 1 <= bits <= 16 or image.max() > highest:
        raise ViewError(f"an image of {bits} bits holds the gray {image.max()}: its depth is stated wrongly")
    return np.rint(image * (65535 / highest)).astype(np.uint16)


def unit(image: np.ndarray) -> np.ndarray:
    """float32 from 0 (black) to 1 (white) of uint8, uint16 or float32. Raises `ViewError` for another dtype."""
    if image.dtype not in WHITE:
        raise ViewError(f"views are uint8, uint16 or float32, this one is {image.dtype}: convert it first")
    return image if image.dtype == np.float32 else np.multiply(image, 1 / WHITE[image.dtype], dtype=np.float32)


def from_unit(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of `unit`, clipped to 0 and 1 and rounded to the nearest level."""
    image = np.clip(image, 0, 1)
    return image if dtype == np.float32 else np.rint(image * WHITE[np.dtype(dtype)]).astype(dtype)


def stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images [H, W] of one size as one array [N, H, W]: uint8 if all of them are, else float32 from 0 to 1."""
    if all(image.dtype == np.uint8 for image in images):
        return np.stack(images)
    return np.stack([unit(image) for image in images])
