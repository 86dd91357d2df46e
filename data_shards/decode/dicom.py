"""DICOM files into gray frames at their full depth, through pydicom."""

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import cv2
import numpy as np
import pydicom
from pydicom.encaps import get_frame, parse_fragments
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID, JPEGExtended12Bit, RLELossless

from data_shards.decode import jpeg_lossless
from data_shards.decode.bit_depth import (
    DAMAGED,
    FULL_RANGE,
    MAX_FRAMES,
    Radiograph,
    RadiographError,
    check_size,
    of_integers,
)
from data_shards.decode.dicom_accept import check_kind
from data_shards.decode.dicom_bytes import check_inflated, coded_size, guessed_syntax
from data_shards.decode.dicom_header import element, facts, number, patient, pixel_aspect, word
from data_shards.decode.dicom_luts import shown
from data_shards.decode.jpeg_lossless import Coded

_COMPRESSIONS = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "none",
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg-extended",
    "1.2.840.10008.1.2.4.57": "jpeg-lossless",
    "1.2.840.10008.1.2.4.70": "jpeg-lossless",
    "1.2.840.10008.1.2.4.80": "jpeg-ls",
    "1.2.840.10008.1.2.4.81": "jpeg-ls",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
    "1.2.840.10008.1.2.4.201": "htj2k",
    "1.2.840.10008.1.2.4.202": "htj2k",
    "1.2.840.10008.1.2.4.203": "htj2k",
}
"""Transfer syntaxes that are decoded (DICOM PS3.6, table A-1), and what they are called in a sample's facts."""
_DECODERS = ("pillow", "pyjpegls", "pylibjpeg")
"""In order: first what is always there, so that an extra changes no pixels (lossy JPEG leaves their rounding open).

Not gdcm, which some damaged images make end the process; nor pylibjpeg-rle, which panics on them.
"""


def frames(raw: bytes, burned_in: Literal["reject", "keep"]) -> Iterator[Radiograph | RadiographError]:
    """Every frame of a DICOM file, upright as stored, gray, at its full depth; a damaged one as an error in its place.

    Raises RadiographError where the file is no radiograph, or may have names in its pixels and `burned_in` is
    "reject".
    """
    check_inflated(raw)
    header: Any = pydicom.dcmread(io.BytesIO(raw), force=True)
    check_kind(header, burned_in)
    syntax = _syntax(header)
    decoder = _decoder(header, syntax)
    rows, columns = int(header.Rows), int(header.Columns)
    check_size(columns, rows)
    stated = max(1, int(number(header, "NumberOfFrames") or 1))
    count = min(stated, _most_frames(header, decoder))
    about = facts(header, _COMPRESSIONS[syntax])
    for index in range(min(count, MAX_FRAMES)):
        try:
            pixels, bits, clips = _decode(header, decoder, index, count)
            window = {"window": FULL_RANGE} if clips else {}
            yield Radiograph(pixels, bits, pixel_aspect(header), about | window, patient(header))
        except RadiographError as error:
            yield error
        except Exception:  # decoders raise anything on damaged frames
            yield RadiographError(DAMAGED)
    if count > MAX_FRAMES:
        yield RadiographError(f"images after the first {MAX_FRAMES} of a file are not read")
    if stated > count:
        yield RadiographError("the header tells of more images than the file holds")


