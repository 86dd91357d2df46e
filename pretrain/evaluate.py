"""How much a representation knows, without training anything: k-NN on patients it is not given, and its rank."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from augment import fit
from data_shards.stream import ShardSet
from pretrain.batches import normalised

PIXELS = (24, 24)  # the raw-pixel baseline's size, the one its published figure on real crops was taken at


class EvaluationError(ValueError):
    """Crops that cannot be scored; one line saying what is missing."""


class LabelledCrops(NamedTuple):
    """Crops with their labels: images uint8 [N, H, W] at the input size, pixels [N, 576], sizes [N, 2] in px."""

    images: np.ndarray
    pixels: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


def load_labelled(sets: Sequence[ShardSet], label: str, size: tuple[int, int]) -> LabelledCrops:
    """Read every crop that carries `label`, resized to `size` (H, W). Raises EvaluationError when none does."""
    check_label(sets, label)
    images, pixels, sizes, labels, patients = [], [], [], [], []
    for shards in sets:
        for i in range(len(shards)):
            meta = shards.meta(i)
            if meta.get(label) is None:
                continue
            image = shards.image(i)
            images.append(fit(image, size))
            pixels.append(fit(image, PIXELS).ravel())
            sizes.append(image.shape)
            labels.append(str(meta[label]))
            patients.append(str(meta.get("patient", f"{shards.path}:{i}")))
    return LabelledCrops(*(np.array(column) for column in (images, pixels, sizes, labels, patients)))


def check_label(sets: Sequence[ShardSet], label: str) -> None:
    """Raise EvaluationError, before hours of training, if none of the first crops of any set carries `label`."""
    if not any(shards.meta(i).get(label) is not None for shards in sets for i in range(min(len(shards), 100))):
        fields = sorted({field for shards in sets for field in shards.meta(0)})
        raise EvaluationError(
            f"no crop carries the label '{label}' in {', '.join(str(s.path) for s in sets)}; "
            f"name another with --eval.label, they have {', '.join(fields)}"
        )


@torch.no_grad()
def embed(backbone: nn.Module, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> np.ndarray:
    """Features float32 [N, C] of uint8 images [N, H, W], in `eval()`; the backbone is left in the mode it was in."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    features = [
        backbone(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
        for i in range(0, len(images), batch_size)
    ]
    backbone.train(training)
    return torch.cat(features).float().cpu().numpy()


@torch.no_grad()
def calibrate_batchnorm(backbone: nn.Module, images: np.ndarray, mean: float, std: float, batch_size: int = 64) -> None:
    """Set BatchNorm buffers to the statistics of `images`; an untrained backbone's are 0 and 1, which is unfair."""
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    training = backbone.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    backbone.train()
    device = next(backbone.parameters()).device
    for i in range(0, len(images) - batch_size + 1, batch_size):
        backbone(normalised(torch.from_numpy(images[i : i + batch_size]).unsqueeze(1).to(device), mean, std))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.train(training)


def knn_predict(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, neighbours: int) -> np.ndarray:
    """Majority vote of the `neighbours` nearest by Euclidean distance; features [N, C] and [M, C] -> labels [M].

    On unit vectors this is the order of cosine similarity. Of equal votes the nearer neighbours win.
    """
    classes, codes = np.unique(bank_labels, return_inverse=True)
    squared = (queries**2).sum(1)[:, None] - 2 * queries @ bank.T + (bank**2).sum(1)
    k = min(neighbours, len(bank))
    nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
    distance = np.sqrt(np.take_along_axis(squared, nearest, axis=1).clip(0))
    tie_break = distance / (distance.sum(1, keepdims=True) + 1e-12) * 1e-3
    votes = np.zeros((len(queries), len(classes)))
    np.add.at(votes, (np.arange(len(queries))[:, None], codes[nearest]), 1 - tie_break)
    return classes[votes.argmax(1)]


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes of the share that is recognised; chance is 1 / number of classes."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def patient_folds(patients: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Fold number of each sample, int [N]: patients are shuffled and dealt out, so that none is in two folds."""
    unique, codes = np.unique(patients, return_inverse=True)
    if len(unique) < 2:
        raise EvaluationError(
            "k-NN needs crops of at least two patients; pack more, or tell --patient how to read them"
        )
    return (np.random.default_rng(seed).permutation(len(unique)) % min(folds, len(unique)))[codes]


def knn_over_folds(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, neighbours: int = 10, folds: int = 5
) -> float:
    """Balanced accuracy of k-NN when each fold's crops are classified by the crops of the other folds' patients."""
    fold = patient_folds(patients, folds)
    predicted = np.empty_like(labels)
    for f in np.unique(fold):
        test = fold == f
        predicted[test] = knn_predict(features[~test], labels[~test], features[test], neighbours)
    return balanced_accuracy(labels, predicted)


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


def knn_scores(
    crops: LabelledCrops, before: np.ndarray, after: np.ndarray, label: str, neighbours: int, folds: int
) -> dict[str, Any]:
    """`{"label", "before", "after", "pixels", "size"}`: balanced accuracies on the same folds."""
    features = {
        "before": unit(before),
        "after": unit(after),
        "pixels": pixel_features(crops.pixels),
        "size": size_features(crops.sizes),
    }
    scores = {
        name: round(knn_over_folds(f, crops.labels, crops.patients, neighbours, folds), 4)
        for name, f in features.items()
    }
    return {
        "label": label,
        **scores,
        "classes": len(np.unique(crops.labels)),
        "crops": len(crops.labels),
        "patients": len(np.unique(crops.patients)),
        "neighbours": neighbours,
    }
