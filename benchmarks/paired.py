"""Paired bootstrap of differences in balanced accuracy, over seeds, draws of labels and patients."""

from dataclasses import dataclass

import numpy as np

DRAWS = 2000
"""Bootstrap draws: the ends of a 95 % interval move by under a tenth of its width with more."""


@dataclass(frozen=True)
class Counts:
    """Tested crops by patient and class: `right` and `total`, both [P, K]; K classes that are tested."""

    right: np.ndarray
    total: np.ndarray

    def balanced_accuracy(self, weights: np.ndarray) -> np.ndarray:
        """Return the mean recall of the classes, [D], for patients weighted by each row of `weights` [D, P].

        A class that no weighted patient has does not count.
        """
        right, total = weights @ self.right, weights @ self.total
        recall = np.divide(right, total, out=np.full_like(right, np.nan), where=total > 0)
        return np.nanmean(recall, axis=1)


def counts(truth: np.ndarray, predicted: np.ndarray, patients: np.ndarray) -> Counts:
    """Count right and all predictions [N] of each patient and class."""
    who, person = np.unique(patients, return_inverse=True)
    classes, code = np.unique(truth, return_inverse=True)
    right, total = np.zeros((2, len(who), len(classes)))
    np.add.at(total, (person, code), 1)
    np.add.at(right, (person, code), truth == predicted)
    return Counts(right, total)


def accuracy(cells: np.ndarray) -> float:
    """Return the mean balanced accuracy of `cells`, Counts of any shape."""
    return float(np.mean([cell.balanced_accuracy(np.ones((1, len(cell.total))))[0] for cell in cells.flat]))


def difference(
    ours: list[np.ndarray], theirs: list[np.ndarray], seed: int = 0
) -> tuple[float, float, float, list[float]]:
    """Return the difference of `ours` to `theirs`, averaged over tasks, with the ends of its 95 % interval.

    ours, theirs: for each task an object array [seeds, draws] of Counts; both were tested on the same patients after
    learning from the same draws. The two may have different numbers of seeds. In each bootstrap draw, seeds, draws and
    patients are drawn with replacement, draws and patients alike for both (Davison and Hinkley 1997, section 2.4).
    The last value lists the difference of each task.
    """
    rng = np.random.default_rng(seed)
    drawn, single = [], []
    for one, other in zip(ours, theirs, strict=True):
        people, labelled = len(one[0, 0].total), one.shape[1]
        weights = rng.multinomial(people, np.full(people, 1 / people), DRAWS).astype(float)
        share = rng.multinomial(labelled, np.full(labelled, 1 / labelled), DRAWS) / labelled  # of each draw of labels
        drawn.append(_resampled(one, weights, share, rng) - _resampled(other, weights, share, rng))
        single.append(accuracy(one) - accuracy(other))
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return float(np.mean(single)), float(low), float(high), single


def _resampled(cells: np.ndarray, weights: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the balanced accuracy of each bootstrap draw [D]."""
    seeds = len(cells)
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), len(weights)) / seeds
    scores = np.array([[cell.balanced_accuracy(weights) for cell in row] for row in cells])  # [seeds, draws, D]
    return np.einsum("sld,ds,dl->d", scores, seed_share, share)
