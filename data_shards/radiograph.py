"""Bytes of an image file into one gray 8-bit radiograph."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "JPEG2000", "GIF", "PPM")
"""What is decoded, by content. Pillow's other readers (PostScript, vector, icons) hold no radiographs."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs; a panoramic radiograph has 4 to 10 million pixels."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors deliver."""

_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"GIF8")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".gif", ".pgm", ".ppm")


class RadiographError(ValueError):
    """An image that cannot be a radiograph. The message is a reason for the ledger and holds no name."""


class Radiograph(NamedTuple):
    """`pixels` uint8 [H, W], dense is bright as stored, upright; `bits` the depth found before the turn to 8."""

    pixels: np.ndarray
    bits: int


def looks_like_image(head: bytes, name: str) -> bool:
    """Whether the first bytes are an image's, or the name promises one (then reading it will say what is wrong)."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head.startswith(_SIGNATURES) or name.lower().endswith(_SUFFIXES)


def decode(raw: bytes) -> Radiograph:
    """Decode an image file of a format in FORMATS, apply its EXIF orientation, and turn it to 8-bit gray.

    Colour becomes luma (ITU-R BT.601), palettes are resolved, alpha is dropped, bilevel becomes 0 and 255. 16-bit
    values lose their lowest bits so that the image's maximum, rounded up to 8, 10, 12, 14 or 16 bits, fits in 8: 12
    bits stored in 16 do not turn black. All metadata is left behind. Raises RadiographError.
    """
    if not raw:
        raise RadiographError("an empty file")
    if raw.startswith(b"version https://git-lfs"):
        raise RadiographError("a Git LFS pointer: fetch the file that it stands for")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
                return _to_gray(image)
    except RadiographError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RadiographError(f"over {MAX_PIXELS} pixels, taken for a decompression bomb") from None
    except UnidentifiedImageError:
        raise RadiographError("not an image of a known format, whatever its name says") from None
    except Exception:  # Pillow's readers raise anything from OSError to struct.error on damaged files
        raise RadiographError("the image is damaged or cut short") from None


def _to_gray(image: Image.Image) -> Radiograph:
    if image.mode == "F":
        raise RadiographError("floating-point pixels without a stated range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _to_eight_bits(np.asarray(image))
    if image.mode in ("P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return Radiograph(np.array(image.convert("L"), dtype=np.uint8), 8)


def _to_eight_bits(values: np.ndarray) -> Radiograph:
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= 1 << DEPTHS[-1]:
        raise RadiographError("pixel values outside 0 to 65535: save it with 8 or 16 bits")
    bits = next(d for d in DEPTHS if highest < 1 << d)
    return Radiograph((values.astype(np.uint16) >> (bits - 8)).astype(np.uint8), bits)
