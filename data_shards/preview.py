"""Pictures to look at before hours are spent: crops from shards, or radiographs with their boxes drawn."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from data_shards.boxes import CHOICES, Box, plan_boxes
from data_shards.config import check_pixel_aspect
from data_shards.convert import encode_png
from data_shards.crops import CropError, region, stretch
from data_shards.errors import MemberError, PackError
from data_shards.ids import Key
from data_shards.inventory import Entry, take_inventory
from data_shards.ledger import Ledgers
from data_shards.radiograph import RadiographError, decode
from data_shards.shard_set import ShardSet
from data_shards.sources import Source, open_sources
from data_shards.survey import spread_over

CELL = (160, 240)
"""Width and height of a crop's cell in pixels: two or three rows of teeth stay legible."""
COLUMNS, ROWS = 10, 5
RADIOGRAPHS = 6
RADIOGRAPH_WIDTH = 900
_CAPTION = 16
_GROUND = 24
_KEY = Key(b"preview: nothing is written under these ids", None)


def preview(paths: Sequence[Path], out: Path, boxes: str = "auto", pixel_aspect: float = 1.0) -> list[str]:
    """Write a PNG of crops from shards, or of a source's first radiographs with their boxes, one below the other.

    Returns what it shows, a line a path. Captions are labels; no name is drawn. Raises ShardError or PackError where
    there is nothing to show.
    """
    sheets, told = [], []
    for path in paths:
        shards = is_shards(path)
        sheet, what = crop_sheet(ShardSet(path)) if shards else radiograph_sheet(path, boxes, pixel_aspect)
        sheets.append(sheet)
        told.append(f"{out}: {what} of {path}")
    width = max(sheet.shape[1] for sheet in sheets)
    whole = np.vstack([np.pad(s, ((0, 0), (0, width - s.shape[1])), constant_values=_GROUND) for s in sheets])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(encode_png(whole))
    except OSError as error:
        raise PackError(f"cannot write {out} ({error.strerror}): name another --out") from None
    return told


def is_shards(path: Path) -> bool:
    """Whether `path` is a folder of shards, our own or foreign; a tar by itself may be a source as well."""
    return (path / "manifest.json").is_file() or (path.is_dir() and any(path.glob("*.tar")))


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
    sheet = np.full((rows * (CELL[1] + _CAPTION), min(count, COLUMNS) * CELL[0]), _GROUND, dtype=np.uint8)
    for place, (number, crop, fit) in enumerate(zip(chosen, crops, fits, strict=True)):
        scale = min(common, fit)
        meta = samples.meta(number)
        left, top = place % COLUMNS * CELL[0], place // COLUMNS * (CELL[1] + _CAPTION)
        size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
        small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        x, y = left + (CELL[0] - size[0]) // 2, top + (CELL[1] - size[1]) // 2
        sheet[y : y + size[1], x : x + size[0]] = small
        _write(sheet, f"{caption(meta)} {crop.shape[1]}x{crop.shape[0]}", left + 4, top + CELL[1] + 12)
    return sheet, f"{count} of {len(samples)} crops"


def eight_bits(crop: np.ndarray) -> np.ndarray:
    """A crop from a shard, uint8 or uint16 with white at 65535, as uint8 to look at."""
    return crop if crop.dtype == np.uint8 else (crop >> 8).astype(np.uint8)


def radiograph_sheet(path: Path, boxes: str, pixel_aspect: float) -> tuple[np.ndarray, str]:
    """The first radiographs of a source that decode, stretched to square pixels, with the boxes that would be cut."""
    check_pixel_aspect(pixel_aspect)
    sources = open_sources([path])
    ledgers = Ledgers()
    inventory = take_inventory(((n, s, s.members()) for n, s in enumerate(sources)), _KEY, ledgers)
    given = []
    if boxes not in CHOICES:
        apart = open_sources([boxes])
        given = take_inventory(((n, s, s.members()) for n, s in enumerate(apart)), _KEY, ledgers).texts
    plan = plan_boxes(boxes, inventory, given, (), _KEY, ledgers)
    drawn = []
    wanted = {e.name: e for e in inventory.images if ledgers.is_used("radiographs", e.radiograph)}
    for raw, entry in _raw(sources[0], wanted):
        try:
            drawn.append(_draw(decode(raw).pixels, plan.boxes[entry.radiograph], pixel_aspect))
        except RadiographError:
            continue
        if len(drawn) == RADIOGRAPHS:
            break
    if not drawn:
        raise PackError(f"no radiograph in {path} can be shown: `pack` lists the reasons")
    rows = [drawn[i : i + 2] for i in range(0, len(drawn), 2)]
    height = [max(d.shape[0] for d in row) for row in rows]
    sheet = np.full((sum(height), RADIOGRAPH_WIDTH * max(len(r) for r in rows)), _GROUND, dtype=np.uint8)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = sum(height[:number]), column * RADIOGRAPH_WIDTH
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet, f"{len(drawn)} of {len(wanted)} radiographs, boxes: {plan.format} ({plan.why})"


def _raw(source: Source, wanted: dict[str, Entry]) -> Iterator[tuple[bytes, Entry]]:
    for member in source.members():
        if entry := wanted.get(source.name_of(member.name)):
            try:
                yield member.read(), entry
            except MemberError:
                continue


def _draw(pixels: np.ndarray, boxes: Sequence[Box], pixel_aspect: float) -> np.ndarray:
    height, width = pixels.shape
    wider, taller = stretch(pixel_aspect)
    scale = RADIOGRAPH_WIDTH / (width * wider)
    size = RADIOGRAPH_WIDTH, max(1, round(height * taller * scale))
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    sx, sy = size[0] / width, size[1] / height
    for box in boxes:
        relative = (width, height, width, height) if box.relative else (1, 1, 1, 1)
        x0, y0, x1, y1 = (c * r for c, r in zip(box.corners, relative, strict=True))
        try:
            region((x0, y0, x1, y1), height, width, 0.0, 1, pixel_aspect)
        except CropError:
            continue
        cv2.rectangle(picture, (round(x0 * sx), round(y0 * sy)), (round(x1 * sx), round(y1 * sy)), 255, 1)
        _write(picture, caption(box.labels), round(x0 * sx) + 2, round(y0 * sy) + 12)
    return picture


def caption(labels: Mapping[str, object]) -> str:
    """What to write beside a crop or a box: the tooth, else its class, and a finding if it has one."""
    names = [labels.get(name) for name in ("fdi", "class", "label", "category", "tooth_type")]
    shown = [next((str(name) for name in names if name), ""), str(labels.get("finding") or "")]
    return " ".join(text for text in shown if text)


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 0, 3, cv2.LINE_AA)
    cv2.putText(picture, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
