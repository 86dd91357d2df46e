"""The order in which the samples of one shard set come: an endless row of epochs, each a fresh permutation.

A permutation is never held whole. Shards are permuted, then samples within each group of shards, and a group's order
is computed when it is asked for: memory and time are those of a group, whatever the size of the set.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

ORDER = 2
"""Version of the order. A run that began under another version cannot be continued: its samples would come twice."""

GROUP = 16
"""Shards shuffled together: 16 of 64 MB are 1 GB, which the page cache of a training node holds with ease, while
neighbours of one radiograph are spread over some 60,000 samples."""

K = TypeVar("K")
T = TypeVar("T")


class _Epoch(NamedTuple):
    """The permuted shards of an epoch, where each of their groups begins and ends, and each shard's group."""

    shards: np.ndarray
    borders: np.ndarray
    group_of: np.ndarray


class Cycle:
    """Endless passes over shards of these sizes (at least one sample in all): every pass holds each sample once.

    Pure in (seed, epoch): the order of calls changes nothing. Seed and epochs are integers from 0.
    """

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, seed: int, group: int = GROUP) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.seed, self.group = seed, max(1, group)
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The samples at these places (from 0) of these epochs, int64: numbers over all shards."""
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            borders = self._epoch(int(epoch)).borders
            groups = np.searchsorted(borders, places, side="right") - 1
            for group in np.unique(groups[epochs == epoch]):
                mine = (epochs == epoch) & (groups == group)
                found[mine] = self._samples(int(epoch), int(group))[places[mine] - borders[group]]
        return found

    def shards_ahead(self, epoch: int, sample: int) -> list[int]:
        """The shards that a reader of `sample` in `epoch` needs now and next: those of its group and the following."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        group = int(self._epoch(epoch).group_of[shard])
        now = self._members(epoch, group)
        following = self._members(epoch, group + 1)
        return [*now.tolist(), *(following if len(following) else self._members(epoch + 1, 0)).tolist()]

    def _epoch(self, epoch: int) -> _Epoch:
        return _kept(self._epochs, epoch, 3, lambda: self._permuted_shards(epoch))

    def _permuted_shards(self, epoch: int) -> _Epoch:
        shards = _generator(self.seed, epoch).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[shards])
        borders = np.concatenate([[0], ends[self.group - 1 : -1 : self.group], ends[-1:]])
        group_of = np.empty(len(shards), dtype=np.int64)
        group_of[shards] = np.arange(len(shards)) // self.group
        return _Epoch(shards, borders, group_of)

    def _samples(self, epoch: int, group: int) -> np.ndarray:
        """The samples of one group in their order; a few groups are kept, since a batch may lie in several."""

        def shuffled() -> np.ndarray:
            members = self._members(epoch, group)
            samples = np.concatenate([np.arange(self.starts[s], self.starts[s + 1]) for s in members])
            rng = _generator(self.seed, epoch, group)
            if group == 0:
                rng.permutation(len(self.sizes))  # goes on after the shards' order: sets of one group keep order 1
            rng.shuffle(samples)
            return samples

        return _kept(self._groups, (epoch, group), 8, shuffled)

    def _members(self, epoch: int, group: int) -> np.ndarray:
        return self._epoch(epoch).shards[group * self.group : (group + 1) * self.group]


def epoch_order(shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, group: int = GROUP) -> np.ndarray:
    """One whole epoch of a `Cycle`: a permutation of range(sum(shard_sizes)), int64; to look at, not to read by."""
    places = np.arange(sum(shard_sizes), dtype=np.int64)
    return Cycle(shard_sizes, seed, group).at(np.full_like(places, epoch), places)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _kept(cache: OrderedDict[K, T], key: K, size: int, make: Callable[[], T]) -> T:
    """`cache[key]`, made where it is not there; the `size` last used are kept."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > size:
        cache.popitem(last=False)
    return cache[key]
