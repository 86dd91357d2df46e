"""Masks into boxes: the connected parts of a binary mask, or of each value or colour of a label image."""

import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from data_shards.images import FORMATS
from data_shards.quiet import quiet

SMALLEST_SHARE = 1e-4
"""Of the mask's area. A tooth takes up 50 times as much of a panoramic radiograph; what is smaller is a slip."""
MOST_VALUES = 100
"""52 teeth and some structures. An image with more values or colours is a picture and no mask."""
MOST_PARTS = 1000
"""More connected parts than any dentition has: noise."""
_NEAR = 16  # gray values: smoothing and JPEG leave most of what was white this near to it


class Mask(NamedTuple):
    """`boxes` int32 [n, 4] (x0, y0, x1, y1, end-exclusive) of its parts in the mask's pixels.

    `areas` int32 [n] in pixels; `values` says what each part has for a label: a value, a colour `#rrggbb`, or None in a
    binary mask; `size` is its upright width and height. `reason` says why it shows nothing.
    """

    boxes: np.ndarray
    areas: np.ndarray
    values: tuple[int | str | None, ...]
    size: tuple[int, int]
    reason: str = ""

    @property
    def smallest(self) -> float:
        """Parts under this area in pixels are slips of the hand."""
        return SMALLEST_SHARE * self.size[0] * self.size[1]


class _MaskError(ValueError):
    """No mask. The message is a reason for the ledger."""


def read_mask(raw: bytes) -> Mask:
    """The parts of a mask, ordered by value, then from top to bottom. One that is none has a `reason`.

    Background is 0 (black, transparent), or the commonest value where there is no 0. Parts are 8-connected. A gray
    image that is nearly black and white, as JPEG and smoothing leave it, is parted at half.
    """
    try:
        with quiet():  # decoders quote what they read
            values, names = _values(raw)
        boxes, areas, labels = _parts(values, names)
    except _MaskError as error:
        return Mask(np.empty((0, 4), np.int32), np.empty(0, np.int32), (), (1, 1), str(error))
    return Mask(boxes, areas, labels, (values.shape[1], values.shape[0]), "" if len(boxes) else "a mask without parts")


def _values(raw: bytes) -> tuple[np.ndarray, dict[int, int | str | None]]:
    """Whole numbers [H, W], and what each that is not background means; 0 never means anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=(*FORMATS, "TIFF")) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _MaskError("a mask of too many pixels, taken for a decompression bomb") from None
    except Exception:  # Pillow's readers raise anything from OSError to struct.error on damaged files
        raise _MaskError("a mask that is damaged, empty or in an unknown format") from None
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), {1: None}
    if image.mode in ("L", "P") or image.mode.startswith("I"):
        return _numbers(np.asarray(image))
    if image.mode == "F":
        raise _MaskError("a mask of floating-point values: save it with whole numbers")
    return _colours(np.asarray(image.convert("RGBA")))


def _numbers(values: np.ndarray) -> tuple[np.ndarray, dict[int, int | str | None]]:
    if values.min() < 0 or values.max() > 65535:
        raise _MaskError("a mask with values outside 0 to 65535")
    counts = np.bincount(values.ravel())
    found = np.flatnonzero(counts)
    if len(found) > 2 and values.dtype == np.uint8 and _is_smoothed(counts):
        return (values > 127).astype(np.uint8), {1: None}
    if len(found) > MOST_VALUES:
        raise _MaskError(f"over {MOST_VALUES} values: a picture, not a mask")
    background = 0 if counts[0] else int(counts.argmax())
    return values, {int(v): None if v == 255 and len(found) == 2 else int(v) for v in found if v != background}


def _is_smoothed(counts: np.ndarray) -> bool:
    """Whether gray values, counted, are those of black and white with soft edges: mostly white where not quite black.

    A label image may have 255 for a rim around its parts, but the rim is smaller than they are.
    """
    white = int(counts[255 - _NEAR :].sum())
    return counts[1:].sum() < 2 * white and len(np.flatnonzero(counts)) > 8


def _colours(pixels: np.ndarray) -> tuple[np.ndarray, dict[int, int | str | None]]:
    opaque = np.where(pixels[..., 3:] > 0, pixels[..., :3], 0).astype(np.int32)
    if (np.ptp(opaque, axis=2) == 0).all():
        return _numbers(opaque[..., 0].astype(np.uint8))
    packed = opaque[..., 0] << 16 | opaque[..., 1] << 8 | opaque[..., 2]
    found, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    if len(found) > MOST_VALUES:
        raise _MaskError(f"over {MOST_VALUES} colours: a picture, not a mask")
    background = 0 if found[0] == 0 else int(counts.argmax())
    names: dict[int, int | str | None] = {i + 1: f"#{c:06x}" for i, c in enumerate(found) if i != background}
    return (inverse.reshape(packed.shape) + 1).astype(np.uint8), names


def _parts(
    values: np.ndarray, names: dict[int, int | str | None]
) -> tuple[np.ndarray, np.ndarray, tuple[int | str | None, ...]]:
    boxes, areas = [np.empty((0, 4), np.int32)], [np.empty(0, np.int32)]
    labels: list[int | str | None] = []
    bounds = ndimage.find_objects(values)  # by value from 1: one pass over the mask, not one for each value
    for value, name in names.items():
        rows, columns = bounds[value - 1]
        left, top = columns.start, rows.start
        inside = (values[rows, columns] == value).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
        found = stats[1:]  # the first is what lies between
        if len(labels) + len(found) > MOST_PARTS:
            raise _MaskError(f"over {MOST_PARTS} parts: noise, not a mask of teeth")
        found = found[np.lexsort((found[:, cv2.CC_STAT_LEFT], found[:, cv2.CC_STAT_TOP]))]
        start = found[:, :2] + (left, top)
        boxes.append(np.hstack([start, start + found[:, 2:4]]).astype(np.int32))
        areas.append(found[:, cv2.CC_STAT_AREA].astype(np.int32))
        labels += [name] * len(found)
    return np.vstack(boxes), np.concatenate(areas), tuple(labels)
