"""Masks into boxes: the connected parts of a binary mask, or of each value or colour of a label image."""

import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from data_shards.decode.dicom_bytes import looks_like_dicom
from data_shards.decode.raster import FORMATS
from data_shards.decode.silence import quiet

SMALLEST_SHARE = 1e-4
"""Of the mask's area. A tooth takes up 50 times as much of a panoramic radiograph; what is smaller is a slip."""
MOST_VALUES = 100
"""52 teeth and some structures. An image with more values or colours is a picture and no mask."""
MOST_PARTS = 1000
"""More connected parts than any dentition has: noise."""
MAP = "a picture, not a mask: of colours, or smooth on black, as a map of gaze or attention"
_MOST_LEVELS, _CLOSE, _MOST_NOISE = 12, 3, 0.08
"""Of a mask that a lossy codec saved: values, gray values that an area varies by, and share of pixels beyond that."""
_COLOURED, _COLOURFUL = 40, 0.002
"""What channels of a coloured pixel differ by, and the share of these in an image with something drawn on it."""
_BLACK, _GRAIN = 0.3, 0.12
"""Share of a map that is black, and its grain in gray values: blurred spots have under 0.09 after JPEG of quality 75,
UFBA-425's radiographs over 1.07, and 0.15 enlarged four times."""
_COARSE = 2.5
"""Gray values that a map differs by from itself at 64 by 64 pixels: maps have 0.5 to 1.2, the same radiographs 3.5."""
_EDGE, _LEAST_SIDE = 13, 48
"""Pixels across which a codec of blocks of 8 blurs an edge; the shorter side of an image below which none is sought."""
GRID = 64
"""Cells of `Mask.cover` in a row and in a column."""
_SOLID = 0.85
"""Share of pixels that are equal to their right neighbour: UFBA-425's radiographs in 16 grays have up to 0.80."""
_DENSEST, _OVERHEAD = 0.8, 4096
"""Bytes a pixel, and beside these, that a mask may have: more than enough, so that none is missed."""
_NEAR = 16  # gray values: smoothing and JPEG leave most of what was white this near to it


class Mask(NamedTuple):
    """`boxes` int32 [n, 4] (x0, y0, x1, y1, end-exclusive) of its parts in the mask's pixels.

    `areas` int32 [n] in pixels; `values` says what each part has for a label: a value, a colour `#rrggbb`, or None in a
    binary mask; `size` is its upright width and height. `cover` is which share of each cell of a grid over it is not
    background, uint8 [GRID, GRID]; `drawn` says that its values lie in solid areas, as those of a picture do not.
    `reason` says why it shows nothing.
    """

    boxes: np.ndarray
    areas: np.ndarray
    values: tuple[int | str | None, ...]
    size: tuple[int, int]
    reason: str = ""
    cover: np.ndarray = np.zeros((0, 0), np.uint8)
    drawn: bool = False

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
    drawn = False
    try:
        with quiet():  # decoders quote what they read
            values, names = _values(raw)
        drawn = bool(np.mean(values[:, 1:] == values[:, :-1]) >= _SOLID) if values.shape[1] > 1 else True
        boxes, areas, labels = _parts(values, names)
    except _MaskError as error:
        none = np.empty((0, 4), np.int32), np.empty(0, np.int32)
        return Mask(*none, (), (1, 1), str(error), drawn=drawn)
    shown = np.isin(values, list(names)).astype(np.float32)
    cover = (255 * cv2.resize(shown, (GRID, GRID), interpolation=cv2.INTER_AREA)).astype(np.uint8)
    size = (values.shape[1], values.shape[0])
    return Mask(boxes, areas, labels, size, "" if len(boxes) else "a mask without parts", cover, drawn)


def may_be_mask(head: bytes, size: int) -> bool:
    """Whether a file may be a mask by its format and its bytes a pixel, of which solid areas need few.

    Only a PNG or JPEG says so by its first bytes; `size` is that of the file, or -1.
    """
    if looks_like_dicom(head):
        return False
    shape = _shape_in(head)
    channels = 3 if head.startswith(b"\x89PNG") and head[25:26] in (b"\2", b"\6") else 1
    return size < 0 or shape is None or size <= channels * _DENSEST * shape[0] * shape[1] + _OVERHEAD


def _shape_in(head: bytes) -> tuple[int, int] | None:
    """Return width and height as a PNG or JPEG states them; None where its first bytes do not."""
    if head.startswith(b"\x89PNG"):
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    at = 2
    while head.startswith(b"\xff\xd8") and at + 9 <= len(head) and head[at] == 0xFF:
        if 0xC0 <= head[at + 1] <= 0xCF and head[at + 1] not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


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
    if len(found) > 2 and values.dtype == np.uint8 and (levels := _levels(values, counts)):
        return _without_noise(values, levels)
    if len(found) > 2 and values.dtype == np.uint8 and _is_smoothed(values, counts):
        return (values > 127).astype(np.uint8), {1: None}
    if len(found) > MOST_VALUES:
        raise _MaskError(MAP if _is_map(values) else f"over {MOST_VALUES} values: a picture, not a mask")
    background = 0 if counts[0] else int(counts.argmax())
    return values, {int(v): None if v == 255 and len(found) == 2 else int(v) for v in found if v != background}


