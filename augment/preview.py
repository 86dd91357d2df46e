"""Views drawn beside their source, and operations at their extremes, to be looked at before they are trusted."""

from collections.abc import Sequence

import cv2
import numpy as np

from augment.gray_levels import checked, from_unit, unit
from augment.multicrop import MultiCrop
from augment.operation_strips import strips
from augment.resize import fit

TILE_HEIGHT, TILE_WIDTH = 224, 448
"""Pixels that sources and views are drawn in: a 24-pixel view is legible and a sheet fits a screen."""
STRIP_HEIGHT = 320
"""Pixels that operations are drawn in, at most: those of the released views, since fine noise is lost in fewer."""
MARGIN, CAPTION = 8, 18
_BACKGROUND, _INK = 24, (235, 235, 235)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def draw_sheet(images: Sequence[np.ndarray], multi_crop: MultiCrop, keys: Sequence[Sequence[int]]) -> np.ndarray:
    """The views of all images, and below them a strip for each operation on the first: uint8 [H, W, 3] (RGB)."""
    views = draw_views(images, multi_crop, keys)
    extremes = draw_strips(images[0], multi_crop, views.shape[1])
    width = max(views.shape[1], extremes.shape[1])
    return np.concatenate([_extended(part, part.shape[0], width) for part in (views, extremes)])


def draw_strips(image: np.ndarray, multi_crop: MultiCrop, width: int) -> np.ndarray:
    """Rows of at most `width` pixels: `image` plain, then the operations at the ends of their ranges, captioned."""
    image = _shown(image)
    whole = multi_crop.config.global_size
    height = STRIP_HEIGHT if TILE_HEIGHT < whole[0] <= STRIP_HEIGHT else TILE_HEIGHT
    plain = _tile(_at_height(fit(image, whole), height), "plain", _INK)
    rows: list[list[np.ndarray]] = [[]]
    for strip in strips(image, multi_crop.config):
        tiles = [_tile(_at_height(view, height), caption, _INK) for caption, view in strip]
        if not rows[-1] or sum(tile.shape[1] for tile in rows[-1] + tiles) > width:
            rows.append([plain])
        rows[-1] += tiles
    joined = [np.concatenate(row, axis=1) for row in rows if row]
    widest = max(row.shape[1] for row in joined)
    return np.concatenate([_extended(row, row.shape[0], widest) for row in joined])


def draw_views(images: Sequence[np.ndarray], multi_crop: MultiCrop, keys: Sequence[Sequence[int]]) -> np.ndarray:
    """A sheet of one row an image: uint8 [H, W, 3] (RGB, and the same in BGR but for the colours of the boxes).

    Each row holds the source (uint8, uint16 or float32 [h, w]) with the box of each view, and beside it the views that
    `multi_crop(image, key)` makes, captioned with name and size in the colour of the box. A box reaching beyond the
    source shows what was filled by reflection; `m` marks a mirrored view, and degrees a rotated one.
    """
    rows = [_row(image, multi_crop, key) for image, key in zip(images, keys, strict=True)]
    width = max(row.shape[1] for row in rows)
    return np.concatenate([_extended(row, row.shape[0], width) for row in rows])


def _row(image: np.ndarray, multi_crop: MultiCrop, key: Sequence[int]) -> np.ndarray:
    views, regions = multi_crop(image, key), multi_crop.regions(image.shape, key)
    image = _shown(image)
    colours = [_colour(i, len(views)) for i in range(len(views))]
    boxes = [(region.corners, colour) for region, colour in zip(regions, colours, strict=True)]
    tiles = [_tile(_with_boxes(image, boxes), f"source {image.shape[0]}x{image.shape[1]}", _INK)]
    for i, (view, region, colour) in enumerate(zip(views, regions, colours, strict=True)):
        is_global = i < multi_crop.config.global_count
        name = f"global {i + 1}" if is_global else f"local {i + 1 - multi_crop.config.global_count}"
        turn = f" {np.degrees(region.angle):+.1f}deg" if region.angle else ""
        caption = f"{name}{' m' if region.mirrored else ''}{turn}"
        tiles.append(_tile(_framed(_at_height(_shown(view), TILE_HEIGHT), colour), caption, colour))
    return np.concatenate(tiles, axis=1)


def _shown(image: np.ndarray) -> np.ndarray:
    """`image` in the 8 bits of a PNG."""
    return from_unit(unit(checked(image)), np.dtype(np.uint8))


def _with_boxes(image: np.ndarray, boxes: Sequence[tuple[np.ndarray, tuple[int, int, int]]]) -> np.ndarray:
    """The source on a ground that also holds the parts of the boxes beyond it, at most `TILE_HEIGHT` x `TILE_WIDTH`."""
    points = np.concatenate([corners for corners, _ in boxes])
    low = np.minimum(points.min(0), 0)
    extent = np.maximum(points.max(0), image.shape[1::-1]) - low
    scale = min((TILE_WIDTH - 4) / extent[0], (TILE_HEIGHT - 4) / extent[1])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    shrinks = height < image.shape[0]
    drawn = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    left, top = (round(-edge * scale) + 2 for edge in low)
    ground = np.full((TILE_HEIGHT, max(left + width, round(extent[0] * scale) + 4), 3), _BACKGROUND, np.uint8)
    ground[top : top + height, left : left + width] = cv2.cvtColor(drawn, cv2.COLOR_GRAY2RGB)[: TILE_HEIGHT - top]
    for corners, colour in boxes:
        outline = np.round((corners - low) * scale + 2).astype(np.int32)
        cv2.polylines(ground, [outline], isClosed=True, color=colour, thickness=1, lineType=cv2.LINE_AA)
    return ground


def _at_height(image: np.ndarray, height: int) -> np.ndarray:
    """Gray as RGB at `height`, or at `TILE_WIDTH`: pixels repeated when it grows, so that a view shows its own."""
    scale = min(height / image.shape[0], TILE_WIDTH / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), size, interpolation=interpolation)


def _framed(tile: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=colour)


def _tile(picture: np.ndarray, caption: str, colour: tuple[int, int, int]) -> np.ndarray:
    """A picture below its caption, with margins; wide enough for both."""
    text_width = cv2.getTextSize(caption, _FONT, _FONT_SCALE, 1)[0][0]
    height = max(TILE_HEIGHT + MARGIN, picture.shape[0])
    tile = np.full((CAPTION + height + MARGIN, max(picture.shape[1], text_width) + MARGIN, 3), _BACKGROUND, np.uint8)
    cv2.putText(tile, caption, (MARGIN // 2, CAPTION - 4), _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
    tile[CAPTION : CAPTION + picture.shape[0], MARGIN // 2 : MARGIN // 2 + picture.shape[1]] = picture
    return tile


def _extended(row: np.ndarray, height: int, width: int) -> np.ndarray:
    down, across = height - row.shape[0], width - row.shape[1]
    return cv2.copyMakeBorder(row, 0, down, 0, across, cv2.BORDER_CONSTANT, value=(_BACKGROUND,) * 3)


def _colour(i: int, count: int) -> tuple[int, int, int]:
    """Bright RGB of evenly spaced hues."""
    hsv = np.array([[[round(180 * i / count), 160, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue
