"""The exact stream: which sample stands at every position, as a pure function of (seed, position).

A position counts samples from the start of training, over all epochs and ranks. Nothing else is state, so a run
resumes from its step alone, and neither workers nor ranks change the order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import CorruptError, ShardError
from data_shards.shards.remote import Url
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.shuffle import GROUP, Cycle, epoch_order

__all__ = ["GROUP", "Address", "CorruptError", "ShardError", "ShardSet", "Stream", "epoch_order"]

WINDOW = 1000
"""Samples in which each weighted share is right to one sample."""
PHASES = 32
"""Shares are multiples of 1 / (WINDOW * PHASES), 31 millionths; over 2 * PHASES windows they are exact."""


ATTEMPTS = 8
"""Samples tried: the one wanted, two more of its shard, and five of its whole set."""


class Address(NamedTuple):
    """One sample of a stream: number of its set, the epoch of that set, and its index there."""

    source: int
    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody asks of an address


class Reading(NamedTuple):
    """An image uint8 or uint16 [H, W], where it was read, at which attempt (0: in its own place), the first failure."""

    image: np.ndarray
    address: Address
    attempt: int
    failure: CorruptError | None


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
        self._remote = any(isinstance(s.path, Url) for s in sets)
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
        self._first_shards = np.concatenate([[0], np.cumsum([len(s.shard_sizes) for s in sets])])
        if weights is None:
            self._schedule = None
            self._cycles = [Cycle(np.concatenate([s.shard_sizes for s in sets]), seed, group)]
        else:  # each set its own seed, so that sets of equal size do not move in step
            self._schedule = _Schedule(weights, [str(s.path) for s in sets])
            seeds = [int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in range(len(sets))]
            self._cycles = [Cycle(s.shard_sizes, own, group) for s, own in zip(sets, seeds, strict=True)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def addresses(self, start: int, count: int) -> list[Address]:
        """The samples at positions start .. start + count - 1. Costs the same at every position."""
        positions = np.arange(start, start + count, dtype=np.int64)
        if self._schedule is None:
            epochs, places = np.divmod(positions, len(self))
            flat = self._cycles[0].at(epochs, places)
            sources = np.searchsorted(self._starts, flat, side="right") - 1
            indices = flat - self._starts[sources]
        else:
            sources, ordinals = self._schedule.at(positions)
            epochs, places = np.divmod(ordinals, np.diff(self._starts)[sources])
            indices = np.empty_like(places)
            for source in np.unique(sources):
                mine = sources == source
                indices[mine] = self._cycles[source].at(epochs[mine], places[mine])
        return [Address(*row) for row in zip(sources.tolist(), epochs.tolist(), indices.tolist(), strict=True)]

    def image(self, address: Address) -> np.ndarray:
        """The image at `address`, uint8 or uint16 [H, W]."""
        return self.sets[address.source].image(address.index)

    def read(self, address: Address, substitutes: bool = False) -> "Reading":
        """The image at `address`, or with `substitutes` one in its place where it cannot be read.

        Only what is corrupt is replaced: a server that is lost for an hour must not change which samples a run sees.
        Raises CorruptError for the first failure if nothing else can be read either, other ShardErrors at once.
        """
        attempt, read = 0, address
        failure: CorruptError | None = None
        while True:
            try:
                return Reading(self.image(read), read, attempt, failure)
            except CorruptError as error:
                failure = failure or error
                attempt += 1
                if not substitutes or attempt == ATTEMPTS:
                    raise failure from None
                read = self.substitute(address, attempt)

    def meta(self, address: Address) -> dict[str, Any]:
        """The metadata at `address`."""
        return self.sets[address.source].meta(address.index)

    def substitute(self, address: Address, attempt: int) -> Address:
        """Another sample of the same set for an unreadable one: pure in (seed, address, attempt), attempt from 1.

        First from the same shard, which is at hand; from the third attempt on from the whole set, should the shard
        itself be unreadable.
        """
        sizes = self.sets[address.source].shard_sizes
        ends = np.cumsum(sizes)
        shard = int(np.searchsorted(ends, address.index, side="right"))
        low, high = (ends[shard] - sizes[shard], ends[shard]) if attempt < 3 else (0, ends[-1])
        rng = np.random.default_rng([self.seed, *address, attempt])
        return address._replace(index=int(rng.integers(low, high)))

    def read_ahead(self, address: Address) -> None:
        """Have the shards fetched that a reader at `address` needs now and next, where they are remote."""
        if not self._remote:
            return
        source, epoch, index = address
        if self._schedule is None:
            wanted = self._cycles[0].shards_ahead(epoch, int(self._starts[source]) + index)
        else:
            wanted = [int(self._first_shards[source]) + s for s in self._cycles[source].shards_ahead(epoch, index)]
        owners = np.searchsorted(self._first_shards, wanted, side="right") - 1
        for owner in dict.fromkeys(owners.tolist()):
            first = int(self._first_shards[owner])
            self.sets[owner].prefetch([s - first for s, o in zip(wanted, owners, strict=True) if o == owner])


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
