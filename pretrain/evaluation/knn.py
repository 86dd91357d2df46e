"""How much a representation knows, without training anything: k-NN on patients it is not given, and its rank."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from augment import fit, stacked
from data_shards.annotations.labels import FACTS, RESERVED
from data_shards.errors import Mistake
from data_shards.shards.stream import CorruptError, ShardSet
from pretrain.data.multicrop_loader import normalised

PIXELS = (24, 24)  # the raw-pixel baseline's size, the one its published figure on real crops was taken at


DISTANCES = 2**24
"""Distances that k-NN holds at a time: 200 MB."""
BASELINES = ("before", "pixels", "size")
"""What a trained backbone must beat: itself before training, raw pixels, the crop's height and width."""
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


@torch.no_grad()
def embed(backbone: nn.Module, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> np.ndarray:
    """Features float32 [N, C] of images [N, H, W] as `stacked`, in `eval()`; the backbone's own mode is restored."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    features = [
        backbone(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
        for i in range(0, len(images), batch_size)
    ]
    backbone.train(training)
    return torch.cat(features).float().cpu().numpy()


def knn_predict(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, neighbours: int) -> np.ndarray:
    """Majority vote of the `neighbours` nearest by Euclidean distance; features [N, C] and [M, C] -> labels [M].

    On unit vectors this is the order of cosine similarity. Of equal votes the nearer neighbours win. Of many queries
    some are taken at a time, so that memory holds DISTANCES of them to the bank and not all.
    """
    classes, codes = np.unique(bank_labels, return_inverse=True)
    rows = max(1, DISTANCES // len(bank))
    parts = [queries[i : i + rows] for i in range(0, max(len(queries), 1), rows)]
    return np.concatenate([classes[_votes(bank, codes, part, neighbours).argmax(1)] for part in parts])


def _votes(bank: np.ndarray, codes: np.ndarray, queries: np.ndarray, neighbours: int) -> np.ndarray:
    """The votes [M, classes] that the bank's nearest, whose classes are the `codes` [N], give to queries [M, C]."""
    squared = (queries**2).sum(1)[:, None] - 2 * queries @ bank.T + (bank**2).sum(1)
    k = min(neighbours, len(bank))
    nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
    distance = np.sqrt(np.take_along_axis(squared, nearest, axis=1).clip(0))
    tie_break = distance / (distance.sum(1, keepdims=True) + 1e-12) * 1e-3
    votes = np.zeros((len(queries), codes.max() + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], codes[nearest]), 1 - tie_break)
    return votes


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes of the share that is recognised; chance is 1 / number of classes."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def patient_folds(patients: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Fold number of each sample, int [N]: patients are shuffled and dealt out, so that none is in two folds."""
    unique, codes = np.unique(patients, return_inverse=True)
    if len(unique) < 2:
        raise EvaluationError(ONE_PATIENT)
    return (np.random.default_rng(seed).permutation(len(unique)) % min(folds, len(unique)))[codes]


def knn_over_folds(
    features: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    neighbours: int = 10,
    folds: int = 5,
    scored: np.ndarray | None = None,
) -> float:
    """Balanced accuracy of k-NN when each fold's crops are classified by the crops of all other patients.

    features [N, C], labels and patients [N]; with a mask `scored` [N] only those crops are classified, in folds of
    their patients, and the others serve as neighbours.
    """
    queries = np.arange(len(labels)) if scored is None else np.flatnonzero(scored)
    fold = patient_folds(patients[queries], folds)
    predicted = np.empty_like(labels[queries])
    for f in np.unique(fold):
        test = queries[fold == f]
        bank = ~np.isin(patients, patients[test])
        predicted[fold == f] = knn_predict(features[bank], labels[bank], features[test], neighbours)
    return balanced_accuracy(labels[queries], predicted)


def unit(features: np.ndarray) -> np.ndarray:
    """Features [N, C] scaled to length 1, so that Euclidean neighbours are the neighbours by cosine."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)


def pixel_features(pixels: np.ndarray) -> np.ndarray:
    """Pixels [N, P] as features: centered and scaled for each image, so that exposure and contrast do not count."""
    return unit(pixels.astype(np.float32) - pixels.mean(1, keepdims=True, dtype=np.float32))


def size_features(sizes: np.ndarray) -> np.ndarray:
    """Heights and widths [N, 2] as standardised logarithms: what the crop's size and shape alone tell."""
    logs = np.log(sizes.astype(np.float64))
    return (logs - logs.mean(0)) / logs.std(0).clip(1e-6)


def baseline_features(crops: LabelledCrops, before: np.ndarray) -> dict[str, np.ndarray]:
    """The features of BASELINES, by name; `before` are those of the random weights, [N, C]."""
    return {"before": unit(before), "pixels": pixel_features(crops.pixels), "size": size_features(crops.sizes)}


def knn_scores(
    crops: LabelledCrops, scored: np.ndarray, features: Mapping[str, np.ndarray], neighbours: int, folds: int
) -> dict[str, Any]:
    """Balanced accuracy of each of these features [N, C], by name and on the same folds, and what it was measured on.

    Only the crops of the mask `scored` [N] are classified (see knn_over_folds). Raises EvaluationError if they are of
    one class, of which any features would know all.
    """
    classes = np.unique(crops.labels[scored])
    if len(classes) < 2:
        raise EvaluationError(f"the {scored.sum()} crops to score are all '{classes[0]}': raise --eval.crops")
    scores = {
        name: round(knn_over_folds(f, crops.labels, crops.patients, neighbours, folds, scored), 4)
        for name, f in features.items()
    }
    return scores | {
        "classes": len(classes),
        "crops": int(scored.sum()),
        "patients": len(np.unique(crops.patients[scored])),
        "bank_crops": len(crops.labels),
        "neighbours": neighbours,
    }
