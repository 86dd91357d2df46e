"""One file's bytes into its crops as tar members: the work that is spread over processes."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from data_shards.annotations.boxes import Box
from data_shards.decode.bit_depth import FULL_RANGE
from data_shards.decode.radiograph import Radiograph, RadiographError, frames, highest_eight
from data_shards.pack.crop import CropError, Rules, crop_of
from data_shards.pack.orientation import exif_orientation, place
from data_shards.pack.perceptual_hash import perceptual_hash
from data_shards.pseudonyms import Key
from data_shards.shards.statistics import pixel_sums
from data_shards.shards.tar_index import BLOCK

CODEC = "png, run lengths, filter up"
"""Lossless, as the source may be gone. Beside PNG of level 1 it takes 0.92 to 1.01 of the bytes, 0.4 to 0.5 of the time
to encode, once, and 0.5 to 0.7 of the time to decode, which every step of training pays (docs/codec.md)."""
_PNG = (
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_UP,
)
SECOND_BOX = "the same box with the same label stands there twice"
LATER_FRAME = "boxes belong to the first image of a file of several: pack this one as a file of its own"
_HEADER = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT))
_HEADER[148:156] = b" " * 8  # as the checksum counts itself


class Job(NamedTuple):
    """A file to convert: ids of its first radiograph and of itself, its bytes and its boxes.

    `digest` tells whether a conversion made before is still that of this file under these settings; `whole` says that
    the one box is the whole image, of which every frame has one; `stated` that a table states the patient, so that the
    header does not count.
    """

    digest: str
    radiograph: str
    file: str
    patient: str
    raw: bytes
    boxes: tuple[Box, ...]
    whole: bool
    stated: bool = False


class Settings(NamedTuple):
    """What a conversion depends on beside its job.

    `pixel_aspect` None: as the file declares. `own_patient`: the header's patient id counts, where there is one.
    `hashed`: radiographs get a perceptual hash.
    """

    depth: Literal[8, 16]
    burned_in: Literal["reject", "keep"]
    pixel_aspect: float | None
    own_patient: bool
    hashed: bool
    rules: Rules


@dataclass
class Frame:
    """What became of one radiograph. `reason` is set where nothing did.

    `full_range`: the stated DICOM window is not applied, as it clips most of the image.
    `pixels` is the fingerprint of the decoded radiograph, `hash` its perceptual hash; `samples` and `size` count its
    crops and the bytes of their tar members; `boxes` are those that only came to light in conversion; `bits` is the
    depth of the stored crops, and `count`, `total`, `squares` are sums over their pixels (exact integers, so that
    their sums do not depend on order).
    """

    radiograph: str
    file: str
    patient: str
    reason: str = ""
    pixels: str = ""
    hash: str = ""
    samples: int = 0
    size: int = 0
    full_range: bool = False
    boxes: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    bits: int = 8
    count: int = 0
    total: int = 0
    squares: int = 0


@dataclass
class Converted:
    """What became of a file: its radiographs in order, or the `reason` why it has none.

    `chunk` holds the tar members of all crops, frame after frame.
    """

    digest: str
    file: str
    radiograph: str
    reason: str = ""
    frames: list[Frame] = field(default_factory=list)
    chunk: bytes = b""


def convert(job: Job, key: Key, settings: Settings) -> Converted:
    """Decode, crop, encode. A pure function of its arguments."""
    done = Converted(job.digest, job.file, job.radiograph)
    chunks: list[bytes] = []
    try:
        for number, found in enumerate(frames(job.raw, 16, settings.burned_in)):
            radiograph = key.id("radiograph", job.radiograph, str(number)) if number else job.radiograph
            frame = Frame(radiograph, job.file, job.patient)
            done.frames.append(frame)
            if isinstance(found, RadiographError):
                frame.reason = str(found)
            elif number and not job.whole:
                frame.reason = LATER_FRAME
            else:
                chunks.append(_crops_of(found, number, frame, job, key, settings))
    except RadiographError as error:
        done.reason, done.frames, chunks = str(error), [], []
    done.chunk = b"".join(chunks)
    return done


def _crops_of(found: Radiograph, number: int, frame: Frame, job: Job, key: Key, settings: Settings) -> bytes:
    if settings.own_patient and not job.stated and found.patient:
        frame.patient = key.id("patient", "dicom", found.patient)
    frame.full_range = found.facts.get("window") == FULL_RANGE
    eight = highest_eight(found.pixels, found.bits)
    frame.pixels = key.of_pixels(eight)  # whatever --depth is, so that an 8-bit copy is known for one
    if settings.depth == 8:
        found = found._replace(pixels=eight)
    if settings.hashed:
        frame.hash = perceptual_hash(found.pixels)
    if found.pixels.dtype == np.uint16:
        frame.bits = found.bits
    pixel_aspect = settings.pixel_aspect or found.pixel_aspect
    common: dict[str, Any] = {
        "patient": frame.patient,
        "source": job.file,
        "radiograph": frame.radiograph,
        "pixels": frame.pixels,
        **({"hash": frame.hash} if frame.hash else {}),
        **({"frame": number} if number else {}),
        "pixel_aspect": pixel_aspect,
        "bits": frame.bits,
        "source_bits": found.bits,
        **found.facts,
    }
    chunk = io.BytesIO()
    for box, corners in _boxes_of(job, number, frame, key, found.pixels.shape):
        try:
            crop = crop_of(found.pixels, frame.bits, corners, pixel_aspect, settings.rules)
        except CropError as error:
            frame.rejected.append((box.id, str(error)))
            continue
        sample = {"id": box.id, **common, "box": list(corners), "width": crop.shape[1], "height": crop.shape[0]}
        chunk.write(_member(f"{box.id}.png", encode_png(crop)))
        chunk.write(_member(f"{box.id}.json", json.dumps({**sample, **box.labels}).encode()))
        count, total, squares = pixel_sums(crop)
        frame.samples += 1
        frame.count, frame.total, frame.squares = frame.count + count, frame.total + total, frame.squares + squares
    frame.size = chunk.tell()
    return chunk.getvalue()


def _boxes_of(
    job: Job, number: int, frame: Frame, key: Key, shape: tuple[int, ...]
) -> Iterator[tuple[Box, tuple[float, float, float, float]]]:
    """The boxes on frame `number` of this shape with their corners in pixels; the second of two equal ones is none."""
    height, width = shape
    taken: dict[tuple[object, ...], str] = {}
    for box in job.boxes:
        if number:
            box = box._replace(id=key.id("box", box.id, str(number)))
            frame.boxes.append(box.id)
        try:
            corners = place(box, (width, height), partial(exif_orientation, job.raw))
        except CropError as error:
            frame.rejected.append((box.id, str(error)))
            continue
        if taken.setdefault((corners, *box.labels.items()), box.id) != box.id:
            frame.rejected.append((box.id, SECOND_BOX))
        else:
            yield box, corners


def encode_png(pixels: np.ndarray) -> bytes:
    """`pixels` uint8 or uint16 [H, W] as PNG."""
    return cv2.imencode(".png", pixels, _PNG)[1].tobytes()


def _member(name: str, content: bytes) -> bytes:
    """A tar member (USTAR; clock, owner and group 0), padded to whole blocks.

    The header is tarfile's with name, size and checksum filled in, which is five times as fast as a new one.
    """
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:135] = b"%011o" % len(content)
    header[148:155] = b"%06o\0" % sum(header)
    return b"".join((header, content, bytes(-len(content) % BLOCK)))
