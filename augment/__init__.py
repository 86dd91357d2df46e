"""One radiograph in, its multi-crop views out.

In: an image [h, w], a `ViewConfig` and a key for the random draws. Out: views of the configured sizes, equal for equal
keys. `MultiCrop(ViewConfig())(image, key)` is what training uses; `fit` is the deterministic resize of everything else.
Open `multicrop` first.
"""

import os
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks a server for its newest version at import

from augment.config import ViewConfig, ViewError
from augment.gray_levels import stacked
from augment.intensity import (
    BurnedInText,
    CollimatorEdge,
    LocalContrast,
    Motion,
    QuantumNoise,
    Sharpening,
    Tone,
    Unsharpness,
)
from augment.multicrop import MultiCrop
from augment.resize import RESIZE_RULE, fit
from augment.transforms import RegionWarp

__all__ = [
    "RECIPES",
    "RESIZE_RULE",
    "BurnedInText",
    "CollimatorEdge",
    "LocalContrast",
    "Motion",
    "MultiCrop",
    "QuantumNoise",
    "RegionWarp",
    "Sharpening",
    "Tone",
    "Unsharpness",
    "ViewConfig",
    "ViewError",
    "fit",
    "stacked",
]

RECIPES = Path(__file__).parent / "recipes"
"""Views for kinds of radiograph, a YAML file each."""
