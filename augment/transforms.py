"""What views are made of, as albumentations transforms that compose with any other.

`MultiCrop` calls `draw` and `apply` of the same objects directly: what albumentations adds around them (parameter
bookkeeping, contiguity copies, a second random generator for `p`) costs more than some of the operations themselves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import numpy as np
from albumentations.core.type_definitions import Targets

from augment.config import ViewError
from augment.geometry import Levels, Region, sample_region, warp
from augment.gray_levels import from_unit, unit

DRAWS = 8
"""Uniform numbers that any one transform may use: its place in a view's row of them never moves with its settings."""


class RegionWarp(A.DualTransform):
    """Crop, mirror, rotation, shear, change of aspect and resize as one warp: see `augment.geometry`.

    The fields of `ViewConfig` explain the arguments. Masks [h, w] take the same warp with nearest neighbours.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float] = (0.4, 1.0),
        aspect_jitter: float = 0.25,
        mirror_probability: float = 0.5,
        rotation_probability: float = 0.5,
        rotation_degrees: float = 10.0,
        shear: float = 0.08,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size, self.scale, self.aspect_jitter, self.shear = size, scale, aspect_jitter, shear
        self.mirror_probability = mirror_probability
        self.rotation_probability, self.rotation_degrees = rotation_probability, rotation_degrees

    def draw(self, u: Sequence[float], shape: tuple[int, int]) -> Region:
        """The region that a view of an image of `shape` (h, w) shows, from 8 even numbers `u` in 0 to 1."""
        return sample_region(
            u,
            shape,
            self.size,
            self.scale,
            self.aspect_jitter,
            self.mirror_probability,
            self.rotation_probability,
            self.rotation_degrees,
            self.shear,
        )

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The region, drawn from the generator that `set_random_state` gave."""
        return {"region": self.draw(self.random_generator.random(DRAWS).tolist(), params["shape"][:2])}

    def apply(self, img: np.ndarray, region: Region, **params: Any) -> np.ndarray:
        """The view of `region`: [H, W], or [H, W, channels], of the image's dtype."""
        view = warp(Levels(img), region)
        return view[..., None] if img.ndim == 3 and view.ndim == 2 else view

    def apply_to_mask(self, mask: np.ndarray, region: Region, **params: Any) -> np.ndarray:
        """The same view of a mask, whose values are labels and are never mixed. Raises `ViewError` beyond 16 bits."""
        if mask.dtype not in (np.uint8, np.uint16, np.int16, np.float32):
            raise ViewError(f"RegionWarp takes masks of 8 or 16 bits, this one is {mask.dtype}: convert it first")
        return warp(Levels(mask), region, nearest=True)


class Operation(A.ImageOnlyTransform):
    """A change of the grays of a view: uint8, uint16 (0 to 65535) or float32 (0 to 1), [H, W] or [H, W, 1].

    A subclass gives `draw`, which turns even numbers into its parameters, and `change`, its formula. uint8 is changed
    in 8 bits, uint16 and float32 in float32 from 0 to 1; beyond black and white all are clipped alike.
    """

    change: Callable[..., np.ndarray]
    """(image, white, **setting) -> the changed image [H, W], uint8 where `white` is 255, float32 where it is 1."""

    draw: Callable[[Sequence[float]], dict[str, Any]]
    """One setting within the ranges, from at most 7 even numbers in 0 to 1."""

    def get_params(self) -> dict[str, Any]:
        """`draw` from the generator that `set_random_state` gave."""
        return {"setting": self.draw(self.random_generator.random(DRAWS - 1).tolist())}

    def apply(self, img: np.ndarray, setting: dict[str, Any], **params: Any) -> np.ndarray:
        """The changed image, of the same dtype and shape. Raises `ViewError` for another dtype and for colour."""
        if img.ndim != 2 and img.shape[2:] != (1,):
            raise ViewError(f"{type(self).__name__} takes one channel, this image has the shape {img.shape}")
        flat = img.reshape(img.shape[:2])
        if img.dtype == np.uint8:
            return self.change(flat, 255.0, **setting).reshape(img.shape)
        return from_unit(self.change(unit(flat), 1.0, **setting), img.dtype).reshape(img.shape)


def even(u: float, limits: tuple[float, float]) -> float:
    """`u` in 0 to 1 onto `limits`."""
    return limits[0] + u * (limits[1] - limits[0])


def even_in_log(u: float, limits: tuple[float, float]) -> float:
    """`u` in 0 to 1 onto `limits`, so that factors of 1/2 and 2 are equally likely."""
    return limits[0] * (limits[1] / limits[0]) ** u
