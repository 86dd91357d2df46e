"""One radiograph's bytes into its crops as tar members: the work that is spread over processes."""

import io
import json
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from data_shards.boxes import Box
from data_shards.crops import CropError, cut, region
from data_shards.ids import Key
from data_shards.index import BLOCK
from data_shards.orient import exif_orientation, place
from data_shards.radiograph import RadiographError, decode

CODEC = "png, run lengths, filter up"
"""Lossless, as the source may be gone. Beside PNG of level 1 it takes 0.92 to 1.01 of the bytes, 0.4 to 0.5 of the time
to encode, once, and 0.5 to 0.7 of the time to decode, which every step of training pays (docs/codec.md)."""
_PNG = (
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_UP,
)


class Job(NamedTuple):
    """A radiograph to convert: ids, its file's bytes, its boxes."""

    radiograph: str
    file: str
    patient: str
    raw: bytes
    boxes: tuple[Box, ...]


@dataclass
class Converted:
    """What became of it. `reason` is set where nothing did; `chunk` holds the tar members of all crops in order.

    `pixels` is the fingerprint of the decoded radiograph; `count`, `total`, `squares` are of the crops' pixels (exact
    integers, so that their sums do not depend on order); `depth` the bits found in the file.
    """

    radiograph: str
    patient: str
    reason: str = ""
    pixels: str = ""
    chunk: bytes = b""
    samples: int = 0
    rejected: tuple[tuple[str, str], ...] = ()
    count: int = 0
    total: int = 0
    squares: int = 0
    depth: int = 8


def convert(job: Job, key: Key, pixel_aspect: float, margin: float, min_side: int) -> Converted:
    """Decode, crop, encode. A pure function of its arguments."""
    done = Converted(job.radiograph, job.patient)
    try:
        radiograph = decode(job.raw)
    except RadiographError as error:
        done.reason = str(error)
        return done
    done.pixels = key.of_pixels(radiograph.pixels)
    done.depth = radiograph.bits
    height, width = radiograph.pixels.shape
    members: list[bytes] = []
    rejected: list[tuple[str, str]] = []
    taken: dict[tuple[object, ...], str] = {}
    for box in job.boxes:
        try:
            corners = place(box, (width, height), partial(exif_orientation, job.raw))
        except CropError as error:
            rejected.append((box.id, str(error)))
            continue
        if taken.setdefault((corners, *box.labels.items()), box.id) != box.id:
            rejected.append((box.id, "the same box with the same label stands there twice"))
            continue
        try:
            bounds = region(corners, height, width, margin, min_side, pixel_aspect)
        except CropError as error:
            rejected.append((box.id, str(error)))
            continue
        crop = cut(radiograph.pixels, bounds, pixel_aspect)
        sample: dict[str, Any] = {
            "id": box.id,
            "patient": job.patient,
            "source": job.file,
            "radiograph": job.radiograph,
            "pixels": done.pixels,
            "box": list(corners),
            "pixel_aspect": pixel_aspect,
            "bits": 8,
            "width": crop.shape[1],
            "height": crop.shape[0],
            **box.labels,
        }
        members += [_member(f"{box.id}.png", encode_png(crop)), _member(f"{box.id}.json", json.dumps(sample).encode())]
        wide = crop.astype(np.uint64)
        done.count += crop.size
        done.total += int(wide.sum())
        done.squares += int((wide * wide).sum())
    done.samples = len(members) // 2
    done.rejected = tuple(rejected)
    done.chunk = b"".join(members)
    return done


def encode_png(pixels: np.ndarray) -> bytes:
    """`pixels` uint8 or uint16 [H, W] as PNG."""
    return cv2.imencode(".png", pixels, _PNG)[1].tobytes()


def _member(name: str, content: bytes) -> bytes:
    """A tar member (USTAR; clock, owner and group 0), padded to whole blocks."""
    buffer = io.BytesIO()
    info = tarfile.TarInfo(name)
    info.size = len(content)
    buffer.write(info.tobuf(tarfile.USTAR_FORMAT))
    buffer.write(content)
    buffer.write(bytes(-len(content) % BLOCK))
    return buffer.getvalue()
