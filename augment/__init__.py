"""One radiograph in, its multi-crop views out.

`MultiCrop(ViewConfig())(image, key)` is what training uses; `fit` is the deterministic resize of everything else.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks a server for its newest version at import

from augment.config import ViewConfig, ViewError
from augment.resize import RESIZE_RULE, fit
from augment.transforms import QuantumNoise, RegionWarp, ToneTable, Unsharpness
from augment.views import MultiCrop

__all__ = [
    "RESIZE_RULE",
    "MultiCrop",
    "QuantumNoise",
    "RegionWarp",
    "ToneTable",
    "Unsharpness",
    "ViewConfig",
    "ViewError",
    "fit",
]
