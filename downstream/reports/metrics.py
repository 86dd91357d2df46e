"""How good predictions are: four scores, a table by class, and bootstrap intervals over patients.

truth is int [N] in 0 ... K - 1, probabilities float [N, K], patients [N] of any kind that can be compared; what is
predicted is the class of the highest probability.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn import metrics

SCORES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
}
"""The scores by key, as they are called in words. AUROC and AP are one class against all others, then the mean."""

CHUNK = 2**21  # weights of crops held at once while bootstrapping: 16 MB, some ten times over


def scores(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The four of `SCORES`; NaN for one that these crops do not define.

    Balanced accuracy is the mean recall of the classes that there are crops of, macro F1 the mean over the classes that
    there are crops of or that are predicted. AUROC and AP are means over the classes that some crops have and others
    have not, NaN if there are none.
    """
    predicted = probabilities.argmax(1)
    ranked = [_ranked(truth == k, probabilities[:, k]) for k in _both_sides(truth, probabilities.shape[1])]
    recall = metrics.recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    return {
        "balanced_accuracy": float(recall),
        "macro_f1": float(metrics.f1_score(truth, predicted, average="macro", zero_division=0)),
        "auroc": float(np.mean([area for area, _ in ranked])) if ranked else float("nan"),
        "average_precision": float(np.mean([precision for _, precision in ranked])) if ranked else float("nan"),
    }


def by_class(truth: np.ndarray, probabilities: np.ndarray, patients: np.ndarray) -> list[dict[str, Any]]:
    """Of each class its crops, patients, recall, precision, F1, AUROC and average precision; None where undefined."""
    classes = probabilities.shape[1]
    table = confusion(truth, probabilities.argmax(1), classes)
    both = set(_both_sides(truth, classes))
    rows = []
    for k in range(classes):
        hits, had, named = int(table[k, k]), int(table[k].sum()), int(table[:, k].sum())
        area, precision = _ranked(truth == k, probabilities[:, k]) if k in both else (None, None)
        rows.append(
            {
                "crops": had,
                "patients": len(np.unique(patients[truth == k])),
                "recall": hits / had if had else None,
                "precision": hits / named if named else None,
                "f1": 2 * hits / (had + named) if had + named else None,
                "auroc": area,
                "average_precision": precision,
            }
        )
    return rows


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Crops by true class (rows) and predicted class (columns), int [K, K]."""
    return metrics.confusion_matrix(truth, predicted, labels=np.arange(classes))


def intervals(
    truth: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 2.5th and 97.5th percentile of each score over `draws` bootstrap draws of patients.

    A draw takes as many patients as there are, with replacement, each with all of its crops. Each draw's score is over
    the classes that it has, as in `scores`; draws that do not define a score are left out of its percentiles, which are
    NaN if no draw is left.
    """
    unique, numbers = np.unique(patients, return_inverse=True)
    drawn = bootstrap(len(unique), draws, seed)
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    patient_counts = [  # [P, K] each: crops of a class, crops named so, crops rightly named so
        np.bincount(numbers * classes + codes, counted, len(unique) * classes).reshape(-1, classes)
        for codes, counted in ((truth, None), (predicted, None), (truth, predicted == truth))
    ]
    had, named, hits = (drawn @ counts for counts in patient_counts)  # [draws, K] each
    rankings = [
        weighted_ranking(truth, probabilities, some[:, numbers])
        for some in np.array_split(drawn, -(-draws * len(truth) // CHUNK))
    ]
    areas, precisions = (np.concatenate(parts) for parts in zip(*rankings, strict=True))
    return {
        "balanced_accuracy": _percentiles(_mean_of_defined(_ratio(hits, had).T)),
        "macro_f1": _percentiles(_mean_of_defined(_ratio(2 * hits, had + named).T)),
        "auroc": _percentiles(areas),
        "average_precision": _percentiles(precisions),
    }


def lacking(truth: np.ndarray, patients: np.ndarray, draws: int, seed: int) -> float:
    """Share of those draws that lack one of the classes in `truth`: what few patients carry is in few draws."""
    unique, numbers = np.unique(patients, return_inverse=True)
    carried = np.zeros((len(unique), truth.max() + 1), int)
    np.add.at(carried, (numbers, truth), 1)
    had = bootstrap(len(unique), draws, seed) @ carried[:, carried.any(0)]
    return float((had == 0).any(1).mean())


def bootstrap(patients: int, draws: int, seed: int) -> np.ndarray:
    """How often each patient is in each draw, int [draws, patients]; every row sums to `patients`."""
    return np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=draws)


def weighted_ranking(
    truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision [D], as in `scores`, with every crop counted weights [D, N] times."""
    each = list(_by_class_weighted(truth, probabilities, weights))
    return _mean_of_defined(np.stack([a for a, _ in each])), _mean_of_defined(np.stack([p for _, p in each]))


def _by_class_weighted(
    truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """AUROC and average precision [D] of each class; NaN in a draw that has the class's crops only, or none."""
    for k in range(probabilities.shape[1]):
        order = np.argsort(-probabilities[:, k], kind="stable")
        ranked = probabilities[order, k]
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # equal probabilities are one threshold
        counts = weights[:, order].astype(np.float64)
        seen = counts.cumsum(1)[:, ends]
        hits = (counts * (truth[order] == k)).cumsum(1)[:, ends]
        misses = seen - hits
        new = np.diff(hits, prepend=0, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = (np.diff(misses, prepend=0, axis=1) * (hits - new / 2)).sum(1) / (hits[:, -1] * misses[:, -1])
            precision = np.where(seen > 0, new * hits / seen, 0).sum(1) / hits[:, -1]
        undefined = (hits[:, -1] == 0) | (misses[:, -1] == 0)
        yield np.where(undefined, np.nan, area), np.where(undefined, np.nan, precision)


def _both_sides(truth: np.ndarray, classes: int) -> list[int]:
    counts = np.bincount(truth, minlength=classes)
    return [k for k in range(classes) if 0 < counts[k] < len(truth)]


def _ranked(positive: np.ndarray, probability: np.ndarray) -> tuple[float, float]:
    return (
        float(metrics.roc_auc_score(positive, probability)),
        float(metrics.average_precision_score(positive, probability)),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / whole.clip(1), np.nan)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the classes of [K, D], without those that are NaN; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN
        return np.nanmean(values, axis=0)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
