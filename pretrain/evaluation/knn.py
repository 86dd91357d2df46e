"""How much a representation knows, without training anything: k-NN on patients it is not given, and its rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrain.evaluation.labelled_crops import ONE_PATIENT, EvaluationError, LabelledCrops

DISTANCES = 2**24
"""Distances that k-NN holds at a time: 200 MB."""


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
