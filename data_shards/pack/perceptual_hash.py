"""Near duplicates: one radiograph encoded, scaled, windowed or trimmed in several ways, found by a perceptual hash.

Panoramics of different patients are alike: a hash of 64 bits, the usual length, takes strangers for copies in any
archive of thousands. Length, window and thresholds were chosen on UFBA-425 (`benchmarks/near.py`, docs/near.md).
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

BITS = 256
WITHIN = 32
"""Bits in which near duplicates may differ. Of 100 copies that lost 2 % on each side 97 are found, less altered ones
all; of 90,000 pairs of panoramics the nearest strangers differ in 51, and less than one in a million would in 32."""

_SCAN = 256
_SIDE = 64
_FLAT = 0.05
"""Where the 5th and 95th percentile of a row are nearer than this share of the image's range it is margin: tissue
varies more, the noise of JPEG less, and a letter in a margin does not make it tissue."""
_SPARE_BITS = 3
"""Bits looked up beyond those that number the hashes, so that most look-ups find nothing."""
_CHUNK = 1 << 21
"""Candidates compared at a time, in 250 MB of working memory."""


def perceptual_hash(pixels: np.ndarray) -> str:
    """A hash of a whole radiograph, uint8 or uint16 [H, W], as hex digits; "" where it is flat.

    64 digits for the image, followed by 64 for it without its uniform margins (padding, collimator, film border) if it
    has any. Averaged to 64 x 64 and turned into ranks, which neither window nor gamma changes much, it gives the signs
    of its 256 lowest frequencies, as in the DCT hash of Zauner ("Implementation and benchmarking of perceptual image
    hash functions", 2010), but under a sine window: edges, where crops differ, count little.
    """
    scan = cv2.resize(pixels, (_SCAN, _SCAN), interpolation=cv2.INTER_AREA)
    inner = _without_margins(scan)
    return _hash(scan) + (_hash(inner) if inner.shape != scan.shape else "")


def near_pairs(hashes: Sequence[str], within: int = WITHIN) -> list[tuple[int, int, int]]:
    """The (i, j, distance) with i < j of hashes that differ in at most `within` bits, in order.

    Of hashes with margins and without the nearest count. "" is near nothing. Those pairs are listed in which one is the
    first of its hash, so that a thousand equal hashes do not make half a million pairs. Exact, by multi-index hashing
    (Norouzi, Punjani, Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012): of `within // 3 + 1`
    bands of bits one differs in at most two, so hashes are compared whole only where a band agrees so far.

    Raises ValueError unless 0 <= within < 128.
    """
    if not 0 <= within < BITS // 2:
        raise ValueError(f"near duplicates within {within} bits: give 0 to {BITS // 2 - 1}")
    digits = BITS // 4
    owner = np.repeat(np.arange(len(hashes)), [len(text) // digits for text in hashes])
    raw = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(owner), BITS // 8)
    _, first, which = np.unique(raw.view(f"V{BITS // 8}").ravel(), return_index=True, return_inverse=True)
    pairs = _distinct_pairs(raw[first].view(np.uint64), within)
    equal = np.arange(len(first))
    pairs = np.concatenate([np.column_stack([equal, equal, np.zeros_like(equal)]), pairs, pairs[:, [1, 0, 2]]])
    members, counts = np.argsort(which, kind="stable"), np.bincount(which, minlength=len(first))
    count = counts[pairs[:, 1]]
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    others = members[np.repeat((np.cumsum(counts) - counts)[pairs[:, 1]], count) + offset]
    ends = np.sort(np.column_stack([owner[np.repeat(first[pairs[:, 0]], count)], owner[others]]), axis=1)
    ranked = np.unique(np.column_stack([ends, np.repeat(pairs[:, 2], count)])[ends[:, 0] < ends[:, 1]], axis=0)
    nearest = np.ones(len(ranked), dtype=bool)
    nearest[1:] = np.any(ranked[1:, :2] != ranked[:-1, :2], axis=1)
    return [(int(i), int(j), int(distance)) for i, j, distance in ranked[nearest]]


def _distinct_pairs(words: np.ndarray, within: int) -> np.ndarray:
    """int64 [n, 3]: the pairs of these distinct hashes, uint64 [n, 4], within so many bits, and their distance."""
    found = [np.zeros((0, 3), dtype=np.int64)]
    bands = within // 3 + 1
    for band in range(bands):
        for one, other in _alike(*_keys(words, range(band, BITS, bands))):
            distance = np.bitwise_count(words[one] ^ words[other]).sum(axis=1, dtype=np.int64)
            close = distance <= within
            ends = np.sort(np.column_stack([one[close], other[close]]), axis=1)
            found.append(np.column_stack([ends, distance[close]]))
    return np.unique(np.concatenate(found), axis=0)


def _hash(image: np.ndarray) -> str:
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    _, which, counts = np.unique(small.ravel(), return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return ""
    ranks = (2 * np.cumsum(counts) - counts - small.size)[which].reshape(small.shape)  # equal values, equal ranks
    spectrum = _BASIS @ ranks @ _BASIS.T
    signs = spectrum[_DOWN, _ACROSS] > 1e-9 * np.abs(spectrum).max()  # zero stays zero, however it is rounded
    return np.packbits(signs).tobytes().hex()


def _without_margins(scan: np.ndarray) -> np.ndarray:
    """`scan` without the uniform rows and columns at its edges; as it is where less than _SIDE would be left."""
    least = _FLAT * _spread(scan.ravel(), 0.01)
    inner, before = scan, (0, 0)
    while inner.shape != before:  # padding on one side hides a margin on another
        before = inner.shape
        for _ in range(2):
            lines = np.flatnonzero(_spread(inner.T, 0.05) > least)
            if len(lines) == 0 or lines[-1] + 1 - lines[0] < _SIDE:
                return scan
            inner = inner[lines[0] : lines[-1] + 1].T
    return inner


def _spread(values: np.ndarray, tail: float) -> np.ndarray:
    """How far the values are apart that have a share of `tail` below and above them, along the first axis."""
    low = int(tail * len(values))
    high = len(values) - 1 - low
    ranked = np.partition(values, (low, high), axis=0)
    return ranked[high] - ranked[low]


def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windowed cosine basis, and row and column of its BITS lowest frequencies without the mean, lowest first."""
    reach = 20  # a quarter disc of 256 frequencies has a radius of 18.1
    place = (np.arange(_SIDE) + 0.5) / _SIDE
    basis = np.cos(np.pi * np.outer(np.arange(reach), place)) * np.sin(np.pi * place)
    chosen = sorted((v * v + u * u, v, u) for v in range(reach) for u in range(reach))[1 : BITS + 1]
    _, down, across = np.array(chosen).T
    return basis, down, across


_BASIS, _DOWN, _ACROSS = _lowest_frequencies()


def _keys(words: np.ndarray, places: Sequence[int]) -> tuple[np.ndarray, int]:
    """The bits at `places` as a number for each row, and how many they are: no more than tell so many rows apart."""
    places = places[: len(words).bit_length() + _SPARE_BITS]
    keys = np.zeros(len(words), dtype=np.int64)
    for place in places:
        keys = keys << 1 | (words[:, place // 64] >> np.uint64(place % 64) & np.uint64(1)).astype(np.int64)
    return keys, len(places)


def _alike(keys: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows whose keys of so many bits differ in at most two of them, once, some at a time."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ends = np.cumsum(np.bincount(keys, minlength=1 << bits))
    yield from _expand(order, np.arange(len(keys)), np.arange(len(keys)) + 1, ends[keys])
    for high in range(bits):
        lower = np.flatnonzero(keys >> high & 1 == 0)  # the other of a pair has this bit
        for flip in [1 << high, *(1 << high | 1 << low for low in range(high))]:
            wanted = keys[lower] ^ flip
            starts, stops = ends[wanted - 1], ends[wanted]
            met = np.flatnonzero(stops > starts)
            yield from _expand(order, lower[met], starts[met], stops[met])


def _expand(
    order: np.ndarray, rows: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each of `rows` with each row in its start:stop, all as places in `order`, about _CHUNK pairs at a time."""
    counts = stops - starts
    total = np.cumsum(counts)
    begin = 0
    while begin < len(rows):
        done = total[begin] - counts[begin]
        end = max(begin + 1, int(np.searchsorted(total, done + _CHUNK, side="right")))
        count = counts[begin:end]
        offset = np.arange(count.sum()) - np.repeat(total[begin:end] - count - done, count)
        yield order[np.repeat(rows[begin:end], count)], order[np.repeat(starts[begin:end], count) + offset]
        begin = end
