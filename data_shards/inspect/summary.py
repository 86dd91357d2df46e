"""Everything that is worth knowing of a shard folder, counted once for the text and for the page."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.annotations.labels import KNOWN_COLUMNS
from data_shards.errors import ShardError
from data_shards.inspect.consistency import FORM, MAIN, misfit, read_lines
from data_shards.progress import progress
from data_shards.shards.manifest import MANIFEST, NEAR, REJECTED
from data_shards.shards.schema import RESERVED
from data_shards.shards.shard_set import ShardSet

MEASURED = 2000
"""Crops whose pixels are looked at, spread evenly: their mean is within 0.3 % of full scale of that of all, and a large
folder takes no longer than a small one."""
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_STRUCTURE = frozenset(
    (
        "id",
        "patient",
        "source",
        "radiograph",
        "pixels",
        "hash",
        "box",
        "frame",
        "width",
        "height",
        "bits",
        "source_bits",
    )
)
"""Fields of a sample that are counted in their own way; the other reserved ones are facts about the radiograph."""


@dataclass
class Duplicates:
    """Radiographs left out for the same pixels (`exact`; of `earlier` the twin lies in an earlier pack), or as nearly
    the same (`dropped`), and `near`: pairs listed as nearly the same.
    """

    exact: int = 0
    earlier: int = 0
    near: int = 0
    dropped: int = 0


@dataclass
class Survey:
    """A shard folder in figures; of foreign shards those that they have. The holdout is not in them unless said.

    `sizes`: width and height in pixels and width over height, float64 [samples] (for foreign shards of the measured
    crops). `intensities`: counts of pixels in 256 equal steps of full scale; `mean` and `deviation` in full scale.
    `labels` and `words`: how often each value occurs. `numbers`: numeric facts, [samples that have it]. `hidden`:
    fields of foreign shards whose values may be names, with the number of values.
    """

    samples: int
    shards: int
    megabytes: float
    manifest: dict[str, Any]
    radiographs: int = 0
    patients: int = 0
    later_frames: int = 0
    crops_a_patient: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sizes: dict[str, np.ndarray] = field(default_factory=dict)
    measured: int = 0
    intensities: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    mean: float = 0.0
    deviation: float = 0.0
    depths: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    words: dict[str, Counter[str]] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)
    duplicates: Duplicates = field(default_factory=Duplicates)


def survey(samples: ShardSet, quiet: bool = False) -> Survey:
    """Read every sample's JSON and the pixels of `MEASURED` of them. Raises ShardError where they cannot be read."""
    form = FORM | (MAIN if samples.manifest.get("part") == "main" else {})
    if samples.manifest and isinstance(samples.path, Path) and (wrong := misfit(samples.manifest, form)):
        raise ShardError(f"{samples.path / MANIFEST} has no valid `{wrong}`: copy it, or pack again")
    found = Survey(len(samples), len(samples.shard_sizes), _megabytes(samples), samples.manifest)
    fields: dict[str, Counter[str]] = defaultdict(Counter)
    numbers: dict[str, list[float]] = defaultdict(list)
    sizes = np.zeros((len(samples), 2))
    patients: Counter[str] = Counter()
    radiographs = set()
    for i in progress(range(len(samples)), desc="reading", unit=" samples", disable=quiet):
        meta = samples.meta(i)
        sizes[i] = meta.get("width", 0), meta.get("height", 0)
        patients[str(meta.get("patient", ""))] += 1
        radiographs.add(meta.get("radiograph"))
        found.later_frames += bool(meta.get("frame"))
        found.depths[_depth(meta)] += 1
        for name, value in meta.items():
            if name in _STRUCTURE:
                continue
            if name in RESERVED and _is_number(value):
                numbers[name].append(float(np.mean(value)) if isinstance(value, list) else float(value))
            else:
                fields[name][str(value)] += 1
    found.numbers = {name: np.array(values) for name, values in sorted(numbers.items())}
    found.radiographs = len(radiographs - {None})
    found.patients = len(patients.keys() - {""})
    found.crops_a_patient = np.array([n for patient, n in patients.items() if patient])
    _sort_fields(found, fields)
    _measure(found, samples, sizes, quiet)
    if isinstance(samples.path, Path) and samples.manifest:
        found.duplicates = _duplicates(samples.path)
    return found


def _sort_fields(found: Survey, fields: Mapping[str, Counter[str]]) -> None:
    """Tell labels from facts, and from fields of others' shards that may hold names."""
    for name, counts in sorted(fields.items()):
        if name in RESERVED:
            found.words[name] = counts
        elif found.manifest or name.lower() in KNOWN_COLUMNS:
            found.labels[name] = counts
        else:
            found.hidden[name] = len(counts)


def _measure(found: Survey, samples: ShardSet, sizes: np.ndarray, quiet: bool) -> None:
    chosen = spread_over(len(samples), MEASURED)
    shapes = []
    for i in progress(chosen, desc="measuring", unit=" crops", disable=quiet):
        pixels = samples.image(i)
        deep = pixels.dtype == np.uint16
        found.intensities += np.bincount((pixels >> 8 if deep else pixels).ravel(), minlength=256)
        shapes.append(pixels.shape[::-1])
        if not found.manifest:
            found.depths["16 bits" if deep else "8 bits"] += 1
    levels = np.arange(256) / 255
    found.mean = float(np.average(levels, weights=found.intensities))
    found.deviation = float(np.average((levels - found.mean) ** 2, weights=found.intensities) ** 0.5)
    if found.manifest:  # exact, over all pixels
        statistics = found.manifest["statistics"]
        found.mean, found.deviation = statistics["pixel_mean"], statistics["pixel_std"]
    else:
        sizes = np.array(shapes, np.float64)
        del found.depths[""]
    found.measured = len(chosen)
    width, height = sizes.T
    found.sizes = {"width": width, "height": height, "aspect": width / height}


def spread_over(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    count = min(count, total)
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def _duplicates(folder: Path) -> Duplicates:
    found = Duplicates()
    for line in read_lines(folder / REJECTED):
        if "twin" in line and line["ledger"] == "radiographs":
            near = line["reason"].startswith("nearly")
            found.dropped += near
            found.exact += not near
            found.earlier += not near and "earlier" in line["reason"]
    if (folder / NEAR).is_file():
        found.near = len(read_lines(folder / NEAR))
    return found


def _depth(meta: Mapping[str, Any]) -> str:
    stored, source = meta.get("bits"), meta.get("source_bits")
    if stored is None:
        return ""
    return f"{stored} bits" if source in (None, stored) else f"{stored} of {source} bits"


def _is_number(value: object) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(_is_number(v) for v in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _megabytes(samples: ShardSet) -> float:
    if samples.manifest:
        return sum(shard["bytes"] for shard in samples.manifest["shards"]) / 1e6
    return sum(path.stat().st_size for path in samples.shards) / 1e6
