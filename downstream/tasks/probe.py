"""What a frozen backbone knows: k-NN and a linear probe, on patients that they have not seen."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from downstream.config import DownstreamError, KnnConfig, LinearConfig, ProbeConfig
from downstream.data.crops import Crops, find_crops
from downstream.features.embedded_crops import feature_sets
from downstream.features.weights import Weights, best_device
from pretrain.evaluation.embed import unit
from pretrain.evaluation.knn import balanced_accuracy, knn_predict, patient_folds

Classify = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(features to learn from [N, C], their labels [N], their patients [N], features to classify [M, C]) -> labels [M]."""


def knn(config: KnnConfig, weights: Weights) -> dict[str, Any]:
    """Balanced accuracy of k nearest neighbours by cosine, for each label and each kind of features."""

    def classify(bank: np.ndarray, labels: np.ndarray, _patients: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return knn_predict(bank, labels, queries, config.neighbours)

    return {**_probe(config, weights, classify, cosine=True), "neighbours": config.neighbours}


def linear(config: LinearConfig, weights: Weights) -> dict[str, Any]:
    """Balanced accuracy of logistic regression, for each label and each kind of features."""

    def classify(train: np.ndarray, labels: np.ndarray, patients: np.ndarray, queries: np.ndarray) -> np.ndarray:
        strength = choose_l2(train, labels, patients, config.l2, config.seed)
        return fit_predict(train, labels, queries, strength)

    return {**_probe(config, weights, classify, cosine=False), "l2": list(config.l2)}


def _probe(config: ProbeConfig, weights: Weights, classify: Classify, cosine: bool) -> dict[str, Any]:
    crops = find_crops(config.shards, config.label, config.query)
    for label in config.label:
        if len(found := set(crops.labels[label]) - {""}) < 2:
            raise DownstreamError(f"every crop that has {label} has '{found.pop()}': there is nothing to tell apart")
    features = feature_sets(crops, weights, config, config.seed)
    if cosine:  # but of a size, length is half of what there is to know
        features = {name: values if name == "size" else unit(values) for name, values in features.items()}
    scores = {}
    for label in config.label:
        carry = crops.labels[label] != ""
        fold = np.where(crops.query[carry], 0, -1)  # one fold, the queries; -1 is never tested
        if not config.query:
            fold = patient_folds(crops.patients[carry], config.folds, config.seed)
        known = {name: values[carry] for name, values in features.items()}
        scores[label] = score(label, known, crops.labels[label][carry], crops.patients[carry], fold, classify)
    folds = f"{min(config.folds, len(np.unique(crops.patients)))} patient-disjoint folds"
    warnings = crops.doubts() + (unlearnt(crops, config.label) if config.query else [])
    return {"protocol": "query" if config.query else folds, "warnings": warnings, "labels": scores}


def unlearnt(crops: Crops, labels: Sequence[str]) -> list[str]:
    """Classes that only tested crops have, which can only be wrong."""
    said = []
    for label in labels:
        tested, learnt = (set(crops.labels[label][side]) - {""} for side in (crops.query, ~crops.query))
        if only := sorted(tested - learnt):
            said.append(f"{label} {', '.join(only)}: tested, but no crop of the class is learnt from, so all are wrong")
    return said


def score(
    label: str,
    features: dict[str, np.ndarray],
    labels: np.ndarray,
    patients: np.ndarray,
    fold: np.ndarray,
    classify: Classify,
) -> dict[str, Any]:
    """Balanced accuracy by kind of features: the crops of each fold [N] from 0 on are classified by all the others."""
    tested = fold >= 0
    scores = {}
    bar = tqdm(features.items(), desc=label, unit="kind of features", leave=False, dynamic_ncols=True, disable=None)
    for name, values in bar:
        predicted = np.empty_like(labels)
        for test in (fold == f for f in np.unique(fold[tested])):
            predicted[test] = classify(values[~test], labels[~test], patients[~test], values[test])
        scores[name] = round(balanced_accuracy(labels[tested], predicted[tested]), 4)
    classes = np.unique(labels[tested])
    counts = {"crops": int(tested.sum()), "patients": len(np.unique(patients[tested]))}
    return {**scores, "chance": round(1 / len(classes), 4), "classes": classes.tolist(), **counts}


def choose_l2(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, strengths: tuple[float, ...], seed: int
) -> float:
    """The strength that does best on a quarter of these patients after learning from the others; of one, the middle."""
    if len(strengths) == 1 or len(np.unique(patients)) < 2:
        return strengths[len(strengths) // 2]
    inner = patient_folds(patients, 4, seed) == 0
    scores = [
        balanced_accuracy(labels[inner], fit_predict(features[~inner], labels[~inner], features[inner], strength))
        for strength in strengths
    ]
    return strengths[int(np.argmax(scores))]


def fit_predict(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, strength: float) -> np.ndarray:
    """Logistic regression on features standardised by the training crops: [N, C], labels [N], [M, C] -> labels [M]."""
    classes, codes = np.unique(labels, return_inverse=True)
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-6, std, 1)  # a feature that never varies says nothing, whatever it is divided by
    weight, bias = logistic_regression((train - mean) / std, codes, len(classes), strength)
    return classes[((queries - mean) / std @ weight.T + bias).argmax(1)]


def logistic_regression(
    features: np.ndarray, codes: np.ndarray, classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, C] and bias [K] that minimise the mean cross-entropy + strength / 2 * |weight|^2 (L-BFGS).

    features [N, C], codes [N] in 0 ... K - 1. The objective is convex, so nothing is random.
    """
    device = best_device()
    x = torch.from_numpy(features.astype(np.float32)).to(device)
    y = torch.from_numpy(codes).to(device)
    weight = torch.zeros(classes, x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    if not torch.isfinite(weight).all():
        raise DownstreamError("the features hold infinities or NaN, so nothing can be fitted: check the checkpoint")
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()
