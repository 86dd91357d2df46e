"""Which patients train, choose the epoch and test: grouped by patient, stratified by class."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from downstream.config import DownstreamError, FinetuneConfig
from downstream.data.crops import Crops


@dataclass(frozen=True)
class Fold:
    """Numbers of the crops that are trained on, that choose the epoch, and that are tested; no patient is in two."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(config: FinetuneConfig, crops: Crops, codes: np.ndarray, classes: np.ndarray) -> list[Fold]:
    """The folds, stratified and by patient; with --query the only one. Raises DownstreamError if there is no way."""
    if config.query:
        tests = [crops.query]
    else:
        patients = len(np.unique(crops.patients))
        if min(patients, np.bincount(codes).max()) < config.folds:
            raise DownstreamError(
                f"{len(crops)} crops of {patients} patients cannot be dealt into --folds {config.folds} with "
                f"{len(classes)} classes: give fewer, pack more, or tell `pack` with --patient how to read patients"
            )
        folder = StratifiedGroupKFold(config.folds, shuffle=True, random_state=config.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of small classes, which `doubts` says by name
            tests = [np.isin(np.arange(len(codes)), test) for _, test in folder.split(codes, codes, crops.patients)]
    folds = []
    for n, test in enumerate(tests, start=1):
        others = np.flatnonzero(~test)
        try:
            apart = set_apart(codes[others], crops.patients[others], config.validation, config.seed)
        except DownstreamError as error:
            raise DownstreamError(f"fold {n}: {error}") from error
        fold = Fold(others[~apart], others[apart], np.flatnonzero(test))
        if len(np.unique(codes[fold.train])) < 2:
            raise DownstreamError(
                f"fold {n} would train on one class of {config.label} only: pack more patients, or give fewer --folds"
            )
        folds.append(fold)
    return folds


def set_apart(
    codes: np.ndarray, patients: np.ndarray, share: float, seed: int, option: str = "--validation", tries: int = 200
) -> np.ndarray:
    """Which crops choose the epoch, bool [N]: all those of a `share` of the patients, at least one and not all.

    codes int [N] from 0 on. Of `tries` random choices, the one that leaves the most classes something to train on and,
    of these, that holds most nearly `share` of every class. None where `share` is 0. Raises DownstreamError,
    naming the `option`, if no patient would be left.
    """
    unique, numbers = np.unique(patients, return_inverse=True)
    held = max(1, round(share * len(unique))) if share else 0
    if not held:
        return np.zeros(len(codes), bool)
    if held >= len(unique):
        raise DownstreamError(
            f"{option} {share} leaves none of {len(unique)} patients to train on: give less, or pack more"
        )
    counts = np.zeros((len(unique), codes.max() + 1))
    np.add.at(counts, (numbers, codes), 1)
    counts = counts[:, counts.any(0)]
    rng = np.random.default_rng([seed, len(unique)])
    choices = [rng.permutation(len(unique))[:held] for _ in range(tries)]
    shares = np.array([counts[chosen].sum(0) for chosen in choices]) / counts.sum(0)
    misfit = np.square(shares - share).mean(1) + (shares == 1).sum(1)  # a mean of squares is never above 1
    return np.isin(numbers, choices[int(misfit.argmin())])


def doubts(
    config: FinetuneConfig, crops: Crops, codes: np.ndarray, classes: np.ndarray, folds: list[Fold]
) -> list[str]:
    """What a reader of the scores must know of the classes, in sentences."""
    unlearnt = [
        str(classes[k])
        for k in range(len(classes))
        if any(k in codes[fold.test] and k not in codes[fold.train] for fold in folds)
    ]
    carriers = [len(np.unique(crops.patients[codes == k])) for k in range(len(classes))]
    rare = [f"{classes[k]} ({carriers[k]})" for k in range(len(classes)) if carriers[k] < len(folds)]
    few = [f"{classes[k]} ({carriers[k]})" for k in range(len(classes)) if carriers[k] < 5]
    said = []
    if few:
        said.append(f"so few patients carry {', '.join(few)} that draws of patients miss them: intervals say little")
    if rare:
        said.append(
            f"fewer patients than the {len(folds)} folds carry {', '.join(rare)}: some folds do not test these classes"
        )
    if unlearnt:
        said.append(f"{', '.join(unlearnt)}: tested where no crop of the class was trained on, which can only be wrong")
    if not config.validation:
        said.append("no patients were set apart, so the last epoch counts")
    return said
