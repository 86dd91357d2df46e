"""Crops with a label, read from shards, and why they cannot be scored where they cannot."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from augment import fit, stacked
from data_shards.errors import Mistake
from data_shards.shards.schema import FACTS, RESERVED
from data_shards.shards.stream import CorruptError, ShardSet

PIXELS = (24, 24)  # the raw-pixel baseline's size, the one its published figure on real crops was taken at
FIRST = 100
"""Crops of a set on a server that are asked whether they carry a label."""
ONE_PATIENT = "patient-disjoint scores need crops of at least two patients; pack more, or tell --patient who they are"
BOOKKEEPING = RESERVED - frozenset(FACTS)
"""What shards keep of where a crop comes from, which no crop of another patient can share."""


class EvaluationError(Mistake):
    """Crops that cannot be scored; one line saying what is missing."""


class LabelledCrops(NamedTuple):
    """Crops with a label: images [N, H, W] at the input size as `stacked`, pixels [N, 576], sizes [N, 2] in px."""

    images: np.ndarray
    pixels: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


def load_labelled(
    sets: Sequence[ShardSet],
    label: str,
    size: tuple[int, int],
    limit: int | None = None,
    unreadable: list[str] | None = None,
) -> LabelledCrops:
    """Read the crops that carry `label`, resized to `size` (H, W); of larger sets, `limit` spread evenly over them.

    Corrupt crops are left out if a list takes their messages. Raises EvaluationError when there is none to read,
    ShardError for one that cannot be read.
    """
    told = len(unreadable or ())
    stride = 1 if limit is None else -(-sum(map(len, sets)) // limit)
    carrying = [_carrying(shards, label, unreadable, stride) for shards in sets]
    if stride > 1 and not _comparable([crop for one in carrying for crop in one]):
        if unreadable:
            del unreadable[told:]  # they come again
        carrying = [_carrying(shards, label, unreadable) for shards in sets]  # of all, which takes long in large sets
        stride = 1 if limit is None else max(1, -(-sum(map(len, carrying)) // limit))
    else:
        stride = 1
    images, pixels, sizes, labels, patients = [], [], [], [], []
    for shards, places in zip(sets, carrying, strict=True):
        for i, name, patient in places[::stride]:
            try:
                image = shards.image(i)
            except CorruptError as error:
                if unreadable is None:
                    raise
                unreadable.append(str(error))
                continue
            images.append(fit(image, size))
            pixels.append(fit(image, PIXELS))
            sizes.append(image.shape)
            labels.append(name)
            patients.append(patient)
    if not images:
        raise EvaluationError(f"no crop that carries the label '{label}' can be read in {_named(sets)}")
    flat = stacked(pixels).reshape(len(pixels), -1)
    return LabelledCrops(stacked(images), flat, *(np.array(column) for column in (sizes, labels, patients)))


def _carrying(
    shards: ShardSet, label: str, unreadable: list[str] | None, stride: int = 1
) -> list[tuple[int, str, str]]:
    """Those with `label` of each `stride`-th crop: (index, label, patient). Corrupt ones as in `load_labelled`."""
    found = []
    for i in range(0, len(shards), stride):
        try:
            meta = shards.meta(i)
        except CorruptError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))
            continue
        if meta.get(label) is not None:
            found.append((i, str(meta[label]), patient_of(meta, shards, i)))
    return found


def _comparable(crops: Sequence[tuple[int, str, str]]) -> bool:
    """Whether these (index, label, patient) are of two classes and two patients at least."""
    return all(len({crop[of] for crop in crops}) > 1 for of in (1, 2))


def patient_of(meta: Mapping[str, Any], shards: ShardSet, i: int) -> str:
    """Whose crop `i` is; one that does not say counts as a patient of its own."""
    return f"{shards.path}:{i}" if meta.get("patient") is None else str(meta["patient"])


def _named(sets: Sequence[ShardSet]) -> str:
    return ", ".join(str(shards.path) for shards in sets)


def joined(one: LabelledCrops, other: LabelledCrops) -> LabelledCrops:
    """The crops of both, in order."""
    images = stacked([*one.images, *other.images])
    return LabelledCrops(images, *(np.concatenate(columns) for columns in zip(one[1:], other[1:], strict=True)))


def carries_label(sets: Sequence[ShardSet], label: str) -> bool:
    """Whether any crop of these sets has `label`; of sets on a server, any of their first ones."""
    return any(True for _ in _with_label(sets, label))


def patients_unknown(sets: Sequence[ShardSet], label: str) -> bool:
    """Whether any of each set's first crops with `label` does not say whose it is."""
    asked = (meta for shards in sets for meta in islice(_with_label([shards], label), FIRST))
    return any(meta.get("patient") is None for meta in asked)


def _with_label(sets: Sequence[ShardSet], label: str) -> Iterator[dict[str, Any]]:
    """The metadata of the crops with `label`. Of a set on a server only its FIRST: all of it might have to come."""
    looked_at = ((shards, len(shards) if isinstance(shards.path, Path) else FIRST) for shards in sets)
    metas = (shards.meta(i) for shards, most in looked_at for i in range(min(len(shards), most)))
    return (meta for meta in metas if meta.get(label) is not None)


def check_label(sets: Sequence[ShardSet], label: str) -> None:
    """Raise EvaluationError, before hours of training, for a `label` that cannot be scored.

    It is none, no crop carries it, only those of one patient do, or all are of one class.
    """
    fields = sorted({field for shards in sets for field in shards.meta(0)} - RESERVED)
    others = f"name another with --eval.label, they have {', '.join(fields) or 'none'}"
    if label in BOOKKEEPING:
        raise EvaluationError(f"'{label}' tells where a crop comes from and is no label to score; {others}")
    if not carries_label(sets, label):
        here = all(isinstance(shards.path, Path) for shards in sets)
        which = "no crop" if here else f"none of the first {FIRST} crops"
        raise EvaluationError(f"{which} carries the label '{label}' in {_named(sets)}; {others}")
    patients, classes = set(), set()
    for shards in sets:
        for i in range(len(shards)):
            meta = shards.meta(i)
            if meta.get(label) is not None:
                patients.add(patient_of(meta, shards, i))
                classes.add(str(meta[label]))
            if len(patients) > 1 and len(classes) > 1:
                return
    if len(patients) < 2:
        raise EvaluationError(ONE_PATIENT)
    raise EvaluationError(
        f"every crop that carries {label} has '{classes.pop()}' in {_named(sets)}: nothing to tell apart; {others}"
    )
