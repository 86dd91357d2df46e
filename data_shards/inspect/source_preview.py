"""A picture of what `pack` would cut from a source: its first radiographs with their boxes, or their borders."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data_shards.annotations.box_plan import plan_boxes
from data_shards.annotations.boxes import Box
from data_shards.annotations.choices import Choices
from data_shards.annotations.external import given_annotations
from data_shards.annotations.masks.search import take_inventory
from data_shards.decode.radiograph import RadiographError, decode
from data_shards.errors import MemberError, PackError
from data_shards.inspect.drawing import GROUND, caption, stacked, write
from data_shards.ledger import Ledgers
from data_shards.pack.config import check_pixel_aspect
from data_shards.pack.crop import MIN_SIDE, CropError, region, stretch
from data_shards.pack.orientation import exif_orientation, place
from data_shards.pseudonyms import Key
from data_shards.sources.inventory import Entry
from data_shards.sources.source import Source, open_sources

RADIOGRAPHS = 6
COLUMNS = 2
WIDTH = 900
"""Of a radiograph in the picture, in pixels: its teeth and the numbers on them stay legible."""
BORDER = 0.12
"""Share of the height above and below that is shown enlarged where whole images are taken: text stands there."""
_KEY = Key(b"preview: nothing is written under these ids", None)


def radiograph_sheet(
    path: Path, boxes: str, pixel_aspect: float | None, masks: str | None = None
) -> tuple[np.ndarray, str]:
    """The first radiographs of a source that decode, stretched to square pixels, with the boxes that would be cut.

    `pixel_aspect` None: as each file declares. Where whole images would be taken, nothing is drawn on them, and below
    each its upper and lower border stand enlarged, so that text burnt into them is seen. Returns uint8 [H, W] and what
    it shows. Raises PackError where no radiograph can be shown.
    """
    if pixel_aspect is not None:
        check_pixel_aspect(pixel_aspect)
    sources, ledgers = open_sources([path]), Ledgers()
    inventory = take_inventory(((n, s, s.members()) for n, s in enumerate(sources)), _KEY, ledgers)
    given = given_annotations(boxes, sources, inventory, _KEY, ledgers)
    plan = plan_boxes(Choices(boxes, masks=masks), inventory, given, _KEY, ledgers)
    wanted = {e.name: e for e in inventory.images if ledgers.is_used("radiographs", e.radiograph)}
    drawn: list[np.ndarray] = []
    for raw, entry in _raw(sources, wanted):
        try:
            radiograph = decode(raw)
        except RadiographError:
            continue
        pixels, aspect = radiograph.pixels, pixel_aspect or radiograph.pixel_aspect
        picture = _shown(pixels, aspect)
        if plan.whole:
            picture = stacked([picture, *_borders(pixels, aspect)])
        else:
            _draw(picture, raw, pixels.shape, plan.boxes[entry.radiograph], aspect)
        drawn.append(picture)
        if len(drawn) == RADIOGRAPHS:
            break
    if not drawn:
        raise PackError(f"no radiograph in {path} can be shown: `pack` lists the reasons")
    what = "with their borders enlarged" if plan.whole else "with their boxes"
    boxes = "; ".join([f"{plan.format} ({plan.why})", *plan.notes])
    told = f"{len(drawn)} of {len(wanted)} radiographs {what}; boxes: {boxes}"
    return stacked([_beside(drawn[i : i + COLUMNS]) for i in range(0, len(drawn), COLUMNS)]), told


def _raw(sources: Iterable[Source], wanted: dict[str, Entry]) -> Iterator[tuple[bytes, Entry]]:
    for source in sources:
        try:
            for member in source.members():
                if entry := wanted.get(source.name_of(member.name)):
                    with suppress(MemberError):
                        yield member.read(), entry
        except MemberError:  # it ends early
            continue


def _shown(pixels: np.ndarray, pixel_aspect: float, width: int = WIDTH) -> np.ndarray:
    """A radiograph or a part of one at this width, with square pixels."""
    wider, taller = stretch(pixel_aspect)
    scale = width / (pixels.shape[1] * wider)
    size = width, max(1, round(pixels.shape[0] * taller * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _borders(pixels: np.ndarray, pixel_aspect: float) -> Iterator[np.ndarray]:
    """The upper and the lower border, each in its left and right half: twice as large as in the whole picture."""
    rows, columns = max(1, round(BORDER * pixels.shape[0])), max(1, pixels.shape[1] // 2)
    for border in (pixels[:rows], pixels[-rows:]):
        for half in (border[:, :columns], border[:, -columns:]):
            part = _shown(half, pixel_aspect)
            part[0] = 255  # a line between the strips
            yield part


def _draw(picture: np.ndarray, raw: bytes, shape: tuple[int, ...], boxes: Sequence[Box], pixel_aspect: float) -> None:
    """Draw the boxes that give crops onto the `picture` of a radiograph of this shape."""
    height, width = shape[:2]
    sx, sy = picture.shape[1] / width, picture.shape[0] / height
    for box in boxes:
        try:
            corners = place(box, (width, height), partial(exif_orientation, raw))
            region(corners, height, width, 0.0, MIN_SIDE, pixel_aspect)
        except CropError:
            continue
        x0, y0, x1, y1 = corners
        cv2.rectangle(picture, (round(x0 * sx), round(y0 * sy)), (round(x1 * sx), round(y1 * sy)), 255, 1)
        write(picture, caption(box.labels), round(x0 * sx) + 2, round(y0 * sy) + 12)


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    height = max(picture.shape[0] for picture in pictures)
    return np.hstack([np.pad(p, ((0, height - p.shape[0]), (0, 0)), constant_values=GROUND) for p in pictures])
