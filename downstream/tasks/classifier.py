"""A backbone with a new classifier, trained end to end: the backbone slowly, the classifier faster."""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from downstream.config import DownstreamError, TrainingConfig
from downstream.data.crops import Crops
from downstream.data.labelled_views import LabelledViews, in_order, shuffled
from downstream.features.weights import Weights
from downstream.tasks.tuner import Classifier, DivergedError, Tuner, class_weights, logits_of
from pretrain.evaluation.embed import embed, embed_maps
from pretrain.evaluation.knn import balanced_accuracy
from pretrain.models.backbones import Backbone


@dataclass(frozen=True)
class Trained:
    """A trained classifier and how it came about.

    model: backbone and classifier, in `eval()` on the accelerator's device, with the best epoch's weights, the same
    on every process. curve: of each epoch its number `epoch`, mean `loss` and, where patients were set apart,
    `balanced_accuracy` on them. best_epoch: from 1 on. losses: of every step, over the global batch. lr: the
    backbone's peak rate. tried: of several rates what each reached on the patients set apart, None if it diverged.
    """

    model: Classifier
    curve: list[dict[str, Any]]
    best_epoch: int
    losses: list[float]
    lr: float
    tried: dict[str, float | None]

    @property
    def reached(self) -> float:
        """Balanced accuracy of the best epoch on the patients set apart; 0 where there were none."""
        return self.curve[self.best_epoch - 1].get("balanced_accuracy", 0.0)


def train_classifier(
    backbone: Backbone,
    weights: Weights,
    crops: Crops,
    codes: np.ndarray,
    classes: int,
    train: np.ndarray,
    validation: np.ndarray,
    config: TrainingConfig,
    accelerator: Accelerator,
    title: str = "training",
    pretrained: bool = True,
) -> Trained:
    """Train a copy of `backbone` and a new Linear on the crops `train`, stopping early by the crops `validation`.

    Of several rates `config.lr` each is trained, and that which does best on `validation` is kept (of equal ones the
    first). `weights` says how images are made; its own model is not used. A backbone that is not `pretrained` has no
    BatchNorm statistics to keep and no features for a probe. codes: classes int [N] in 0 ... classes - 1
    of all crops. train, validation: numbers of crops; without validation the last epoch counts. Called on every process
    alike; `backbone` is not changed. Raises DownstreamError where nothing can be trained or chosen, ShardError for a
    crop that cannot be read.
    """
    if len(config.lr) > 1 and not len(validation):
        raise DownstreamError(f"no patients are set apart to choose one of {len(config.lr)} rates by: give one --lr")
    best: Trained | None = None
    tried: dict[str, float | None] = {}
    for number, rate in enumerate(config.lr, start=1):
        named = f"{title}, lr {rate:g}" if len(config.lr) > 1 else title
        try:
            trained = _train(
                backbone,
                weights,
                crops,
                codes,
                classes,
                train,
                validation,
                config,
                rate,
                accelerator,
                named,
                pretrained,
            )
        except DivergedError:
            tried[f"{rate:g}"] = None
            if best is None and number == len(config.lr):
                raise
            continue
        tried[f"{rate:g}"] = trained.reached
        if best is None or trained.reached > best.reached:
            best = trained
    assert best
    return replace(best, tried=tried if len(config.lr) > 1 else {})


