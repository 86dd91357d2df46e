"""The options of the five commands; each default with its reason beside it (and in `--help`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class DownstreamError(ValueError):
    """Weights or crops that do not serve the purpose: what, where and what to do, in one line."""


LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mean": (lambda v: v is None or math.isfinite(v), "give a number"),
    "std": (lambda v: v is None or 0 < v < math.inf, "pixels are divided by it, give more than 0"),
    "shards": (bool, "name a shard folder"),
    "label": (bool, "name a label, such as tooth_type"),
    "batch_size": (lambda v: v >= 2, "give at least 2, which BatchNorm needs"),
    "folds": (lambda v: v >= 2, "give at least 2, so that each has others to learn from"),
    "neighbours": (lambda v: v >= 1, "give at least 1"),
    "l2": (lambda v: len(v) > 0 and min(v) >= 0, "give one strength or more, none under 0"),
    "holdout": (lambda v: 0 < v < 1, "give a share between 0 and 1"),
    "epochs": (lambda v: v >= 1, "give at least 1"),
    "warmup": (lambda v: 0 <= v < 1, "give a share from 0 to under 1"),
    "clip": (lambda v: v > 0, "give more than 0"),
    "workers": (lambda v: v >= 0, "give 0 or more"),
    "seed": (lambda v: v >= 0, "give 0 or more"),
}


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Which weights, and where the result goes."""

    checkpoint: str
    """Combined checkpoint, FILE.pth. The facts beside it (FILE.json) say all that the next four options can."""
    out: str
    """Folder for the results, made if absent: metrics.json, and what the command makes."""
    backbone: str | None = None
    """One of the 12 released backbones, or any timm model with feature maps. Left out: the one that the facts name,
    else the released one whose keys and shapes the checkpoint has."""
    size: tuple[int, int] | None = None
    """Height and width in px of the images given to the backbone: --size 320 240. Left out: as in the facts, else
    (320, 240), as the release was trained."""
    mean: float | None = None
    """Subtracted from pixels in [0, 1]. Left out: as in the facts, else 0.5, this project's convention."""
    std: float | None = None
    """Pixels are divided by it. Left out: as in the facts, else 0.25, this project's convention."""

    def __post_init__(self) -> None:
        """Raise DownstreamError for a value that nothing can be done with."""
        for name, (holds, remedy) in LIMITS.items():
            if hasattr(self, name) and not holds(getattr(self, name)):
                raise DownstreamError(f"--{name} is {getattr(self, name)}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class CropsConfig(WeightsConfig):
    """Weights, and crops to use them on."""

    shards: list[str]
    """Shard folders, one or more."""
    batch_size: int = 64
    """Crops that go through the backbone together: enough for any device to be busy; for knn, linear and embed it
    changes memory and speed only."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CropsConfig):
    """What a frozen backbone knows of labels."""

    label: list[str]
    """Labels to predict, one after the other (tooth_type position fdi, or any that the shards carry)."""
    query: list[str] | None = None
    """Shard folders of other patients, classified by the crops of --shards. Left out: patient-disjoint folds of
    --shards, which use every crop."""
    folds: int = 5
    """Patient-disjoint folds: each fold's crops are classified by those of the other patients. Five: the usual
    compromise of variance and time."""
    seed: int = 0
    """Seed of the folds and of the random weights that the trained ones are compared with."""


@dataclass(frozen=True, kw_only=True)
class KnnConfig(ProbeConfig):
    """k nearest neighbours by cosine."""

    neighbours: int = 10
    """k. 10, as in the figures on real crops that this project is measured against."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ProbeConfig):
    """Multinomial logistic regression on standardised features."""

    l2: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Strengths of the L2 penalty to choose from, on patients set apart from those that are trained on. Each is
    multiplied by half the sum of squared weights and added to the mean cross-entropy; four decades hold the best of
    every backbone tried."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(CropsConfig):
    """Full fine-tuning end to end."""

    label: str
    """The label to learn."""
    query: list[str] | None = None
    """Shard folders of other patients, to validate on. Left out: --holdout sets patients of --shards apart."""
    holdout: float = 0.3
    """Share of the patients to validate on where --query is left out; 0.3 is the split the real figures use."""
    epochs: int = 10
    """Passes over the training crops: pretrained weights adapt within a few."""
    lr: float = 1e-4
    """Peak learning rate of the backbone, as in the released study."""
    classifier_lr: float = 1e-3
    """Peak learning rate of the classifier, as in the released study: it starts from nothing, so it moves faster."""
    weight_decay: float = 0.05
    """Weight decay of the backbone, as in the released study; the classifier has none."""
    warmup: float = 0.1
    """Share of the steps over which the learning rates rise, so that a fresh classifier does not upset the backbone."""
    clip: float = 1.0
    """Largest gradient norm: 1, the usual bound where pretrained weights must not be thrown far at once."""
    mirror: bool = False
    """Also train on mirrored crops. False, because a mirrored tooth 11 is a tooth 21."""
    workers: int = 2
    """Processes that read and augment crops; they change nothing but speed. 0: none."""
    seed: int = 0
    """Seed of the split, the classifier, the order and the augmentation."""
