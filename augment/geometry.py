"""Which part of a radiograph a view shows, and the one warp that draws it."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from augment.resize import BORDER, shown_size


@dataclass(frozen=True)
class Region:
    """The rectangle of a source that a view shows. Lengths are source pixels; (0, 0) is the image's corner.

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

    @property
    def matrix(self) -> np.ndarray:
        """float64 [2, 3]: view coordinates (column, row, 1), pixel centres at 0.5, to the source's (x, y)."""
        rows, columns = self.size
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        across = (-1 if self.mirrored else 1) * self.width / columns
        down = self.height / rows
        a, b, c, d = cos * across, -sin * down, sin * across, cos * down
        half_x, half_y = columns / 2, rows / 2
        return np.array(
            [[a, b, self.x - a * half_x - b * half_y], [c, d, self.y - c * half_x - d * half_y]], np.float64
        )

    @property
    def corners(self) -> np.ndarray:
        """float64 [4, 2]: the (x, y) in the source of the view's corners, from its top left round clockwise."""
        rows, columns = self.size
        return np.array([[0, 0, 1], [columns, 0, 1], [columns, rows, 1], [0, rows, 1]]) @ self.matrix.T

    @property
    def shrink(self) -> float:
        """Source pixels to a view pixel, along the axis where there are more."""
        return max(self.height / self.size[0], self.width / self.size[1])


def sample_region(
    rng: np.random.Generator,
    shape: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    aspect_jitter: float,
    mirror_probability: float,
    rotation_probability: float,
    rotation_degrees: float,
) -> Region:
    """Draw a region of an image of `shape` (h, w) for a view of `size` (H, W).

    Its area is drawn evenly from `scale` (fractions of the image's), its aspect is the view's times e^U(-jitter,
    jitter), its place is even over where it fits unrotated. A region too wide or too tall for the image takes the
    image's whole width or height and keeps its area, then grows over the edge to what `shown_size` says, so that the
    view is never stretched by more. Takes seven numbers from `rng`, whatever the settings.
    """
    u_scale, u_aspect, u_x, u_y, u_mirror, u_rotate, u_angle = rng.random(7).tolist()
    h, w = shape
    area = h * w * (scale[0] + u_scale * (scale[1] - scale[0]))
    aspect = size[1] / size[0] * math.exp((2 * u_aspect - 1) * aspect_jitter)
    width = min(math.sqrt(area * aspect), float(w))
    height = area / width
    if height > h:
        width, height = area / h, float(h)
    x, y = width / 2 + u_x * (w - width), height / 2 + u_y * (h - height)
    height, width = shown_size(height, width, size)
    angle = math.radians((2 * u_angle - 1) * rotation_degrees) if u_rotate < rotation_probability else 0.0
    return Region(x, y, width, height, angle, u_mirror < mirror_probability, size)


@dataclass
class Levels:
    """An image and its copies shrunk by whole factors, made when first asked for and shared by a sample's views."""

    image: np.ndarray
    """[h, w] or [h, w, channels]; uint8, uint16 or float32."""
    _shrunk: dict[int, np.ndarray] = field(default_factory=dict)

    def shrunk(self, factor: int) -> np.ndarray:
        """The image with each `factor` x `factor` square averaged; the last squares are filled up beyond the edge."""
        if factor == 1:
            return self.image
        if factor not in self._shrunk:
            h, w = self.image.shape[:2]
            padded = cv2.copyMakeBorder(self.image, 0, -h % factor, 0, -w % factor, BORDER)
            size = (padded.shape[1] // factor, padded.shape[0] // factor)
            self._shrunk[factor] = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
        return self._shrunk[factor]


def warp(levels: Levels, region: Region, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Draw the view of `region`: [H, W] (and channels), the image's dtype.

    One bilinear `cv2.warpAffine`. When the view holds fewer pixels than the region, it reads a copy shrunk by a whole
    factor, so that detail finer than the view's pixels is averaged instead of aliased. With `cv2.INTER_NEAREST` the
    image itself is read, so that no values are mixed.
    """
    # From 1.7 on by 2, from 2.7 on by 3 ...: rounding at a half would leave views softer than `fit` makes them.
    factor = 1 if interpolation == cv2.INTER_NEAREST else max(1, int(region.shrink + 0.3))
    matrix = region.matrix / factor
    matrix[:, 2] += (matrix[:, 0] + matrix[:, 1]) / 2 - 0.5  # OpenCV counts from the centre of the first pixel
    return cv2.warpAffine(
        levels.shrunk(factor),
        matrix,
        region.size[::-1],
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=BORDER,
    )
