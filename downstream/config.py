"""The options of the five commands; each default with its reason beside it (and in `--help`)."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from data_shards.errors import Mistake


class DownstreamError(Mistake):
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
    "validation": (lambda v: 0 <= v < 1, "give a share from 0 to under 1"),
    "epochs": (lambda v: v >= 1, "give at least 1"),
    "min_steps": (lambda v: v >= 0, "give 0 or more"),
    "patience": (lambda v: v >= 1, "give at least 1"),
    "lr": (lambda v: len(v) > 0 and all(0 < r < math.inf for r in v), "give one rate or more, all above 0"),
    "classifier_lr": (lambda v: 0 < v < math.inf, "give more than 0"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "give 0 or more"),
    "warmup": (lambda v: 0 <= v < 1, "give a share from 0 to under 1"),
    "clip": (lambda v: v > 0, "give more than 0"),
    "layer_decay": (lambda v: 0 < v <= 1, "give a factor above 0, at most 1"),
    "ema": (lambda v: 0 <= v < 1, "give a momentum from 0 to under 1"),
    "workers": (lambda v: v >= 0, "give 0 or more"),
    "test": (lambda v: 0 < v < 1, "give a share between 0 and 1"),
    "fractions": (lambda v: len(v) > 0 and all(0 < f <= 1 for f in v), "give one share or more, above 0 and up to 1"),
    "draws": (lambda v: v >= 1, "give at least 1"),
    "seed": (lambda v: v >= 0, "give 0 or more"),
}


def readers() -> int:
    """How many processes read crops where nobody says how many."""
    if not torch.accelerator.is_available():
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Which weights, and where the result goes."""

    checkpoint: str
    """Combined checkpoint: FILE.pth of a run or of the release, safetensors, or a run's checkpoints/step-N.pth. The
    facts beside it (FILE.json) say all that the options from --backbone to --std can. Or a backbone alone, as timm,
    torchvision, Hugging Face, DINO, DINOv2 or Lightning store it; timm or timm:NAME lets timm download one."""
    out: str
    """Folder for the results, made if absent: metrics.json, and what the command makes."""
    network: Literal["teacher", "student"] = "teacher"
    """Which network of a run's checkpoints/step-N.pth: the teacher, as in the FILE.pth that runs write."""
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
    """Shard folders, one or more; or images with labels, which are packed into OUT/packed first: a folder with a folder
    for each class, or with a table (columns image and labels, or image,x0,y0,x1,y1 and labels), such a table, or a zip,
    tar or 7z of either. A class folder's label is `class`. --query takes the same."""
    patient: str | None = None
    """Where images are packed: regular expression on `source/name`; its first group (or whole match) is the patient.
    Left out, each image counts as one patient, since nothing in a file name says otherwise by itself."""
    batch_size: int = 64
    """Crops that go through the backbone together: enough for any device to be busy; for knn, linear and embed it
    changes memory and speed only."""
    workers: int = field(default_factory=readers)
    """Processes that read, resize and, to train, augment crops, for each training process; they change nothing but
    speed. Left out: beside a GPU all its share of the cores but one, at most 16; on a CPU, which the backbone needs
    itself, 2. 0: none."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig(CropsConfig):
    """How a network is read."""

    features: Literal["maps", "pooled"] = "maps"
    """maps: the last two feature maps, averaged to at most 2 x 2 and 4 x 3 cells. pooled: the last map averaged, as
    the released code gives it. maps: from 10 labelled patients of UFBA-425 they told tooth types 6 and positions 7 to
    10 points better, with ImageNet's weights and with ours (docs/few-labels.md)."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(ReadConfig):
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
class TrainingConfig(ReadConfig):
    """How a backbone and a new classifier are trained together; --batch_size is that of all processes together."""

    validation: float = 0.15
    """Share of the patients trained on, at least one, that is set apart to choose the epoch by; they are neither
    trained on nor tested. 0.15: enough to tell epochs apart, few enough to train on the rest. 0: none are set apart,
    all epochs are made and the last one counts."""
    epochs: int = 10
    """Most passes over the training crops: pretrained weights adapt within a few."""
    min_steps: int = 100
    """Steps that all epochs have together at least: of few crops, which make few batches, an epoch is several passes.
    100, because a new classifier is not learnt in fewer."""
    patience: int = 3
    """Training ends after this many epochs without a better balanced accuracy on the patients set apart; the best
    epoch's weights are kept. 3: one or two epochs without a gain are often chance."""
    lr: tuple[float, ...] = (4e-4,)
    """Peak learning rate of the backbone. 4e-4: 2 points better than the released study's 1e-4 in both of two draws of
    10 labelled patients (EfficientNet-Lite0, docs/few-labels.md); its backbones were far larger. Of several, the one is
    kept that does best on the patients set apart, never on those that are tested: each costs a training, so --lr 1e-4
    4e-4 1.6e-3 takes three times as long."""
    classifier_lr: float = 1e-3
    """Peak learning rate of the classifier, as in the released study; of standardized features."""
    weight_decay: float = 0.05
    """Weight decay of the backbone, as in the released study; the classifier has none."""
    warmup: float = 0.1
    """Share of the steps over which the learning rates rise, so that a fresh classifier does not upset the backbone."""
    clip: float = 1.0
    """Largest gradient norm: 1, the usual bound where pretrained weights must not be thrown far at once."""
    freeze_batchnorm: bool = False
    """Whether BatchNorm keeps the statistics of the weights, as a run from --init does. Training from scratch has none
    to keep. false: with 10 labelled patients it was 0.5 and 1.7 points better in two draws (docs/few-labels.md)."""
    probe_first: bool = True
    """Whether the classifier starts as the logistic regression on the frozen features of the crops trained on, so that
    the first gradients do not come from a random one: 4 points with 10 labelled patients (docs/few-labels.md)."""
    layer_decay: float = 1.0
    """Factor of the backbone's learning rate from each block to the one before it. 1, the same for all: 0.8 lost 2
    points with 10 labelled patients (docs/few-labels.md)."""
    ema: float = 0.95
    """Weights are averaged with this momentum from step to step, and the average is what is tested; 0: none. 0.95, the
    last 20 steps of 100 or more: with the probe as start it gained half a point (docs/few-labels.md)."""
    class_weights: bool = True
    """Whether each class weighs the same in the loss, whatever its number of crops. True, because balanced accuracy,
    by which the epoch is chosen, counts them so; false gives probabilities as frequent as the classes are."""
    mirror: bool = False
    """Also train on mirrored crops. False, because a mirrored tooth 11 is a tooth 21; true suits a label that a mirror
    does not change, such as tooth_type."""
    seed: int = 0
    """Seed of the folds, the classifier, the order, the augmentation and the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Full fine-tuning end to end, tested on patients that it has not seen."""

    label: str
    """The label to learn."""
    query: list[str] | None = None
    """Shard folders of other patients, to test on after training on --shards. Left out: --folds."""
    folds: int = 5
    """Cross-validation: the patients of --shards are dealt into so many folds, each with all classes as far as that
    goes, and each fold is tested by a model trained on the others. Five: the usual compromise of variance and time."""
    draws: int = 1000
    """Bootstrap draws of patients for the 95 % intervals: more hardly move their ends."""


