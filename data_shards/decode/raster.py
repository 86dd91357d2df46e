"""Image files other than TIFF and DICOM (PNG, JPEG, BMP, ...) into gray images at their full depth."""

import io
import re
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_shards.decode.bit_depth import BOMB, DAMAGED, MAX_FRAMES, Radiograph, RadiographError, check_size, of_integers

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "JPEG2000", "GIF", "PPM")
"""What is decoded, by content. Pillow's other readers (PostScript, vector, icons) hold no radiographs."""

_PREVIEWS = "MPO"
"""A JPEG with further images: they are the camera's previews of the first."""
_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_PNG_GRAY = 0
_GAP = rb"(?:\s|#[^\n]*\n)+"  # one way to read each: two would be tried in all combinations
_SIZE = _GAP + rb"\d+" + _GAP + rb"\d+" + _GAP
_DEEP_PPM = re.compile(rb"P[36]" + _SIZE + rb"(?:\d{4,5}|[3-9]\d\d|2[6-9]\d|25[6-9])\s")
_PGM = re.compile(rb"P[25]" + _SIZE + rb"(\d{1,5})\s")


def frames(raw: bytes) -> Iterator[Radiograph | RadiographError]:
    """Every image of a file in FORMATS, upright, gray, at its full depth; a damaged one as an error in its place.

    Raises RadiographError where no image can be reached.
    """
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        raise RadiographError("not an image of a known format, or its beginning is damaged") from None
    except Image.DecompressionBombError:
        raise RadiographError(BOMB) from None
    with image:
        count = 1 if image.format == _PREVIEWS else getattr(image, "n_frames", 1)
        for number in range(min(count, MAX_FRAMES)):
            try:
                image.seek(number)
                check_size(*image.size)
                yield _decode(image, raw if number == 0 else b"")
            except RadiographError as error:
                yield error
            except Image.DecompressionBombError:
                yield RadiographError(BOMB)
            except Exception:  # Pillow's readers raise anything from OSError to struct.error on damaged files
                yield RadiographError(DAMAGED)
        if count > MAX_FRAMES:
            yield RadiographError(f"images after the first {MAX_FRAMES} of a file are not read")


def _decode(image: Image.Image, raw: bytes) -> Radiograph:
    kind = "jpeg" if image.format == _PREVIEWS else str(image.format).lower()
    orientation = image.getexif().get(_ORIENTATION, 1)
    resolution = image.info.get("aspect") or image.info.get("jfif_density") or image.info.get("dpi") or (1, 1)
    adobe = kind != "jpeg" or "adobe" in image.info
    image.load()
    colour, bits = _png_header(raw) if kind == "png" and raw else (_PNG_GRAY, None)
    if kind == "ppm" and _DEEP_PPM.match(raw):
        raise RadiographError("colour PPM of more than 8 bits, which is not read: save it as PNG or TIFF")
    if colour != _PNG_GRAY:  # Pillow keeps 8 bits of 16-bit colour; OpenCV keeps all, and is silent on damage
        pixels, bits = of_integers(_unscaled(deep_gray(raw), bits), bits)
    elif image.mode.startswith("I"):
        values = np.array(image)
        if isinstance(clear := image.info.get("transparency"), int):
            values[values == clear] = 0  # over black, as all that is transparent
        if kind == "jpeg2000" and (bits := _jpeg2000_bits(raw)):
            values = values >> 16 - bits  # Pillow stretches to 16
        if kind == "ppm" and (most := _pnm_maximum(raw)):
            values, bits = np.rint(values * (most / 65535)).astype(int), most.bit_length()  # and here
        pixels, bits = of_integers(_unscaled(values, bits), bits)
    else:
        pixels, bits = eight_bits(image, inked=not adobe), 8
    aspect = pixel_aspect(resolution[0], resolution[1], orientation)
    return Radiograph(upright(pixels, orientation), bits, aspect, {"format": kind}, "")


