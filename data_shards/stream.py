"""The exact stream: which sample stands at every position, as a pure function of (seed, position).

A position counts samples from the start of training, over all epochs and ranks. Nothing else is state, so a run
resumes from its step alone, and neither workers nor ranks change the order.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import ShardError
from data_shards.shard_set import ShardSet

__all__ = ["GROUP", "Address", "ShardError", "ShardSet", "Stream", "epoch_order"]

GROUP = 16
"""Shards shuffled together: 16 of 64 MB are 1 GB, which the page cache of a training node holds with ease, while
neighbours of one radiograph are spread over some 60,000 samples."""

WINDOW = 1000
"""Samples in which each weighted share is right to one sample."""
PHASES = 32
"""Shares are multiples of 1 / (WINDOW * PHASES), 31 millionths; over 2 * PHASES windows they are exact."""


class Address(NamedTuple):
    """One sample of a stream: number of its set, the epoch of that set, and its index there."""

    source: int
    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody asks of an address


def epoch_order(shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, group: int = GROUP) -> np.ndarray:
    """The order of one epoch: a permutation of range(sum(shard_sizes)), int64; pure in (seed, epoch).

    Shards are permuted, then samples are shuffled within each run of `group` shards, so that at any time a reader
    needs only `group` shards. Both integers must be at least 0.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    shards = rng.permutation(len(sizes))
    parts = []
    for first in range(0, len(shards), max(group, 1)):
        members = shards[first : first + max(group, 1)]
        part = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        rng.shuffle(part)
        parts.append(part)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class Stream:
    """Endless samples of one or several shard sets.

    Without `weights` the sets are one: every epoch holds each sample exactly once, and the next follows with no
    remainder dropped. With `weights` (one positive number a set) the sets' own endless exact-once cycles are
    interleaved: in any 1000 positions each share is right to one sample. `len` is the summed size of the sets.
    Raises ShardError for weights that fit the sets badly.
    """

    def __init__(
        self, sets: Sequence[ShardSet], weights: Sequence[float] | None, seed: int, group: int = GROUP
    ) -> None:
        if not sets:
            raise ShardError("no shard set to stream from: name at least one shard folder")
        self.sets = list(sets)
        self.seed = seed
        self.group = group
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
        self._schedule = None if weights is None else _Schedule(weights, [str(s.path) for s in sets])
        self._orders: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def addresses(self, start: int, count: int) -> list[Address]:
        """The samples at positions start .. start + count - 1. Costs the same at every position."""
        positions = np.arange(start, start + count, dtype=np.int64)
        if self._schedule is None:
            epochs, places = positions // len(self), positions % len(self)
            flat = self._look_up(0, epochs, places)
            sources = np.searchsorted(self._starts, flat, side="right") - 1
            indices = flat - self._starts[sources]
        else:
            sources, ordinals = self._schedule.at(positions)
            sizes = np.diff(self._starts)[sources]
            epochs, places = ordinals // sizes, ordinals % sizes
            indices = np.empty_like(places)
            for source in np.unique(sources):
                mine = sources == source
                indices[mine] = self._look_up(int(source), epochs[mine], places[mine])
        return [Address(*row) for row in zip(sources.tolist(), epochs.tolist(), indices.tolist(), strict=True)]

    def image(self, address: Address) -> np.ndarray:
        """The image at `address`, uint8 or uint16 [H, W]."""
        return self.sets[address.source].image(address.index)

    def meta(self, address: Address) -> dict[str, Any]:
        """The metadata at `address`."""
        return self.sets[address.source].meta(address.index)

    def _look_up(self, cycle: int, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            found[mine] = self._order(cycle, int(epoch))[places[mine]]
        return found

    def _order(self, cycle: int, epoch: int) -> np.ndarray:
        """The permutation of one cycle's epoch; the last two of each cycle are kept (a batch may straddle both)."""
        if (cycle, epoch) not in self._orders:
            if self._schedule is None:
                sizes, seed = np.concatenate([s.shard_sizes for s in self.sets]), self.seed
            else:  # its own seed, so that sets of equal size do not move in step
                sizes = self.sets[cycle].shard_sizes
                seed = int(np.random.SeedSequence([self.seed, cycle]).generate_state(1, np.uint64)[0])
            for old in [k for k in self._orders if k[0] == cycle][:-1]:
                del self._orders[old]
            self._orders[cycle, epoch] = epoch_order(sizes, seed, epoch, self.group)
        return self._orders[cycle, epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": OrderedDict()}  # a worker computes its permutations itself


class _Schedule:
    """Which set each position draws from, and how many draws that set had before it.

    Stride scheduling keeps any 1000 draws within one sample for two sets only (three or more: 1.6 and above,
    measured). Here draw r of each thousand owns a fixed slot [s, s + 1) of the ring [0, 1000), which the sets
    divide by their shares, and takes the set at the point s + phase. Any 1000 draws in a row hold every slot once,
    so only slots that a border cuts can differ. The phase rises and falls by 1/32 a thousand, so that it crosses
    two borders of a set never in opposite ways at once, and over 64 thousands every share is exact.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str]) -> None:
        if len(weights) != len(names):
            raise ShardError(f"{len(weights)} weights for {len(names)} shard sets: give one weight to each")
        shares = np.asarray(weights, dtype=np.float64)
        if not (np.all(np.isfinite(shares)) and np.all(shares > 0)):
            raise ShardError(f"weights {list(weights)} of {', '.join(names)}: each must be a positive number")
        ring = WINDOW * PHASES
        if shares.min() * ring < shares.sum():
            raise ShardError(f"the weight of {names[int(shares.argmin())]} is under 1/{ring} of all: raise it")
        parts = _parts(shares / shares.sum())
        borders = np.cumsum(parts)
        self.draws = 2 * parts  # of each set in one period
        # 617 / 1000 is near the golden section: neighbouring draws come from distant slots, so short windows mix too.
        slots = np.arange(WINDOW) * 617 % WINDOW
        phases = np.concatenate([np.arange(PHASES), np.arange(PHASES)[::-1]])
        points = (phases[:, None] + slots * PHASES).ravel()
        self.sources = np.searchsorted(borders, points, side="right")
        self.ordinals = np.empty(len(points), dtype=np.int64)
        for source in range(len(names)):
            mine = self.sources == source
            self.ordinals[mine] = np.arange(mine.sum())

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Set and draw number (of that set, from 0) at each position."""
        period, place = np.divmod(positions, len(self.sources))
        sources = self.sources[place]
        return sources, period * self.draws[sources] + self.ordinals[place]


def _parts(shares: np.ndarray) -> np.ndarray:
    """The shares (sum 1) in whole parts of 1 / (WINDOW * PHASES), which sum to the whole.

    A share between n and n + 1 samples a window stays strictly between: at n exactly, where two borders move
    together, a window could hold n + 1 and miss it by more than one. Possible for up to PHASES sets.
    """
    exact = shares * (WINDOW * PHASES)
    whole = np.isclose(exact / PHASES, np.rint(exact / PHASES), rtol=0, atol=1e-9)
    low = np.where(whole, np.rint(exact), np.floor(exact / PHASES) * PHASES + 1).astype(np.int64)
    high = np.where(whole, low, low + PHASES - 2)
    parts = np.clip(np.rint(exact), low, high).astype(np.int64)
    while missing := WINDOW * PHASES - int(parts.sum()):
        step = 1 if missing > 0 else -1
        movable = (parts < high) if missing > 0 else (parts > low)
        if not movable.any():
            raise ShardError(f"{len(shares)} weighted shard sets are too many: join some, or leave the weights out")
        parts[np.argmax(np.where(movable, (exact - parts) * step, -np.inf))] += step
    return parts
