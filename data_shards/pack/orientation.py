"""Boxes onto upright radiographs, where their annotator saw the image otherwise: unturned, or at another size."""

import io
import warnings
from collections.abc import Callable

from PIL import Image

from data_shards.annotations.base import Corners
from data_shards.annotations.boxes import Box
from data_shards.decode.raster import FORMATS
from data_shards.pack.crop import CropError

_ORIENTATION = 0x0112


def place(box: Box, size: tuple[int, int], orientation: Callable[[], int]) -> Corners:
    """The corners of a box in pixels of the upright radiograph of this width and height, to a thousandth.

    Boxes are taken to be drawn on the upright image, as viewers show it. Where the annotation states the image's width
    and height, they decide: equal to the upright image's, the box stays; to those of the image as stored (its EXIF
    `orientation`, asked for only then, turns it by 90 degrees), the box is turned with it; of the same shape as either
    but another size, the box is scaled too. Raises CropError where they are neither's and the box is in pixels.
    """
    width, height = size
    scales, turn = (1.0, 1.0), 1
    if box.stated is not None and box.stated != size:
        stated = box.stated
        turned = orientation() >= 5
        if not (turned and stated == (height, width)) and _same_shape(stated, size):
            scales = width / stated[0], height / stated[1]
        elif turned and _same_shape(stated, (height, width)):
            scales, turn = (height / stated[0], width / stated[1]), orientation()
        elif not box.relative:  # shares of the sides hold at any size
            raise CropError("its annotation states a width and height that are not its radiograph's")
    if box.relative:
        scales = (height, width) if turn >= 5 else size
    x0, y0, x1, y1 = (c * s for c, s in zip(box.corners, (*scales, *scales), strict=True))
    if turn >= 5:
        x0, y0, x1, y1 = y0, x0, y1, x1  # the first row becomes the first column, then mirrors follow
        if turn in (6, 7):
            x0, x1 = width - x1, width - x0
        if turn in (7, 8):
            y0, y1 = height - y1, height - y0
    return round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)


def exif_orientation(raw: bytes) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1 where none is stated or the file is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=(*FORMATS, "TIFF")) as image:
                found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers raise anything on damaged files
        return 1
    return found if found in range(1, 9) else 1


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled, its sides rounded to whole pixels."""
    (w, h), (width, height) = one, other
    return max((w - 1) / width, (h - 1) / height) < min((w + 1) / width, (h + 1) / height)
