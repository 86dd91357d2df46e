"""What a frozen backbone knows: k-NN and a linear probe, on patients that they have not seen."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from downstream.config import DownstreamError, KnnConfig, LinearConfig, ProbeConfig
from downstream.crops import Crops, feature_sets, find_crops, with_query
from downstream.weights import Weights, best_device
from pretrain.evaluate import balanced_accuracy, knn_predict, patient_folds, unit

Split = tuple[np.ndarray, np.ndarray]  # train and test, bool [N] each
Classify = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(features to learn from [N, C], their labels [N], their patients [N], features to classify [M, C]) -> labels [M]."""


def knn(config: KnnConfig, weights: Weights) -> dict[str, Any]:
    """Balanced accuracy of k nearest neighbours by cosine, for each label and each kind of features."""

    def classify(bank: np.ndarray, labels: np.ndarray, _patients: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return knn_predict(bank, labels, queries, config.neighbours)

    def prepared(name: str, features: np.ndarray) -> np.ndarray:
        return features if name == "size" else unit(features)  # of a size, length is half of what there is to know

    return {**_probe(config, weights, classify, prepared), "neighbours": config.neighbours}


def linear(config: LinearConfig, weights: Weights) -> dict[str, Any]:
    """Balanced accuracy of logistic regression, for each label and each kind of features."""

    def classify(train: np.ndarray, labels: np.ndarray, patients: np.ndarray, queries: np.ndarray) -> np.ndarray:
        strength = choose_l2(train, labels, patients, config.l2, config.seed)
        return fit_predict(train, labels, queries, strength)

    return {**_probe(config, weights, classify, lambda _name, features: features), "l2": list(config.l2)}


def _probe(
    config: ProbeConfig, weights: Weights, classify: Classify, prepared: Callable[[str, np.ndarray], np.ndarray]
) -> dict[str, Any]:
    crops = find_crops(config.shards, config.label)
    is_query = None
    if config.query:
        crops, is_query = with_query(crops, config.query, config.label)
    features = feature_sets(crops, weights, config.seed, config.batch_size)
    features = {name: prepared(name, values) for name, values in features.items()}
    scores = {label: _score(crops, label, is_query, features, classify, config) for label in config.label}
    return {"protocol": "query" if config.query else f"{config.folds} patient-disjoint folds", "labels": scores}


def _score(
    crops: Crops,
    label: str,
    is_query: np.ndarray | None,
    features: dict[str, np.ndarray],
    classify: Classify,
    config: ProbeConfig,
) -> dict[str, Any]:
    carry = crops.labels[label] != ""
    labels, patients = crops.labels[label][carry], crops.patients[carry]
    if is_query is None:
        fold = patient_folds(patients, config.folds, config.seed)
        splits = [(fold != f, fold == f) for f in np.unique(fold)]
    else:
        splits = [(~is_query[carry], is_query[carry])]
    tested = np.any([test for _, test in splits], axis=0)
    scores = {
        name: round(balanced_accuracy(labels[tested], _predict(f[carry], labels, patients, splits, classify)[tested]), 4)
        for name, f in features.items()
    }
    classes = np.unique(labels[tested])
    return {
        **scores,
        "chance": round(1 / len(classes), 4),
        "classes": classes.tolist(),
        "crops": int(tested.sum()),
        "patients": len(np.unique(patients[tested])),
    }


def _predict(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, splits: list[Split], classify: Classify
) -> np.ndarray:
    predicted = np.empty_like(labels)
    for train, test in splits:
        predicted[test] = classify(features[train], labels[train], patients[train], features[test])
    return predicted


def choose_l2(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, strengths: tuple[float, ...], seed: int
) -> float:
    """The strength that does best on a quarter of these patients after learning from the others."""
    if len(strengths) == 1:
        return strengths[0]
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
