"""Labelled crops as batches: which crops make up each, how they are augmented, and how they are read."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from augment import MultiCrop, ViewConfig, ViewError, fit, stacked
from data_shards.errors import ShardError
from downstream.config import TrainingConfig
from downstream.data.crops import Crops

Draw = tuple[int, int]  # number of a pass, -1 for the crop as it is, and number of a crop
Shown = tuple[np.ndarray, int]  # an image [H, W] and its class


class LabelledViews(Dataset["Shown | ValueError"]):
    """(pass, crop) -> [H, W] and class: a view drawn from (seed, pass, crop), or resized where pass is -1.

    The error of a crop that cannot be read comes back: raised in a worker, it would reach the user as a traceback.
    """

    def __init__(self, crops: Crops, codes: np.ndarray, size: tuple[int, int], config: TrainingConfig) -> None:
        self.crops, self.codes, self.size = crops, codes, size
        self.seed, self.workers = config.seed, config.workers
        self.view = MultiCrop(mild_views(size, config.mirror))

    def __getitem__(self, draw: Draw) -> Shown | ValueError:
        number, i = draw
        try:
            image = self.crops.image(i)
            shown = fit(image, self.size) if number < 0 else self.view(image, (self.seed, number, i))[0]
        except (ShardError, ViewError) as error:
            return error
        return shown, int(self.codes[i])

    def batches(self, draws: list[list[Draw]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images [B, H, W], as `stacked`, and classes [B]. Raises the error of a crop that has one."""
        loader = DataLoader(
            self,
            batch_sampler=draws,
            num_workers=self.workers,
            collate_fn=_stack,
            worker_init_fn=_single_threaded,
        )
        for batch in loader:
            if isinstance(batch, ValueError):
                raise batch
            yield batch


def mild_views(size: tuple[int, int], mirror: bool) -> ViewConfig:
    """One view that keeps what a label may hang on: nearly the whole crop, upright, sharp, its grays moved a little."""
    return ViewConfig(
        global_size=size,
        global_count=1,
        local_count=0,
        global_scale=(0.8, 1.0),
        mirror_probability=0.5 if mirror else 0.0,
        aspect_jitter=0.1,
        brightness=(-0.1, 0.1),
        contrast=(0.8, 1.25),
        gamma=(0.8, 1.25),
        shear=0.04,
        blur_probability=0.1,
        motion_probability=0.0,
        noise_probability=0.1,
        local_contrast_probability=0.0,
        sharpen_probability=0.1,
        border_probability=0.0,
        text_probability=0.0,
    )


def shuffled(crops: np.ndarray, number: int, size: int, seed: int, accelerator: Accelerator) -> list[list[Draw]]:
    """This process's slices of full batches of `size` crops, in the order of (seed, pass `number`).

    The few crops that remain, others in each pass, are left out. The slices of all processes make up the batch.
    """
    draws = [(number, int(i)) for i in np.random.default_rng([seed, number]).permutation(crops)]
    share = size // accelerator.num_processes
    first = accelerator.process_index * share
    return [draws[i + first : i + first + share] for i in range(0, len(draws) - size + 1, size)]


def in_order(crops: np.ndarray, size: int) -> list[list[Draw]]:
    """Every crop once, as it is, in batches of `size`."""
    draws = [(-1, int(i)) for i in crops]
    return [draws[i : i + size] for i in range(0, len(draws), size)]


def _stack(samples: "list[Shown | ValueError]") -> "tuple[Tensor, Tensor] | ValueError":
    readable: list[Shown] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        readable.append(sample)
    images, codes = zip(*readable, strict=True)
    return torch.from_numpy(stacked(images)), torch.tensor(codes)


def _single_threaded(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)
