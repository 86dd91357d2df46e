"""The stream of samples as batches of views, one for each step: position = step x global batch."""

import signal
from collections.abc import Iterator
from functools import partial
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from augment import MultiCrop, ViewError
from data_shards.stream import Address, ShardError, Stream
from pretrain.config import Config


class ViewDataset(Dataset[list[np.ndarray] | ValueError]):
    """Address -> the views of that sample, uint8 [H, W] each; seeded from (seed, epoch, source, sample).

    A sample that cannot be read comes back as its error: raised in a worker, it would reach the user as a traceback.
    """

    def __init__(self, stream: Stream, multi_crop: MultiCrop, seed: int) -> None:
        self.stream = stream
        self.multi_crop = multi_crop
        self.seed = seed

    def __getitem__(self, address: Address) -> list[np.ndarray] | ValueError:
        key = (self.seed, address.epoch, address.source, address.index)
        try:
            return self.multi_crop(self.stream.image(address), key)
        except (ShardError, ViewError) as error:
            return error


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


def stack_views(samples: list[list[np.ndarray] | ValueError], global_count: int) -> list[Tensor] | ValueError:
    """B samples of V views -> one uint8 tensor [views x B, 1, H, W] per crop size, view-major, global views first.

    If a sample is an error, so is the batch.
    """
    readable: list[list[np.ndarray]] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        readable.append(sample)
    views = [torch.from_numpy(np.stack(view)) for view in zip(*readable, strict=True)]
    groups = [views[:global_count], views[global_count:]]
    return [torch.cat(group).unsqueeze(1) for group in groups if group]


def _start_worker(_worker: int) -> None:
    # A TERM to the whole process group asks the run to stop, not its workers to die; they end with their parent.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)


def view_batches(
    config: Config, stream: Stream, start: int, end: int, rank: int = 0, ranks: int = 1, pin_memory: bool = False
) -> Iterator[list[Tensor]]:
    """The batches of steps `start` to `end`; the only state is the step, so resuming costs nothing.

    Raises ShardError or ViewError for a sample that cannot be read.
    """
    loader: DataLoader[list[Tensor] | ValueError] = DataLoader(
        cast(Dataset, ViewDataset(stream, MultiCrop(config.views), config.seed)),
        batch_sampler=cast(Sampler, StepSampler(stream, config.data.batch_size, start, end, rank, ranks)),
        num_workers=config.data.workers,
        collate_fn=partial(stack_views, global_count=config.views.global_count),
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        prefetch_factor=4 if config.data.workers else None,
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def normalised(views: Tensor, mean: float, std: float) -> Tensor:
    """uint8 views [N, 1, H, W] -> float32, ((pixel / 255) - mean) / std, on the device they are on."""
    return views.float().mul_(1 / (255 * std)).sub_(mean / std)
