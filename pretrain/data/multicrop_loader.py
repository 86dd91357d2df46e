"""The stream of samples as batches of views, one for each step: position = step x global batch."""

import signal
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from augment import MultiCrop, ViewError, stacked
from data_shards.shards.stream import Address, ShardError, Stream
from pretrain.config.schema import Config


class SampleRecord(NamedTuple):
    """What a batch says about one of its samples: its address, the index read in its place, its views' CRC-32."""

    source: int
    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    read: int  # another than `index` where that was unreadable
    views: int


class Sample(NamedTuple):
    """Views [H, W] of one sample in its own depth, its record, and why another was read in its place if one was."""

    views: list[np.ndarray]
    record: SampleRecord
    unreadable: str


class Batch(NamedTuple):
    """One rank's share of a step.

    views: [views x B, 1, H, W] per crop size, view-major, the global ones first; uint8 if all samples are, else float32
    from 0 to 1. samples: int64 [B, 5], a
    SampleRecord each. unreadable: a message for each sample that could not be read.
    """

    views: list[Tensor]
    samples: Tensor
    unreadable: list[str]


class ViewDataset(Dataset[Sample | ValueError]):
    """Address -> the views of that sample ([H, W], seeded from seed, epoch, source and sample), and its record.

    With `substitutes`, another sample takes the place of one that cannot be read; else, or when those cannot be read
    either, its error comes back: raised in a worker, it would reach the user as a traceback.
    """

    def __init__(self, stream: Stream, multi_crop: MultiCrop, seed: int, substitutes: bool = False) -> None:
        self.stream = stream
        self.multi_crop = multi_crop
        self.seed = seed
        self.substitutes = substitutes

    def __getitem__(self, address: Address) -> Sample | ValueError:
        self.stream.read_ahead(address)
        try:
            image, read, attempt, failure = self.stream.read(address, self.substitutes)
            # In another's place a sample has other views than in its own.
            key = (self.seed, read.epoch, read.source, read.index, *([attempt] if attempt else []))
            views = self.multi_crop(image, key)
        except (ShardError, ViewError) as error:
            return error
        checksum = 0
        for view in views:
            checksum = zlib.crc32(view.tobytes(), checksum)
        return Sample(views, SampleRecord(*address, read.index, checksum), str(failure or ""))


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


def stack_views(samples: list[Sample | ValueError], global_count: int) -> Batch | ValueError:
    """B samples of V views as a batch; if a sample is an error, so is the batch."""
    readable: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        readable.append(sample)
    views = [view for views in zip(*(s.views for s in readable), strict=True) for view in views]
    split = global_count * len(readable)
    return Batch(
        [torch.from_numpy(stacked(group)).unsqueeze(1) for group in (views[:split], views[split:]) if group],
        torch.tensor([s.record for s in readable]),
        [s.unreadable for s in readable if s.unreadable],
    )


def _start_worker(_worker: int) -> None:
    # A TERM to the whole process group asks the run to stop, not its workers to die; they end with their parent.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)


def view_batches(
    config: Config, stream: Stream, start: int, end: int, rank: int = 0, ranks: int = 1, pin_memory: bool = False
) -> Iterator[Batch]:
    """The batches of steps `start` to `end`; the only state is the step, so resuming costs nothing.

    Raises ShardError or ViewError for a sample that cannot be read.
    """
    loader: DataLoader[Batch | ValueError] = DataLoader(
        cast(Dataset, ViewDataset(stream, MultiCrop(config.views), config.seed, config.data.bad_samples > 0)),
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
        for reason in batch.unreadable:
            tqdm.write(f"warning: {reason} (another takes its place)", file=sys.stderr)
        yield batch
