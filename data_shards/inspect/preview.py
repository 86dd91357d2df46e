"""Pictures to look at before hours are spent: crops from shards, or radiographs with their boxes drawn."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_shards.errors import PackError, ShardError
from data_shards.inspect.drawing import GROUND, caption, stacked, write
from data_shards.inspect.source_preview import radiograph_sheet
from data_shards.inspect.summary import spread_over
from data_shards.pack.crop_job import encode_png
from data_shards.shards.shard_set import ShardSet

CELL = (160, 240)
"""Width and height of a crop's cell in pixels: two or three rows of teeth stay legible."""
COLUMNS, ROWS = 10, 5
_CAPTION = 16


def preview(
    paths: Sequence[Path],
    out: Path,
    boxes: str = "auto",
    pixel_aspect: float | None = None,
    masks: str | None = None,
) -> list[str]:
    """Write a PNG of crops from shards, or of a source's first radiographs with their boxes, one below the other.

    Returns what it shows, a line a path. Captions are labels; no name is drawn. Raises ShardError or PackError where
    there is nothing to show.
    """
    sheets, told = [], []
    for path in paths:
        shards = is_shards(path)
        sheet, what = crop_sheet(ShardSet(path)) if shards else radiograph_sheet(path, boxes, pixel_aspect, masks)
        sheets.append(sheet)
        told.append(f"{out}: {what} of {path}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(encode_png(stacked(sheets)))
    except OSError as error:
        raise PackError(f"cannot write {out} ({error.strerror}): name another --out") from None
    return told


def is_shards(path: Path) -> bool:
    """Whether `path` is a folder of shards: our own, or tars whose first sample is an image with JSON beside it.

    Other folders with tars are sources, and so are other tars.
    """
    if (path / "manifest.json").is_file():
        return True
    try:
        return bool(ShardSet(path).index["meta_size"][0])
    except ShardError:
        return False


def crop_sheet(samples: ShardSet) -> tuple[np.ndarray, str]:
    """Crops evenly spread over the samples, uint8 [H, W], at one scale so that their sizes can be compared.

    The largest tenth is shown smaller where it would not fit.
    """
    chosen = spread_over(len(samples), COLUMNS * ROWS)
    count = len(chosen)
    crops = [eight_bits(samples.image(i)) for i in chosen]
    fits = [min(CELL[0] / c.shape[1], CELL[1] / c.shape[0]) for c in crops]
    common = min(1.5, float(np.quantile(fits, 0.1)))
    rows = -(-count // COLUMNS)
    sheet = np.full((rows * (CELL[1] + _CAPTION), min(count, COLUMNS) * CELL[0]), GROUND, dtype=np.uint8)
    for place, (number, crop, fit) in enumerate(zip(chosen, crops, fits, strict=True)):
        scale = min(common, fit)
        meta = samples.meta(number)
        left, top = place % COLUMNS * CELL[0], place // COLUMNS * (CELL[1] + _CAPTION)
        size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
        small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        x, y = left + (CELL[0] - size[0]) // 2, top + (CELL[1] - size[1]) // 2
        sheet[y : y + size[1], x : x + size[0]] = small
        write(sheet, f"{caption(meta)} {crop.shape[1]}x{crop.shape[0]}", left + 4, top + CELL[1] + 12)
    return sheet, f"{count} of {len(samples)} crops"


def eight_bits(crop: np.ndarray) -> np.ndarray:
    """A crop from a shard, uint8 or uint16 with white at 65535, as uint8 to look at."""
    return crop if crop.dtype == np.uint8 else (crop >> 8).astype(np.uint8)
