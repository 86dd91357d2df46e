"""Multi-crop: one radiograph in, its global and local views out."""

from collections.abc import Sequence

import numpy as np

from augment.albumentations_extra import build_extra, transformed
from augment.config import ViewConfig
from augment.geometry import Levels, Region, warp
from augment.gray_levels import checked, from_unit, unit
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
from augment.transforms import DRAWS, Operation, RegionWarp


class MultiCrop:
    """Make the views of one radiograph.

    Each view follows a radiograph's own way: what is in the beam (`RegionWarp`), the `operations` in their order, and
    then the configuration's `extra` transforms. A view is a pure function of (image, key, its index): the order of
    calls, the process and the number of workers change nothing.

    OpenCV starts as many threads as there are cores: a loader that makes views in several worker processes calls
    `cv2.setNumThreads(0)` in each of them when it starts (PyTorch's `worker_init_fn`).
    """

    def __init__(self, config: ViewConfig) -> None:
        """Raises `ViewError` for `extra` transforms that cannot be made or do nothing."""
        self.config = config
        self._warps = region_warps(config)
        self._operations = list(enumerate(operations(config), start=1))
        self._extra = build_extra(config)

    def __call__(self, image: np.ndarray, key: Sequence[int], bits: int | None = None) -> list[np.ndarray]:
        """The views of `image` [h, w] of any size: [H, W] each, the global ones first.

        uint8, uint16 (0 to 65535; with `bits` 0 to 2^bits - 1, raised to it) and float32 (0 to 1) in, the same dtype
        out; deep images are worked on in float32. `key` names the draw, such as (seed, epoch, source, sample):
        integers from 0 below 2^64. Raises `ViewError` for any other image.
        """
        image = checked(image, bits)
        levels, deep = Levels(image), image.dtype != np.uint8
        philox_key = _philox_key(key)
        views = []
        for index, (u, geometry) in enumerate(zip(self._draws(philox_key), self._warps, strict=True)):
            view = warp(levels, geometry.draw(u[:DRAWS], image.shape))
            if deep:
                view = unit(view)
            for place, operation in self._operations:
                first = place * DRAWS
                if u[first] < operation.p:
                    setting = operation.draw(u[first + 1 : first + DRAWS])
                    view = operation.change(view, 1.0 if deep else 255.0, **setting)
            for number, extra in enumerate(self._extra):
                view = transformed(view, extra, _generator(philox_key, index + 1, number + 1))
            views.append(from_unit(view, image.dtype) if deep else view)
        return views

    def regions(self, shape: tuple[int, int], key: Sequence[int]) -> list[Region]:
        """What each view that `self(image, key)` returns shows of an image of `shape` (h, w)."""
        draws = self._draws(_philox_key(key))
        return [geometry.draw(u[:DRAWS], shape) for u, geometry in zip(draws, self._warps, strict=True)]

    def _draws(self, philox_key: np.ndarray) -> list[list[float]]:
        """Even numbers in 0 to 1, a row a view: 8 for the warp, then 8 for each operation, whether it uses them or not.

        So no operation and no setting moves the draws of another, and no number of views those of a view.
        """
        columns = DRAWS * (1 + len(self._operations))
        rows: list[list[float]] = _generator(philox_key).random((len(self._warps), columns)).tolist()
        return rows


def region_warps(config: ViewConfig) -> list[RegionWarp]:
    """The warp of each view, the global ones first."""
    shape = (
        config.aspect_jitter,
        config.mirror_probability,
        config.rotation_probability,
        config.rotation_degrees,
        config.shear,
    )
    whole = RegionWarp(config.global_size, config.global_scale, *shape)
    part = RegionWarp(config.local_size, config.local_scale, *shape)
    return [whole] * config.global_count + [part] * config.local_count


def operations(config: ViewConfig) -> list[Operation]:
    """What happens to the grays of a view, in the order of a radiograph: beam, detector, processing, display."""
    return [
        Unsharpness(config.blur_sigma, config.blur_probability),
        Motion(config.motion_length, config.motion_probability),
        QuantumNoise(config.noise_strength, config.noise_probability),
        LocalContrast(config.local_contrast, config.local_contrast_probability),
        Sharpening(config.sharpen, config.sharpen_radius, config.sharpen_probability),
        Tone(config.brightness, config.contrast, config.gamma),
        CollimatorEdge(config.border_width, config.border_probability),
        BurnedInText(config.text_probability),
    ]


def _philox_key(key: Sequence[int]) -> np.ndarray:
    # The length and two whole words an integer: SeedSequence alone takes (1,) and (1, 0) for the same.
    words = np.array([len(key), *key], "<u8").view("<u4")
    return np.random.SeedSequence(words).generate_state(2, np.uint64)


def _generator(philox_key: np.ndarray, view: int = 0, extra: int = 0) -> np.random.Generator:
    """The stream of a sample's own draws, or that of one extra transform of one view (both counted from 1).

    Streams of one Philox key with different high counter words never overlap (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3").
    """
    return np.random.Generator(np.random.Philox(key=philox_key, counter=view << 192 | extra << 128))
