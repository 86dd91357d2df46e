"""Multi-crop: one radiograph in, its global and local views out."""

from collections.abc import Sequence

import numpy as np

from augment.config import ViewConfig
from augment.geometry import Levels, Region, warp
from augment.resize import as_uint8
from augment.transforms import QuantumNoise, RegionWarp, ToneTable, Unsharpness


class MultiCrop:
    """Make the views of one radiograph.

    Each view follows a radiograph's own way: what is in the beam (`RegionWarp`), then unsharpness, quantum noise, and
    last the detector's and display's curve (`ToneTable`). A view is a pure function of (image, key, its index): the
    order of calls, the process and the number of workers change nothing.

    OpenCV starts as many threads as there are cores: a loader that makes views in several worker processes calls
    `cv2.setNumThreads(0)` in each of them when it starts (PyTorch's `worker_init_fn`).
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config = config
        shape = (
            config.aspect_jitter,
            config.mirror_probability,
            config.rotation_probability,
            config.rotation_degrees,
        )
        self._warps = [RegionWarp(config.global_size, config.global_scale, *shape)] * config.global_count + [
            RegionWarp(config.local_size, config.local_scale, *shape)
        ] * config.local_count
        self._blur = Unsharpness(config.blur_sigma, config.blur_probability)
        self._noise = QuantumNoise(config.noise_strength, config.noise_probability)
        self._tone = ToneTable(config.brightness, config.contrast, config.gamma)

    def __call__(self, image: np.ndarray, key: Sequence[int]) -> list[np.ndarray]:
        """The views of `image`, uint8 or uint16 [h, w] of any size: uint8 [H, W] each, the global ones first.

        `key` names the draw, such as (seed, epoch, source, sample): integers from 0 below 2^64. uint16 grays are
        rounded to 256 first (65535 becomes 255). Raises `ViewError` for another dtype or number of axes.
        """
        levels = Levels(as_uint8(image))
        views = []
        for rng, geometry in zip(self._generators(key), self._warps, strict=True):
            view = warp(levels, geometry.draw(rng, image.shape))
            for operation in (self._blur, self._noise, self._tone):
                # Drawn also when not applied, so that no operation's setting moves the draws of the next.
                applied, params = rng.random() < operation.p, operation.draw(rng)
                if applied:
                    view = operation.apply(view, **params)
            views.append(view)
        return views

    def regions(self, shape: tuple[int, int], key: Sequence[int]) -> list[Region]:
        """What each view that `self(image, key)` returns shows of an image of `shape` (h, w)."""
        return [geometry.draw(rng, shape) for rng, geometry in zip(self._generators(key), self._warps, strict=True)]

    def _generators(self, key: Sequence[int]) -> list[np.random.Generator]:
        """One generator a view: Philox keyed by `key`, with the view's index in the counter's highest word.

        Streams of one Philox key with different high counter words never overlap (Salmon et al. 2011, "Parallel random
        numbers: as easy as 1, 2, 3"); hashing `key` once a sample saves a third of the cost of seeding.
        """
        # The length and two whole words an integer: SeedSequence alone takes (1,) and (1, 0) for the same.
        words = np.array([len(key), *key], "<u8").view("<u4")
        philox_key = np.random.SeedSequence(words).generate_state(2, np.uint64)
        return [
            np.random.Generator(np.random.Philox(key=philox_key, counter=view << 192))
            for view in range(len(self._warps))
        ]