@dataclass(frozen=True, kw_only=True)
class CurveConfig(TrainingConfig):
    """What pretraining buys: the score by the number of labels, beside training from scratch and raw pixels."""

    label: str
    """The label to learn."""
    query: list[str] | None = None
    """Shard folders of other patients, to test on after learning from those of --shards. Left out: --test."""
    test: float = 0.3
    """Share of the patients to test on where --query is left out; the same ones for every point. 0.3 is the split of
    this project's figures on real crops."""
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the labels to learn from, by whole patients: from what a reader labels in an hour to all there are."""
    draws: int = 3
    """Random choices of patients for each share under 1: three show how much it matters which ones are labelled."""
    lr: tuple[float, ...] = (1e-4, 4e-4, 1.6e-3)
    """Peak learning rates of the backbone to choose from on patients set apart, for pretrained weights and from scratch
    alike, as each needs its own: the released study's, which its large backbones had, and two of four times more each.
    Three rates take three times as long as one. With fewer than 10 patients, all of whom are needed to learn from, the
    middle one counts."""
    min_steps: int = 200
    """As for finetune; 200, so that training from scratch on few crops is not cut short."""
    neighbours: int = 10
    """k of k-NN, as for knn."""
    l2: tuple[float, ...] = LinearConfig.l2
    """Strengths of the linear probe, as for linear; with fewer than 10 patients the middle one counts."""