def _train(
    backbone: Backbone,
    weights: Weights,
    crops: Crops,
    codes: np.ndarray,
    classes: int,
    train: np.ndarray,
    validation: np.ndarray,
    config: TrainingConfig,
    lr: float,
    accelerator: Accelerator,
    title: str,
    pretrained: bool,
) -> Trained:
    steps = plan(len(train), config, accelerator.num_processes)
    balance = class_weights(codes[train], classes) if config.class_weights else torch.ones(classes)
    tuner = Tuner(backbone, weights, balance, steps.total, config, lr, accelerator, pretrained)
    views = LabelledViews(crops, codes, weights.size, config)
    if pretrained and config.probe_first:
        tuner.start_classifier(frozen_features(backbone, weights, views, train, config), codes[train])
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    best, kept = 0, _state(tuner.averaged)
    with tqdm(
        total=steps.total,
        unit="step",
        desc=title,
        leave=False,
        dynamic_ncols=True,
        disable=None if accelerator.is_main_process else True,  # None: none where standard error is no terminal
    ) as bar:
        for epoch in range(config.epochs):
            passes = range(epoch * steps.passes, (epoch + 1) * steps.passes)
            made = len(losses)
            for images, targets in views.batches(
                [batch for i in passes for batch in shuffled(train, i, steps.batch, config.seed, accelerator)]
            ):
                losses.append(tuner.step(images, targets))
                bar.update()
            line: dict[str, Any] = {"epoch": epoch + 1, "loss": float(np.mean(losses[made:]))}
            tuner.share_buffers()
            if len(validation):
                predicted = predict(tuner.averaged, weights, crops, validation, config, accelerator).argmax(1)
                line["balanced_accuracy"] = round(balanced_accuracy(codes[validation], predicted), 4)
                bar.set_postfix_str(f"validation {line['balanced_accuracy']:.3f}")
            curve.append(line)
            if not len(validation) or epoch == 0 or line["balanced_accuracy"] > curve[best]["balanced_accuracy"]:
                best, kept = epoch, _state(tuner.averaged)
            elif epoch - best >= config.patience:
                break
    model = tuner.finished(kept)
    return Trained(model, curve, best + 1, losses, lr, {})


@torch.no_grad()
def predict(
    model: Classifier,
    weights: Weights,
    crops: Crops,
    indices: np.ndarray,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> np.ndarray:
    """Probabilities float64 [len(indices), K] of the crops `indices`, in their order, the same on every process.

    Called on every process alike, each of which predicts a share. Raises ShardError for a crop that cannot be read.
    """
    model.eval()
    share = np.array_split(indices, accelerator.num_processes)[accelerator.process_index]
    views = LabelledViews(crops, np.zeros(len(crops), int), weights.size, config)
    found = [np.empty((0, cast(nn.Linear, model[1]).out_features))]
    for images, _ in views.batches(in_order(share, config.batch_size)):
        logits = logits_of(model, weights, images, accelerator.device)
        found.append(logits.float().cpu().double().softmax(1).numpy())
    probabilities = np.concatenate(gather_object([np.concatenate(found)]))
    if not np.isfinite(probabilities).all():
        raise DivergedError("training diverged in its last steps, and the model answers nothing: lower --lr")
    return probabilities


@dataclass(frozen=True)
class Plan:
    """How many crops a global batch has, passes an epoch, and steps all epochs."""

    batch: int
    passes: int
    total: int


def plan(crops: int, config: TrainingConfig, processes: int) -> Plan:
    """Batches and passes for `crops` to train on. Raises DownstreamError if the processes cannot share a batch."""
    if config.batch_size % processes:
        raise DownstreamError(
            f"--batch_size {config.batch_size} cannot be shared by {processes} processes: give a multiple of that"
        )
    if crops < 2 * processes:
        raise DownstreamError(f"{crops} crops to train on are too few for {processes} processes: pack more")
    batch = min(config.batch_size, crops)
    batch -= batch % processes
    steps = crops // batch
    passes = max(1, math.ceil(config.min_steps / (steps * config.epochs)))
    return Plan(batch, passes, steps * passes * config.epochs)


def frozen_features(
    backbone: Backbone, weights: Weights, views: LabelledViews, train: np.ndarray, config: TrainingConfig
) -> np.ndarray:
    """Return features [N, C] of the crops `train` as they are, in the way that is to be classified."""
    found, read = [], embed_maps if config.features == "maps" else embed
    for images, _ in views.batches(in_order(train, config.batch_size)):
        found.append(read(backbone, images.numpy(), weights.mean, weights.std, len(images)))
    return np.concatenate(found)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}
