"""The operations that views are made of, as albumentations transforms that compose with any other.

`MultiCrop` calls `draw` and `apply` of the same objects directly: what albumentations adds around them (parameter
bookkeeping, contiguity copies, a second random generator for `p`) costs more than some of the operations themselves.
"""

import math
from functools import cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from augment.config import ViewError
from augment.geometry import Levels, Region, sample_region, warp
from augment.resize import BORDER


class RegionWarp(A.DualTransform):
    """Crop, mirror, rotation, change of aspect and resize as one warp: see `augment.geometry`.

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
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size, self.scale, self.aspect_jitter = size, scale, aspect_jitter
        self.mirror_probability = mirror_probability
        self.rotation_probability, self.rotation_degrees = rotation_probability, rotation_degrees

    def draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> Region:
        """The region that a view of an image of `shape` (h, w) shows."""
        return sample_region(
            rng,
            shape,
            self.size,
            self.scale,
            self.aspect_jitter,
            self.mirror_probability,
            self.rotation_probability,
            self.rotation_degrees,
        )

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The region, drawn from the generator that `set_random_state` gave."""
        return {"region": self.draw(self.random_generator, params["shape"][:2])}

    def apply(self, img: np.ndarray, region: Region, **params: Any) -> np.ndarray:
        """The view of `region`: [H, W] of the image's dtype."""
        return warp(Levels(img), region)

    def apply_to_mask(self, mask: np.ndarray, region: Region, **params: Any) -> np.ndarray:
        """The same view of a mask, whose values are labels and are never mixed."""
        return warp(Levels(mask), region, cv2.INTER_NEAREST)


class ToneTable(A.ImageOnlyTransform):
    """Gamma, then gain about mid-gray, then shift, as one table of 256 entries; uint8 images of any shape.

    With x and y in 0 to 1: y = (x^gamma - 0.5) contrast + 0.5 + brightness, clipped, rounded to the nearest gray.
    """

    def __init__(
        self,
        brightness: tuple[float, float] = (-0.15, 0.15),
        contrast: tuple[float, float] = (0.7, 1.35),
        gamma: tuple[float, float] = (0.67, 1.5),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """One setting within the ranges; three numbers from `rng`."""
        return {
            "brightness": _even(rng, self.brightness),
            "contrast": _even_in_log(rng, self.contrast),
            "gamma": _even_in_log(rng, self.gamma),
        }

    def get_params(self) -> dict[str, float]:
        """`draw` from the generator that `set_random_state` gave."""
        return self.draw(self.random_generator)

    def apply(self, img: np.ndarray, brightness: float, contrast: float, gamma: float, **params: Any) -> np.ndarray:
        """The image with its grays replaced through the table."""
        _check_uint8(img, "ToneTable")
        return cv2.LUT(img, tone_table(brightness, contrast, gamma))


class Unsharpness(A.ImageOnlyTransform):
    """Gaussian blur whose standard deviation is a fraction of the image's height."""

    def __init__(self, sigma: tuple[float, float] = (0.003, 0.01), p: float = 0.3) -> None:
        super().__init__(p=p)
        self.sigma = sigma

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """One standard deviation within the range; one number from `rng`."""
        return {"sigma": _even(rng, self.sigma)}

    def get_params(self) -> dict[str, float]:
        """`draw` from the generator that `set_random_state` gave."""
        return self.draw(self.random_generator)

    def apply(self, img: np.ndarray, sigma: float, **params: Any) -> np.ndarray:
        """The blurred image; `sigma` is a fraction of its height. Beyond the edge it is reflected."""
        pixels = sigma * img.shape[0]
        reach = math.ceil(2.5 * pixels)
        if reach == 0:
            return img
        kernel = cv2.getGaussianKernel(2 * reach + 1, pixels)
        # The same as cv2.GaussianBlur to a gray level, in a third of its time on uint8.
        return cv2.sepFilter2D(img, -1, kernel, kernel, borderType=BORDER)


class QuantumNoise(A.ImageOnlyTransform):
    """Noise of counted X-ray quanta on an image displayed bright where little arrived; uint8 images of any shape.

    The dose that made gray x (0 to 1) is in proportion to 1 - x and its count is Poisson, so the standard deviation is
    strength x sqrt(1 - x): most in black, none in white. The count is taken as normal, which it is at such doses.
    """

    def __init__(self, strength: tuple[float, float] = (0.005, 0.025), p: float = 0.3) -> None:
        super().__init__(p=p)
        self.strength = strength

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """One strength within the range, and where in the stored field its noise lies; two numbers from `rng`."""
        return {"strength": _even(rng, self.strength), "place": rng.random()}

    def get_params(self) -> dict[str, float]:
        """`draw` from the generator that `set_random_state` gave."""
        return self.draw(self.random_generator)

    def apply(self, img: np.ndarray, strength: float, place: float, **params: Any) -> np.ndarray:
        """The image with noise of `strength` (standard deviation in black as a fraction of full scale)."""
        _check_uint8(img, "QuantumNoise")
        deviation = (255 * strength * np.sqrt(1 - np.arange(256) / 255)).astype(np.float32)
        noise = cv2.LUT(img, deviation)
        cv2.multiply(noise, _noise_like(img.shape, place), dst=noise)
        return cv2.add(img, noise, dtype=cv2.CV_8U)


def tone_table(brightness: float, contrast: float, gamma: float) -> np.ndarray:
    """`ToneTable`'s formula for all 256 grays: uint8 [256]."""
    y = _GRAYS**gamma
    y *= 255 * contrast
    y += 255 * (0.5 + brightness - 0.5 * contrast) + 0.5  # the last half rounds where astype cuts off
    return np.minimum(np.maximum(y, 0), 255).astype(np.uint8)


_GRAYS = np.arange(256) / 255


@cache
def _noise_field() -> np.ndarray:
    """float32 [2^20] standard normal: drawn once a process, because drawing it per view would cost the most of all."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def _noise_like(shape: tuple[int, ...], place: float) -> np.ndarray:
    stored = _noise_field()
    wanted = math.prod(shape)
    if wanted > stored.size:
        return np.resize(stored, shape)
    start = int(place * (stored.size - wanted + 1))
    return stored[start : start + wanted].reshape(shape)


def _even(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return limits[0] + rng.random() * (limits[1] - limits[0])


def _even_in_log(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return limits[0] * (limits[1] / limits[0]) ** rng.random()


def _check_uint8(image: np.ndarray, name: str) -> None:
    if image.dtype != np.uint8:
        raise ViewError(f"{name} takes uint8 images, this one is {image.dtype}: convert it to uint8 first")
