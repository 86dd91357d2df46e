"""The stream of samples as batches of views, one for each step: position = step x global batch."""

from collections.abc import Iterator
from functools import partial
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from augment.views import MultiCrop
from data_shards.stream import Address, Stream
from pretrain.config import Config


class ViewDataset(Dataset[list[np.ndarray]]):
    """Address -> the views of that sample, uint8 [H, W] each; seeded from (seed, epoch, source, sample)."""

    def __init__(self, stream: Stream, multi_crop: MultiCrop, seed: int) -> None:
        self.stream = stream
        self.multi_crop = multi_crop
        self.seed = seed

    def __getitem__(self, address: Address) -> list[np.ndarray]:
        key = (self.seed, address.epoch, address.source, address.index)
        return self.multi_crop(self.stream.image(address), key)


class StepSampler(Sampler[list[Address]]):
    """The addresses of this rank's share of each global batch, from step `start` to `end`.

    Each rank takes a contiguous slice of every global batch, so all ranks have equally many batches whatever the
    shards' sizes, and the order does not depend on the number of ranks.
    """

    def __init__(self, stream: Stream, batch_size: int, start: int, end: int, rank: int = 0, ranks: int = 1) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.start, self.end = start, end
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[list[Address]]:
        share = self.batch_size // self.ranks
        for step in range(self.start, self.end):
            yield self.stream.addresses(step * self.batch_size + self.rank * share, share)


def stack_views(samples: list[list[np.ndarray]], global_count: int) -> list[Tensor]:
    """B samples of V views -> one uint8 tensor [views x B, 1, H, W] per crop size, view-major, global views first."""
    views = [torch.from_numpy(np.stack(view)) for view in zip(*samples, strict=True)]
    groups = [views[:global_count], views[global_count:]]
    return [torch.cat(group).unsqueeze(1) for group in groups if group]


def _single_threaded(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)


def view_batches(
    config: Config, stream: Stream, start: int, end: int, rank: int = 0, ranks: int = 1, pin_memory: bool = False
) -> DataLoader[list[Tensor]]:
    """The loader of steps `start` to `end`; its only state is the step, so resuming costs nothing."""
    loader = DataLoader(
        ViewDataset(stream, MultiCrop(config.views), config.seed),
        batch_sampler=cast(Sampler, StepSampler(stream, config.data.batch_size, start, end, rank, ranks)),
        num_workers=config.data.workers,
        collate_fn=partial(stack_views, global_count=config.views.global_count),
        worker_init_fn=_single_threaded,
        pin_memory=pin_memory,
        prefetch_factor=4 if config.data.workers else None,
    )
    return cast("DataLoader[list[Tensor]]", loader)


def normalised(views: Tensor, mean: float, std: float) -> Tensor:
    """uint8 views [N, 1, H, W] -> float32, ((pixel / 255) - mean) / std, on the device they are on."""
    return views.float().mul_(1 / (255 * std)).sub_(mean / std)
