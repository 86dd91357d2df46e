"""A backbone with a new classifier, trained end to end: the backbone slowly, the classifier faster."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from downstream.config import DownstreamError, TrainingConfig
from downstream.crops import Crops
from downstream.labelled import LabelledViews, in_order, shuffled
from downstream.weights import Weights
from pretrain.backbones import Backbone, freeze_unused, release_of
from pretrain.batches import normalised
from pretrain.depthwise import speed_up
from pretrain.evaluate import balanced_accuracy
from pretrain.precision import resolve_precision
from pretrain.schedules import warmup_cosine
from pretrain.trainer import step_seed


@dataclass(frozen=True)
class Trained:
    """A trained classifier and how it came about.

    model: Sequential(backbone, Linear) in `eval()` on the accelerator's device, with the best epoch's weights, the same
    on every process. curve: of each epoch its number `epoch`, mean `loss` and, where patients were set apart,
    `balanced_accuracy` on them. best_epoch: from 1 on. losses: of every step, over the global batch. lr: the
    backbone's peak rate. tried: of several rates what each reached on the patients set apart, None if it diverged.
    """

    model: nn.Sequential
    curve: list[dict[str, Any]]
    best_epoch: int
    losses: list[float]
    lr: float
    tried: dict[str, float | None]

    @property
    def reached(self) -> float:
        """Balanced accuracy of the best epoch on the patients set apart; 0 where there were none."""
        return self.curve[self.best_epoch - 1].get("balanced_accuracy", 0.0)


class DivergedError(DownstreamError):
    """A loss or gradient that is not finite."""


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
) -> Trained:
    """Train a copy of `backbone` and a new Linear on the crops `train`, stopping early by the crops `validation`.

    Of several rates `config.lr` each is trained, and that which does best on `validation` is kept (of equal ones the
    first). `weights` says how images are made; its own model is not used. codes: classes int [N] in 0 ... classes - 1
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
                backbone, weights, crops, codes, classes, train, validation, config, rate, accelerator, named
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
) -> Trained:
    steps = plan(len(train), config, accelerator.num_processes)
    balance = class_weights(codes[train], classes) if config.class_weights else torch.ones(classes)
    tuner = Tuner(backbone, weights, balance, steps.total, config, lr, accelerator)
    views = LabelledViews(crops, codes, weights.size, config)
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    best, kept = 0, _state(tuner.model)
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
                predicted = predict(tuner.model, weights, crops, validation, config, accelerator).argmax(1)
                line["balanced_accuracy"] = round(balanced_accuracy(codes[validation], predicted), 4)
                bar.set_postfix_str(f"validation {line['balanced_accuracy']:.3f}")
            curve.append(line)
            if not len(validation) or epoch == 0 or line["balanced_accuracy"] > curve[best]["balanced_accuracy"]:
                best, kept = epoch, _state(tuner.model)
            elif epoch - best >= config.patience:
                break
    model = tuner.finished(kept)
    return Trained(model, curve, best + 1, losses, lr, {})


@torch.no_grad()
def predict(
    model: nn.Sequential,
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
        logits = _logits(model, weights, images, accelerator.device)
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


class Tuner:
    """A copy of a backbone, a new classifier, optimiser and schedule; one step at a time."""

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        balance: Tensor,
        total: int,
        config: TrainingConfig,
        lr: float,
        accelerator: Accelerator,
    ) -> None:
        self.weights, self.total, self.config, self.accelerator = weights, total, config, accelerator
        self.done = 0
        self.warmup = round(config.warmup * total)
        copied = copy.deepcopy(backbone)
        speed_up(copied)
        if not release_of(weights.backbone):
            freeze_unused(copied.cpu(), weights.size)
        torch.manual_seed(config.seed)
        classifier = nn.Linear(backbone.num_features, len(balance))
        self.model = nn.Sequential(copied, classifier)
        self.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.balance = balance.to(accelerator.device)
        groups = [
            {"params": copied.parameters(), "peak": lr, "weight_decay": config.weight_decay},
            {"params": classifier.parameters(), "peak": config.classifier_lr, "weight_decay": 0.0},
        ]
        self.trained, self.optimizer = accelerator.prepare(self.model, torch.optim.AdamW(groups))

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One step on this process's share, images [B, H, W] and classes [B]; the loss of the global batch.

        Raises DivergedError, on every process, if training diverged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(self.done, self.total, self.warmup, group["peak"], 0.0)
        self.trained.train()
        torch.manual_seed(step_seed(self.config.seed, self.done, self.accelerator.process_index))
        logits = _logits(self.trained, self.weights, images, self.accelerator.device)
        # Divided by the number of crops, not by their weights: then the mean over processes is that of one process.
        targets = targets.to(self.accelerator.device)
        loss = F.cross_entropy(logits, targets, weight=self.balance, reduction="sum") / len(targets)
        everyones = self.accelerator.reduce(loss.detach(), reduction="mean").item()
        self.accelerator.backward(loss)
        norm = float(self.accelerator.clip_grad_norm_(self.trained.parameters(), self.config.clip))
        if not (math.isfinite(everyones) and math.isfinite(norm)):
            raise DivergedError(
                f"the loss is {everyones:g} and the gradient norm {norm:g} at step {self.done}: "
                "lower --lr and --classifier_lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return everyones

    def share_buffers(self) -> None:
        """Give every process the main process's BatchNorm statistics: each saw other crops in the last step."""
        for buffer in self.model.buffers():
            buffer.copy_(broadcast(buffer))

    def finished(self, state: dict[str, Tensor]) -> nn.Sequential:
        """The model in `eval()` with the weights `state`, free of what training had wrapped it in."""
        model = cast(nn.Sequential, self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False))
        model.load_state_dict(state, strict=True)
        self.accelerator.free_memory()  # it would keep every fold's model and optimiser
        return model.eval()


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}


def _logits(model: nn.Module, weights: Weights, images: Tensor, device: torch.device) -> Tensor:
    """float32 [B, K] of images [B, H, W]; in bf16 where the device computes in it."""
    images = normalised(images.to(device).unsqueeze(1), weights.mean, weights.std)
    mixed = resolve_precision("auto", device).mixed == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        return model(images).float()


def class_weights(codes: np.ndarray, classes: int) -> Tensor:
    """float32 [K]: N / (K n_k), so that every class weighs the same in the loss whatever its number of crops."""
    return torch.from_numpy(len(codes) / (classes * np.bincount(codes, minlength=classes).clip(1))).float()
