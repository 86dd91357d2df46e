"""What a view is made of: the fields of a recipe's `views:` mapping."""

import math
from dataclasses import dataclass


class ViewError(ValueError):
    """Settings or an image that no views can be made from: what, where and what to do, in one line."""


@dataclass(frozen=True)
class ViewConfig:
    """The multi-crop views of one radiograph."""

    global_size: tuple[int, int] = (320, 240)
    """Height and width of a global view in pixels. (320, 240) is what the released weights were trained with."""
    local_size: tuple[int, int] = (128, 96)
    """Height and width of a local view in pixels. 0.4 of the global size, as 96 is of 224 in DINO; multiples of 16 for
    the ViT."""
    global_count: int = 2
    """Global views a sample. Two: each is the target of the other; the teacher sees only these."""
    local_count: int = 8
    """Local views a sample, seen by the student alone. Eight, as in DINO: they cost about as much as the globals."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Fraction of the image's area that a global view shows. From 0.4 a tooth keeps its crown and most of its root."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    """Fraction of the image's area that a local view shows. Below 0.1 many views of a tooth hold bone alone."""
    mirror_probability: float = 0.5
    """How often a view is mirrored left to right. 0.5: a left tooth and its right fellow are one kind; features then
    cannot tell sides, so 32-class FDI numbers are out of reach and the 16 positions are not."""
    rotation_probability: float = 0.5
    """How often a view is rotated. 0.5: upright and tilted teeth are both common."""
    rotation_degrees: float = 10.0
    """Largest rotation either way. 10: teeth lean about as much in a row, and upside-down teeth are other teeth."""
    aspect_jitter: float = 0.25
    """Largest log of the stretch of a view against its region: e^0.25 = 1.28, what a panoramic's uneven horizontal
    magnification does; more than ln 1.33 would make a molar of an incisor and is refused."""
    brightness: tuple[float, float] = (-0.15, 0.15)
    """Range of the shift of gray, as a fraction of full scale. 0.15: exposure and display offset, short of a washed-out
    film."""
    contrast: tuple[float, float] = (0.7, 1.35)
    """Range of the gain about mid-gray, drawn evenly in its logarithm. What vendors' window settings vary; with these
    ranges of tone one view of real crops in 28 loses over 5 % of its pixels to black or white, one in 300 over 20 %."""
    gamma: tuple[float, float] = (0.67, 1.5)
    """Range of the exponent of the gray curve, drawn evenly in its logarithm. Detector and display curves differ about
    this much; beyond it the pulp and caries fade into dentin."""
    blur_probability: float = 0.3
    """How often a view is blurred. 0.3: most radiographs are sharp, and fine lines must be learnt from those."""
    blur_sigma: tuple[float, float] = (0.003, 0.01)
    """Range of the blur's standard deviation as a fraction of the view's height, so that one recipe serves all sizes:
    1 to 3 pixels at 320. A tooth is about 25 mm tall: 0.08 to 0.25 mm, focal spot to slight motion."""
    noise_probability: float = 0.3
    """How often quantum noise is added. 0.3: crops bring their own noise already."""
    noise_strength: tuple[float, float] = (0.005, 0.025)
    """Range of the noise's standard deviation in black, as a fraction of full scale; it falls as the square root of
    the detected dose does towards white. Above 0.025 roots vanish in it on low-contrast crops."""

    def __post_init__(self) -> None:
        """Raise `ViewError` for a value no view can be made with."""
        for name in ("global_size", "local_size"):
            _require(
                min(getattr(self, name)) >= 1, name, getattr(self, name), "give a height and a width of at least 1"
            )
        _require(self.global_count >= 1, "global_count", self.global_count, "give at least 1")
        _require(self.local_count >= 0, "local_count", self.local_count, "give 0 or more")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, name, (low, high), "give low <= high within 0 to 1, 0 excluded")
        for name in ("mirror_probability", "rotation_probability", "blur_probability", "noise_probability"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "give a probability of 0 to 1")
        _require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "give 0 to 180")
        _require(0 <= self.aspect_jitter <= math.log(1.33), "aspect_jitter", self.aspect_jitter, "give 0 to 0.285")
        low, high = self.brightness
        _require(-1 <= low <= high <= 1, "brightness", self.brightness, "give low <= high within -1 to 1")
        for name in ("contrast", "gamma"):
            low, high = getattr(self, name)
            _require(0 < low <= high, name, (low, high), "give 0 < low <= high")
        for name in ("blur_sigma", "noise_strength"):
            low, high = getattr(self, name)
            _require(0 <= low <= high <= 1, name, (low, high), "give low <= high within 0 to 1")


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ViewError(f"views.{name} is {value}: {remedy}")