def _most_frames(header: Any, decoder: Decoder) -> int:
    """As many as the pixel data can hold, the last one perhaps cut: a header can say anything."""
    if decoder.is_encapsulated:
        return max(1, parse_fragments(header.PixelData)[0] - 1)  # the first item is the offset table
    bits = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * int(header.BitsAllocated)
    return max(1, -(-8 * len(header.PixelData) // max(1, bits)))


def _syntax(header: Any) -> str:
    """The transfer syntax, found in the data where no file meta information tells it."""
    stated = str(element(header.file_meta, "TransferSyntaxUID", ""))
    if not stated:
        data = header["PixelData"]
        implicit, little = header.original_encoding
        if data.is_undefined_length:
            stated = guessed_syntax(get_frame(data.value, 0, number_of_frames=1))
        else:
            stated = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        header.file_meta.TransferSyntaxUID = UID(stated)
    return stated


def _decoder(header: Any, syntax: str) -> Decoder:
    if syntax not in _COMPRESSIONS:
        raise RadiographError("a DICOM transfer syntax that is not read: convert it to Explicit VR Little Endian")
    decoder = get_decoder(UID(syntax))
    if not (jpeg_lossless.is_available() if _needs_gdcm(header, syntax) else _plugins(decoder)):
        raise RadiographError(
            f"DICOM compressed as {_COMPRESSIONS[syntax]}, which needs decoders: "
            'pip install "tooth-foundations[dicom]" (in a checkout: pip install -e ".[dicom]")'
        )
    return decoder


def _decode(header: Any, decoder: Decoder, index: int, count: int) -> tuple[np.ndarray, int, bool]:
    """Return the pixels of a frame, their bits, and whether its stated window is set aside (`shown`)."""
    values = _stored(header, decoder, index, count)
    stored_bits, high_bit = int(header.BitsStored), int(number(header, "HighBit") or 0)
    declared = stored_bits if stored_bits < 16 else None
    if word(header, "PhotometricInterpretation") == "PALETTE COLOR":
        values, declared = apply_color_lut(values, header), None
    if values.ndim == 3:
        return *of_integers(cv2.cvtColor(np.ascontiguousarray(values), cv2.COLOR_RGB2GRAY), declared), False
    values = values.astype(np.int32)
    if decoder.is_encapsulated and RLELossless != decoder.UID:  # RLE keeps the layout of raw pixels
        wider = not header.PixelRepresentation and int(values.max()) >> stored_bits
        if wider and not _has_overlay_above(header, stored_bits):
            stored_bits = int(values.max()).bit_length()  # a codestream of more bits than the header says
    elif stored_bits <= high_bit < header.BitsAllocated:
        values >>= high_bit + 1 - stored_bits
    if not 1 <= stored_bits <= 16:
        raise RadiographError("pixel values of more than 16 bits: save it with 8 or 16 bits")
    values &= (1 << stored_bits) - 1  # the other bits may hold overlays
    if header.PixelRepresentation == 1:
        values -= (values & 1 << stored_bits - 1) << 1
    return shown(header, values, stored_bits)


def _has_overlay_above(header: Any, bits: int) -> bool:
    """Whether a graphic lies in the bits above the pixel's, as before 2004 (PS3.5, 8.1.2): it may spell a name."""
    for group in range(0x6000, 0x6020, 2):
        with suppress(Exception):  # absent, mostly; pydicom raises anything on damaged ones
            if int(header[group, 0x0102].value) >= bits:  # Overlay Bit Position
                return True
    return False


def _stored(header: Any, decoder: Decoder, index: int, count: int) -> np.ndarray:
    """The values of a frame, [H, W] or RGB [H, W, 3], by the first decoder that can."""
    rows, columns, allocated = int(header.Rows), int(header.Columns), int(header.BitsAllocated)
    if allocated > 16 and int(header.BitsStored) > 16:
        raise RadiographError("DICOM pixels of more than 16 bits, which radiographs do not have")
    if decoder.is_encapsulated:
        codestream = get_frame(header.PixelData, index, number_of_frames=count)
        if coded_size(codestream) not in (None, (columns, rows)):
            raise RadiographError("a compressed image of another size than the DICOM header says")
        if _needs_gdcm(header, str(decoder.UID)):
            form = (rows, columns, int(header.SamplesPerPixel), allocated, int(header.BitsStored))
            values = jpeg_lossless.decode(codestream, Coded(str(decoder.UID), *form, header.PixelRepresentation == 1))
            luma = word(header, "PhotometricInterpretation").startswith("YBR_FULL")  # the first of its components
            return values[..., 0] if luma and values.ndim == 3 else values
    for name in _plugins(decoder):
        try:
            values, _ = decoder.as_array(
                header,
                index=index,
                decoding_plugin=name,
                validate=count == 1,  # a file cut in its last frame still has the others
                correct_unused_bits=False,  # type: ignore[arg-type]  # its annotation lacks the options
            )
            return values
        except Exception:  # the next one may be able to
            continue
    raise RadiographError(DAMAGED)


def _needs_gdcm(header: Any, syntax: str) -> bool:
    return syntax in jpeg_lossless.SYNTAXES and not (syntax == JPEGExtended12Bit and header.BitsStored == 8)


def _plugins(decoder: Decoder) -> list[str]:
    """What pydicom is to decode with, in the order in which it is tried; RLE and raw pixels it reads by itself."""
    available = decoder.available_plugins
    if not decoder.is_encapsulated or "pydicom" in available:
        return ["pydicom"] if decoder.is_encapsulated else [""]
    return [name for name in _DECODERS if name in available]