def _is_smoothed(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether gray values, counted, are those of black and white with soft edges: mostly white where not quite black.

    A label image may have 255 for a rim around its parts, but the rim is smaller than they are.
    """
    white = int(counts[255 - _NEAR :].sum())
    if counts[1:].sum() >= 2 * white:
        return False
    if len(np.flatnonzero(counts)) > 8:
        return True
    return not counts[_NEAR + 1 : 255 - _NEAR].any() and not _areas((values > 0) & (values <= _NEAR), 5).any()


def _levels(values: np.ndarray, counts: np.ndarray) -> list[int]:
    """Return the few gray values that an image has but for a lossy codec's noise along edges.

    Empty for a picture, and for an image without such noise: in which every value that it has fills some area.
    """
    left, levels = counts.astype(np.int64), list[int]()
    least = SMALLEST_SHARE * values.size
    while len(levels) < _MOST_LEVELS and left.max() > least:
        level = int(left.argmax())
        levels.append(level)
        left[max(0, level - _CLOSE) : level + _CLOSE + 1] = 0
    others = [int(v) for v in np.flatnonzero(counts) if v not in levels]
    if min(values.shape) < _LEAST_SIDE or not others or left.sum() >= _MOST_NOISE * values.size:
        return []
    if len(others) <= MOST_VALUES and any(_areas(values == v, 5).any() for v in others):
        return []
    off, solid = np.ones(values.shape, bool), 0
    for level in levels:
        near = np.abs(values.astype(np.int16) - level) <= _CLOSE
        off, solid = off & ~near, solid + int(_areas(near, 5).sum())
    return [] if _areas(off, 9).any() or solid < _SOLID * values.size else sorted(levels)


def _without_noise(values: np.ndarray, levels: list[int]) -> tuple[np.ndarray, dict[int, int | str | None]]:
    """Return the level of each pixel: of the levels with an area close by the one that is nearest in value.

    So the blurred edge between two areas is parted at half, and is no seam of a third level.
    """
    nearest = np.zeros_like(values)
    best = np.full(values.shape, 256, np.int16)
    for level in levels:
        distance = np.abs(values.astype(np.int16) - level)
        area = _areas(distance <= _CLOSE, 5)
        better = (cv2.dilate(area, np.ones((_EDGE, _EDGE), np.uint8)) > 0) & (distance < best)
        nearest[better], best[better] = level, distance[better]
    background = 0 if levels[0] <= _CLOSE else int(np.bincount(nearest.ravel()).argmax())
    nearest[(nearest == background) | (nearest <= _CLOSE)] = 0
    found = [int(v) for v in np.unique(nearest) if v]
    return nearest, {v: None if len(found) == 1 else v for v in found}


def _areas(shown: np.ndarray, side: int) -> np.ndarray:
    """Return the parts of a binary image that a square of this side fits into."""
    return cv2.morphologyEx(shown.astype(np.uint8), cv2.MORPH_OPEN, np.ones((side, side), np.uint8))


def _is_map(values: np.ndarray) -> bool:
    """Whether a gray image is smooth on black, as a blurred map of where somebody looked; radiographs have grain."""
    if values.dtype != np.uint8:
        return False
    shown = values > values.min() + 2
    black = 1 - shown.mean()
    if black < _BLACK or not shown.any():
        return False
    grain = cv2.absdiff(values, cv2.medianBlur(values, 3))[shown].mean()
    small = cv2.resize(values, (GRID, GRID), interpolation=cv2.INTER_AREA)
    coarse = cv2.absdiff(values, cv2.resize(small, values.shape[::-1], interpolation=cv2.INTER_CUBIC))[shown].mean()
    return bool(grain < _GRAIN and (coarse < _COARSE or black > 1 - _BLACK / 2))


def _colours(pixels: np.ndarray) -> tuple[np.ndarray, dict[int, int | str | None]]:
    opaque = np.where(pixels[..., 3:] > 0, pixels[..., :3], 0).astype(np.int32)
    if (np.ptp(opaque, axis=2) == 0).all():
        return _numbers(opaque[..., 0].astype(np.uint8))
    packed = opaque[..., 0] << 16 | opaque[..., 1] << 8 | opaque[..., 2]
    found, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    if len(found) > MOST_VALUES:
        coloured = np.mean(np.ptp(opaque, axis=2) > _COLOURED) > _COLOURFUL
        raise _MaskError(MAP if coloured else f"over {MOST_VALUES} colours: a picture, not a mask")
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
