"""Small pictures inside annotations: where a mask lies in them."""

import io
import warnings

import numpy as np
from PIL import Image

_MOST_PIXELS = 1 << 26


def png_bounds(raw: bytes) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 (end-exclusive) of what is opaque and not black in a PNG; None where nothing is.

    Raise ValueError where it cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError("a mask of too many pixels")
                alpha = image.mode in ("RGBA", "LA") or "transparency" in image.info
                pixels = np.asarray(image.convert("RGBA"))[..., 3] if alpha else np.asarray(image.convert("L"))
                if image.mode == "P" and not alpha:
                    pixels = np.asarray(image)
    except Exception:  # Pillow's readers raise anything on damaged files
        raise ValueError("not a PNG") from None
    return bounds_of(pixels)


def bounds_of(pixels: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x0, y0, x1, y1 (end-exclusive) of what is not 0 in [H, W]; None where nothing is."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
