"""Which part of a radiograph a view shows, and the one warp that draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from augment.resize import BORDER, MAX_STRETCH, resized, shown_size


class Region(NamedTuple):
    """The rectangle, or sheared rectangle, of a source that a view shows. Lengths are source pixels; (0, 0) is the
    image's corner.

    It may reach beyond the image, where the image is reflected.
    """

    x: float
    """Centre, from the left edge of the image."""
    y: float
    """Centre, from the top edge."""
    width: float
    height: float
    angle: float
    """Rotation of the rectangle about its centre in radians, clockwise as displayed."""
    mirrored: bool
    size: tuple[int, int]
    """Height and width of the view in pixels."""
    shear: float = 0.0
    """How far the rectangle's lower edge is shifted against its upper one, as a fraction of its height."""

    @property
    def matrix(self) -> np.ndarray:
        """float64 [2, 3]: view coordinates (column, row, 1), pixel centres at 0.5, to the source's (x, y)."""
        return np.array(self.coefficients)

    @property
    def coefficients(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """The rows of `matrix` as plain numbers: for one matrix at a time they are faster than arrays."""
        rows, columns = self.size
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        across = (-1 if self.mirrored else 1) * self.width / columns
        down = self.height / rows
        a, b = cos * across, (cos * self.shear - sin) * down
        c, d = sin * across, (sin * self.shear + cos) * down
        half_x, half_y = columns / 2, rows / 2
        return (a, b, self.x - a * half_x - b * half_y), (c, d, self.y - c * half_x - d * half_y)

    @property
    def corners(self) -> np.ndarray:
        """float64 [4, 2]: the (x, y) in the source of the view's corners, from its top left round clockwise."""
        rows, columns = self.size
        return np.array([[0, 0, 1], [columns, 0, 1], [columns, rows, 1], [0, rows, 1]]) @ self.matrix.T

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom if the rectangle is upright and made of whole pixels, else None."""
        if self.angle or self.shear:
            return None
        left, top = self.x - self.width / 2, self.y - self.height / 2
        right, bottom = left + self.width, top + self.height
        whole = left.is_integer() and top.is_integer() and right.is_integer() and bottom.is_integer()
        return (int(left), int(top), int(right), int(bottom)) if whole else None

    @property
    def shrink(self) -> float:
        """Source pixels to a view pixel, along the axis where there are more."""
        return max(self.height / self.size[0], self.width / self.size[1])


def sample_region(
    u: Sequence[float],
    shape: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    aspect_jitter: float,
    mirror_probability: float,
    rotation_probability: float,
    rotation_degrees: float,
    shear: float,
) -> Region:
    """The region of an image of `shape` (h, w) for a view of `size` (H, W) that the 8 even numbers `u` choose.

    Its area is drawn evenly from `scale` (fractions of the image's), its aspect is the view's times e^U(-jitter,
    jitter), its place is even over where it fits upright. A region too wide or too tall for the image takes the
    image's whole width or height and keeps its area, then grows over the edge to what `shown_size` says, so that the
    view is never stretched by more. Of the rotated ones, all are sheared; the others end at whole pixels.
    """
    u_scale, u_aspect, u_x, u_y, u_mirror, u_rotate, u_angle, u_shear = u
    h, w = shape
    area = h * w * (scale[0] + u_scale * (scale[1] - scale[0]))
    aspect = size[1] / size[0] * math.exp((2 * u_aspect - 1) * aspect_jitter)
    width = min(math.sqrt(area * aspect), float(w))
    height = area / width
    if height > h:
        width, height = area / h, float(h)
    x, y = width / 2 + u_x * (w - width), height / 2 + u_y * (h - height)
    height, width = shown_size(height, width, size)
    mirrored = u_mirror < mirror_probability
    if u_rotate < rotation_probability:
        angle = math.radians((2 * u_angle - 1) * rotation_degrees)
        return Region(x, y, width, height, angle, mirrored, size, (2 * u_shear - 1) * shear)
    return _whole(Region(x, y, width, height, 0.0, mirrored, size))


def _whole(region: Region) -> Region:
    """An upright region with its edges moved to the nearest whole pixels, unless that stretches the view too far."""
    left, top = round(region.x - region.width / 2), round(region.y - region.height / 2)
    right, bottom = round(region.x + region.width / 2), round(region.y + region.height / 2)
    width, height = right - left, bottom - top
    stretch = width * region.size[0] / max(1, height * region.size[1])
    if not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        return region
    return Region(left + width / 2, top + height / 2, width, height, 0.0, region.mirrored, region.size)


@dataclass
class Levels:
    """An image and its shrunk copies, made when first asked for and shared by a sample's views."""

    image: np.ndarray
    """[h, w] or [h, w, channels]; uint8, uint16 or float32."""
    _shrunk: dict[float, np.ndarray] = field(default_factory=dict)

    def shrunk(self, factor: float) -> np.ndarray:
        """The image with about `factor` x `factor` pixels averaged into one: rounded to whole pixels a side."""
        if factor == 1:
            return self.image
        if factor not in self._shrunk:
            h, w = self.image.shape[:2]
            size = (max(1, round(w / factor)), max(1, round(h / factor)))
            self._shrunk[factor] = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        return self._shrunk[factor]


def warp(levels: Levels, region: Region, nearest: bool = False) -> np.ndarray:
    """Draw the view of `region`: [H, W] (and channels), the image's dtype.

    A region of whole pixels that is enlarged is cut out and resized as `fit` does it, five times as fast as a warp.
    Any other is one bilinear `cv2.warpAffine`. When the view holds fewer pixels than the region, it reads a copy
    shrunk by about as much, so that detail finer than the view's pixels is averaged instead of aliased. With
    `nearest` the image itself is read and no values are mixed.
    """
    bounds = region.bounds if region.shrink <= 1 and not nearest else None
    if bounds:
        part = _part(levels.image, *bounds)
        return resized(cv2.flip(part, 1) if region.mirrored else part, region.size)
    source = levels.shrunk(1 if nearest else _shrinking(region.shrink))
    along_x, along_y = region.coefficients
    (h, w), (height, width) = levels.image.shape[:2], source.shape[:2]
    return cv2.warpAffine(
        source,
        np.array([_from_centre(along_x, width / w), _from_centre(along_y, height / h)]),
        region.size[::-1],
        flags=(cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
        borderMode=BORDER,
    )


def _from_centre(row: tuple[float, float, float], scale: float) -> tuple[float, float, float]:
    """A row of a matrix to a source resized by `scale`, as OpenCV counts: from the centre of the first pixel."""
    a, b, start = row[0] * scale, row[1] * scale, row[2] * scale
    return a, b, start + ((a + b) / 2 - 0.5)


def _shrinking(shrink: float) -> float:
    """The factor to shrink an image by before a view that holds `shrink` pixels in one.

    From 1.7 on by 2, from 2.7 on by 3 ..., since rounding at a half would leave views softer than `fit` makes them;
    from 1.2 to 1.7 by 1.4.
    """
    return 1.4 if 1.2 <= shrink < 1.7 else max(1, int(shrink + 0.3))


def _part(image: np.ndarray, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """The pixels within these bounds; beyond the image they are its reflection."""
    h, w = image.shape[:2]
    if left >= 0 and top >= 0 and right <= w and bottom <= h:
        return image[top:bottom, left:right]
    x, y = max(0, -left), max(0, -top)
    image = cv2.copyMakeBorder(image, y, max(0, bottom - h), x, max(0, right - w), BORDER)
    return image[top + y : bottom + y, left + x : right + x]
