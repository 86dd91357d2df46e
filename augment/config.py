"""What a view is made of: the fields of a recipe's `views:` mapping."""

import math
from dataclasses import dataclass, field
from typing import Any


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
    """Fraction of the image's area that a global view shows. From 0.4 a tooth keeps its crown and most of its root; 0.4
    is DINO's for small sets too."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    """Fraction of the image's area that a local view shows. Below 0.1 many views of a tooth hold bone alone."""
    mirror_probability: float = 0.5
    """How often a view is mirrored left to right. 0.5: a left tooth and its right fellow are one kind; features then
    cannot tell sides, so 32-class FDI numbers are out of reach and the 16 positions are not. In the ablation tooth
    types were told 0.007 +- 0.006 better without: no reason either way; 0 keeps the sides apart."""
    rotation_probability: float = 0.5
    """How often a view is rotated and sheared. 0.5: upright and tilted teeth are both common, and an upright view is
    resized in a fifth of the time of a warp."""
    rotation_degrees: float = 10.0
    """Largest rotation either way. 10: sensors are placed, and teeth lean in a row, by about as much; upside-down teeth
    are other teeth."""
    shear: float = 0.08
    """Largest horizontal shift either way from the top to the bottom of a view, as a fraction of its height: its axes
    are 4.6 degrees off the right angle, as of a tooth that leans towards the beam."""
    aspect_jitter: float = 0.25
    """Largest log of the stretch of a view against its region: e^0.25 = 1.28. A vertical angulation 30 degrees off
    makes a tooth 1 / cos 30 = 1.15 longer or shorter, a panoramic's horizontal magnification varies more; above
    ln 1.33 a molar would become an incisor, and it is refused."""
    blur_probability: float = 0.2
    """How often a view is blurred. 0.2: most radiographs are sharp, and fine lines must be learnt from those."""
    blur_sigma: tuple[float, float] = (0.002, 0.006)
    """Range of the blur's standard deviation as a fraction of the view's height, at least half a pixel. In a view of a
    whole tooth, 25 mm, 0.05 to 0.15 mm, in a local one less: 2.5 line pairs a mm, a good panoramic, at a tenth of the
    contrast are 0.14 mm. At 0.15 mm a periodontal ligament of 0.2 mm keeps half of its contrast."""
    motion_probability: float = 0.1
    """How often a view is smeared along its rows or columns. 0.1: exposures last a tenth of a second, retakes are made
    when it shows, and panoramics smear along their scan."""
    motion_length: tuple[float, float] = (0.004, 0.012)
    """Range of the smear's length as a fraction of the view's height, at least 1.5 pixels. In a view of a whole tooth
    0.1 to 0.3 mm: the periodontal ligament is 0.15 to 0.38 mm wide, and lines across the smear must not go."""
    noise_probability: float = 0.2
    """How often quantum noise is added. 0.2: crops bring their own noise already, and k-NN did not miss it."""
    noise_strength: tuple[float, float] = (0.005, 0.02)
    """Range of the noise's standard deviation in black, as a fraction of full scale; it falls as the square root of
    the detected dose does towards white. UFBA-425's crops have 0.002 to 0.009 of their own; above 0.02 roots vanish in
    it on low-contrast crops."""
    local_contrast_probability: float = 0.15
    """How often a vendor's contrast equalisation is redone. 0.15: archives mix a few vendors' processing."""
    local_contrast: tuple[float, float] = (-0.15, 0.4)
    """Range of what is added of the difference to the local mean (over an eighth of the view's height). Below 0 the
    processing is taken back, and below -0.15 metal glows; above 0.4 crowns get dark halos that look like bone loss."""
    sharpen_probability: float = 0.15
    """How often a view is sharpened by unsharp masking. 0.15: as above."""
    sharpen: tuple[float, float] = (0.3, 1.5)
    """Range of what is added of the difference to the blurred view. Vendors' filters stay near 1; above 1.5 the
    overshoot beside a filling looks like caries."""
    sharpen_radius: float = 0.004
    """Standard deviation of that blur as a fraction of the view's height, at least half a pixel: 0.1 mm of a 25 mm
    tooth, two to four pixels of an intraoral detector."""
    brightness: tuple[float, float] = (-0.1, 0.1)
    """Range of the shift of gray, as a fraction of full scale. Between patients one tooth's mean gray differs by -0.09
    to 0.11 (1st to 99th percentile, `benchmarks/exposure.py` on UFBA-425)."""
    contrast: tuple[float, float] = (0.7, 1.5)
    """Range of the gain about the view's mean, drawn evenly in its logarithm. Between patients one tooth's gray spread
    differs by factors of 0.74 to 1.66 (5th to 95th percentile, same command)."""
    gamma: tuple[float, float] = (0.67, 1.5)
    """Range of the exponent of the gray curve, drawn evenly in its logarithm. Between patients one tooth's median gray
    differs as by 0.61 to 1.86 (same command), anatomy included; beyond 1.5 pulp and caries fade into dentin. With
    these three one view of real crops in 30 loses over 5 % of its pixels to black or white, one in 100 over 20 %."""
    border_probability: float = 0.05
    """How often a straight collimator edge cuts off part of a view. Rare: cone cuts are retaken."""
    border_width: tuple[float, float] = (0.03, 0.15)
    """Range of the part of the view's side beyond the edge. Up to 0.15 crown and root tip stay in most views."""
    text_probability: float = 0.05
    """How often letters are burned in (L, R, a number), as viewing software does; what a network must not rely on."""
    extra: list[dict[str, Any]] = field(default_factory=list)
    """Further albumentations transforms, applied last and in this order to each view: `{name: CLAHE, p: 0.1,
    clip_limit: [1, 3]}`, where all but the name are the transform's own arguments."""

    def __post_init__(self) -> None:
        """Raise `ViewError` for a value no view can be made with."""
        for name in ("global_size", "local_size"):
            low, high = sorted(getattr(self, name))
            _require(1 <= low <= high <= 4096, name, getattr(self, name), "give a height and a width of 1 to 4096")
        _require(self.global_count >= 1, "global_count", self.global_count, "give at least 1")
        _require(self.local_count >= 0, "local_count", self.local_count, "give 0 or more")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            _require(0 < low <= high <= 1, name, (low, high), "give low <= high within 0 to 1, 0 excluded")
        for name, value in vars(self).items():
            if name.endswith("_probability"):
                _require(0 <= value <= 1, name, value, "give a probability of 0 to 1")
        _require(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "give 0 to 180")
        _require(0 <= self.aspect_jitter <= math.log(1.33), "aspect_jitter", self.aspect_jitter, "give 0 to 0.285")
        _require(0 <= self.shear <= 0.5, "shear", self.shear, "give 0 to 0.5")
        for name in ("brightness", "local_contrast"):
            low, high = getattr(self, name)
            _require(-1 <= low <= high <= 1, name, (low, high), "give low <= high within -1 to 1")
        low, high = self.sharpen
        _require(0 <= low <= high <= 10, "sharpen", self.sharpen, "give low <= high within 0 to 10")
        _require(0 < self.sharpen_radius <= 1, "sharpen_radius", self.sharpen_radius, "give a fraction of at most 1")
        for name in ("contrast", "gamma"):
            low, high = getattr(self, name)
            _require(0.1 <= low <= high <= 10, name, (low, high), "give low <= high within 0.1 to 10")
        for name in ("blur_sigma", "motion_length", "noise_strength", "border_width"):
            low, high = getattr(self, name)
            _require(0 <= low <= high <= 1, name, (low, high), "give low <= high within 0 to 1")


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ViewError(f"views.{name} is {value}: {remedy}")
