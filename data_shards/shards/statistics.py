"""Statistics of samples, gathered one by one: what a manifest states, and what `verify` counts again."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_shards.shards.schema import RESERVED

_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


@dataclass
class Tally:
    """Counts over samples: 8 bytes a sample for their sizes, and their radiographs' and patients' ids once each."""

    widths: array = field(default_factory=lambda: array("I"))
    heights: array = field(default_factory=lambda: array("I"))
    radiographs: set[str] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    sums: Counter[tuple[int, str]] = field(default_factory=Counter)
    """By depth and name (`count`, `total`, `squares`), since full scale differs; sums of integers are exact."""

    def add(self, meta: Mapping[str, Any]) -> None:
        """Count a sample by its JSON. Raises KeyError, TypeError or OverflowError where that is none of ours."""
        self.widths.append(meta["width"])
        self.heights.append(meta["height"])
        self.radiographs.add(meta["radiograph"])
        self.patients.add(meta["patient"])
        for name, value in meta.items():
            if name not in RESERVED:
                self.labels.setdefault(name, Counter())[str(value)] += 1

    def add_pixels(self, bits: int, count: int, total: int, squares: int) -> None:
        """Count pixels of this depth: how many, their sum, the sum of their squares."""
        for name, value in (("count", count), ("total", total), ("squares", squares)):
            self.sums[bits, name] += value

    def merge(self, other: "Tally") -> None:
        """Count all that another has counted."""
        self.widths += other.widths
        self.heights += other.heights
        self.radiographs |= other.radiographs
        self.patients |= other.patients
        self.sums.update(other.sums)
        for name, counts in other.labels.items():
            self.labels.setdefault(name, Counter()).update(counts)

    def statistics(self) -> dict[str, Any]:
        """As a manifest states them: pixel mean and standard deviation in full scale (0 to 1), sizes in pixels."""
        depths = sorted({bits for bits, _ in self.sums})
        count = max(1, sum(self.sums[bits, "count"] for bits in depths))
        mean = sum(self.sums[bits, "total"] / ((1 << bits) - 1) for bits in depths) / count
        square = sum(self.sums[bits, "squares"] / ((1 << bits) - 1) ** 2 for bits in depths) / count
        widths, heights = np.array(self.widths, np.float64), np.array(self.heights, np.float64)
        return {
            "samples": len(widths),
            "radiographs": len(self.radiographs),
            "patients": len(self.patients),
            "pixel_mean": round(mean, 6),
            "pixel_std": round(max(0.0, square - mean * mean) ** 0.5, 6),
            "width": _quantiles(widths),
            "height": _quantiles(heights),
            "aspect": _quantiles(widths / heights),
            "labels": {name: dict(sorted(self.labels[name].items())) for name in sorted(self.labels)},
        }


def pixel_sums(pixels: np.ndarray) -> tuple[int, int, int]:
    """How many pixels, their sum and the sum of their squares: exact for uint8 and uint16."""
    flat = pixels.reshape(-1)
    if flat.dtype == np.uint8:
        counts = np.bincount(flat, minlength=256)
        values = np.arange(256)
        return flat.size, int(counts @ values), int(counts @ (values * values))
    wide = flat.astype(np.uint64)
    return flat.size, int(wide.sum()), int((wide * wide).sum())


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, _QUANTILES)
    return {f"{100 * q:g}%": round(float(v), 3) for q, v in zip(_QUANTILES, found, strict=True)}