def eight_bits(image: Image.Image, inked: bool = False) -> np.ndarray:
    """A Pillow image of 1 to 8 bits a channel as uint8 [H, W]: luma (ITU-R BT.601), laid over black where transparent.

    Bilevel becomes 0 and 255. `inked`: CMYK whose values are ink, where Pillow took them for Adobe's inverted ones.
    """
    if image.mode == "LAB":
        image = image.getchannel("L")
    elif image.mode == "CMYK" and inked:
        image = Image.eval(image, lambda v: 255 - v)
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("PA", "La", "RGBa"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    if image.mode not in ("1", "L", "LA", "RGB", "YCbCr"):
        image = image.convert("RGB")
    return over_black(np.array(image.convert("L"), np.uint8), alpha)


def deep_gray(raw: bytes) -> np.ndarray:
    """A file as OpenCV reads it, at its own depth, as gray [H, W]: luma (ITU-R BT.601), over black where transparent.

    Raises RadiographError.
    """
    decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise RadiographError("the image is damaged or of a layout that is not read: save it as gray, 8 or 16 bits")
    if decoded.ndim == 2:
        return decoded
    gray = cv2.cvtColor(np.ascontiguousarray(decoded[..., :3]), cv2.COLOR_BGR2GRAY)
    return over_black(gray, decoded[..., 3] if decoded.shape[2] == 4 else None)


def over_black(gray: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """`gray` [H, W] laid over black by `alpha` of the same type. An alpha of 0 everywhere says nothing and is left."""
    if alpha is None or not alpha.any():
        return gray
    full = int(np.iinfo(gray.dtype).max)
    return ((gray.astype(np.uint64) * alpha + full // 2) // full).astype(gray.dtype)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W] turned by an EXIF orientation (1 to 8; CIPA DC-008, tag 0x0112)."""
    if orientation in SIDEWAYS:
        pixels = pixels.T
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def pixel_aspect(across: float, down: float, orientation: int) -> float:
    """Width of an upright pixel over its height by declared resolutions; 1 where that is absent or beyond 1 to 4."""
    aspect = float(down) / float(across) if across and down else 1.0
    if not 1 / 4 <= aspect <= 4:
        return 1.0
    return 1 / aspect if orientation in SIDEWAYS else aspect


def _unscaled(values: np.ndarray, bits: int | None) -> np.ndarray:
    """16-bit values of which `bits` are declared significant, as these bits.

    PNG stretches them to 16 bits (specification, 11.3.2.7); writers that do not leave every value under 2^bits.
    """
    return values if bits is None or int(values.max()) < 1 << bits else values >> 16 - bits


def _png_header(raw: bytes) -> tuple[int, int | None]:
    """Of a PNG: its colour type if it is colour of 16 bits, else 0; the significant bits that sBIT declares, if any."""
    depth, colour = raw[24], raw[25]
    at, bits = 8, None
    while raw[at + 4 : at + 8] not in (b"IDAT", b""):
        size = int.from_bytes(raw[at : at + 4], "big")
        if raw[at + 4 : at + 8] == b"sBIT" and size:
            bits = max(raw[at + 8 : at + 8 + min(size, 3 if colour in (2, 6) else 1)])
        at += 12 + size
    return colour if depth == 16 else _PNG_GRAY, bits if depth == 16 and bits and 8 <= bits <= 16 else None


def _pnm_maximum(raw: bytes) -> int | None:
    """The brightest value that the header of a PGM declares (netpbm, pgm(5)), where it takes more than 8 bits."""
    found = _PGM.match(raw)
    return int(found[1]) if found and 255 < int(found[1]) < 65536 else None


def _jpeg2000_bits(raw: bytes) -> int | None:
    """The precision that the codestream's SIZ marker declares (ISO/IEC 15444-1, A.5.1)."""
    at = raw.find(b"\xff\x4f\xff\x51")
    return (raw[at + 42] & 0x7F) + 1 if 0 <= at < len(raw) - 42 else None
