"""One fine-tuning step at a time: a copy of a backbone, a new classifier, optimiser, schedule and weight average."""

import copy
import math
import re
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from downstream.config import DownstreamError, TrainingConfig
from downstream.features.weights import Weights
from downstream.tasks.probe import logistic_regression
from pretrain.config.released_backbones import release_of
from pretrain.evaluation.embed import pooled_maps
from pretrain.method.schedules import warmup_cosine
from pretrain.method.trainer import step_seed
from pretrain.models.backbones import Backbone, freeze_unused
from pretrain.models.depthwise_conv import speed_up
from pretrain.models.normalization import normalised
from pretrain.models.student_teacher import batchnorms
from pretrain.runtime.precision import resolve_precision

PROBE_L2 = 1e-2
"""Strength of the logistic regression that a classifier starts from: between the best for few and for many crops."""


class DivergedError(DownstreamError):
    """A loss or gradient that is not finite."""


class Classifier(nn.Sequential):
    """A backbone and a linear classifier of its features, [B, 1, H, W] -> logits [B, K].

    Its state dict has the keys of Sequential(backbone, Linear). While it trains, features are standardized by `mean`
    and `std`, so that one learning rate suits them all; `fold_standardization` moves both into the Linear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, classes: int, maps: bool, size: tuple[int, int]) -> None:
        super().__init__(backbone)
        self.maps = maps
        training = backbone.training
        with torch.no_grad():
            backbone.eval()
            width = self.features(torch.zeros(1, 1, *size, device=next(backbone.parameters()).device)).shape[1]
        backbone.train(training)
        self.append(nn.Linear(width, classes))
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("std", torch.ones(width), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return what is classified: the last two maps by their cells, or the last map averaged."""
        backbone = cast(Backbone, self[0])
        return pooled_maps(backbone, images) if self.maps else backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, K]."""
        return self[1]((self.features(images) - self.mean) / self.std)

    @torch.no_grad()
    def fold_standardization(self) -> None:
        """Move `mean` and `std` into the Linear, which gives the same logits of the features as they are."""
        linear = cast(nn.Linear, self[1])
        linear.weight.div_(self.std)
        linear.bias.sub_(linear.weight @ self.mean)
        self.mean.zero_()
        self.std.fill_(1)


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
        pretrained: bool = True,
    ) -> None:
        self.freezes = pretrained and config.freeze_batchnorm
        self.weights, self.total, self.config, self.accelerator = weights, total, config, accelerator
        self.done = 0
        self.warmup = round(config.warmup * total)
        copied = copy.deepcopy(backbone)
        speed_up(copied)
        if not release_of(weights.backbone):
            freeze_unused(copied.cpu(), weights.size)
        torch.manual_seed(config.seed)
        self.model = Classifier(copied, len(balance), config.features == "maps", weights.size)
        self.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.balance = balance.to(accelerator.device)
        groups = [
            {"params": params, "peak": lr * factor, "weight_decay": config.weight_decay}
            for params, factor in by_depth(copied, config.layer_decay)
        ]
        groups.append({"params": list(self.model[1].parameters()), "peak": config.classifier_lr, "weight_decay": 0.0})
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.ema else self.model
        self.trained, self.optimizer = accelerator.prepare(self.model, torch.optim.AdamW(groups))

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One step on this process's share, images [B, H, W] and classes [B]; the loss of the global batch.

        Raises DivergedError, on every process, if training diverged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(self.done, self.total, self.warmup, group["peak"], 0.0)
        self.trained.train()
        if self.freezes:
            for layer in batchnorms(self.model[0]):
                layer.eval()
        torch.manual_seed(step_seed(self.config.seed, self.done, self.accelerator.process_index))
        logits = logits_of(self.trained, self.weights, images, self.accelerator.device)
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
        if self.config.ema:  # of few steps at first, so that the start is forgotten at any momentum
            self.average(min(self.config.ema, (1 + self.done) / (10 + self.done)))
        self.done += 1
        return everyones

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        """Move the averaged parameters towards the trained ones, and take BatchNorm's statistics as they are."""
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - momentum)
        for averaged, trained in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            averaged.copy_(trained)

    @torch.no_grad()
    def start_classifier(self, features: np.ndarray, codes: np.ndarray) -> None:
        """Start the classifier as the logistic regression on `features` [N, C] of crops of the classes `codes` [N]."""
        mean, std = features.mean(0), features.std(0)
        std = np.where(std > 1e-6, std, 1)  # a feature that never varies says nothing, whatever it is divided by
        weight, bias = logistic_regression((features - mean) / std, codes, len(self.balance), PROBE_L2)
        for model in {self.model, self.averaged}:
            linear = cast(nn.Linear, model[1])
            for tensor, values in ((model.mean, mean), (model.std, std), (linear.weight, weight), (linear.bias, bias)):
                tensor.copy_(torch.from_numpy(values))

    def share_buffers(self) -> None:
        """Give every process the main process's BatchNorm statistics: each saw other crops in the last step."""
        for model in {self.model, self.averaged}:
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))

    def finished(self, state: dict[str, Tensor]) -> Classifier:
        """The model in `eval()` with the weights `state`, free of what training had wrapped it in."""
        model = cast(Classifier, self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False))
        model.load_state_dict(state, strict=True)
        model.fold_standardization()
        self.accelerator.free_memory()  # it would keep every fold's model and optimiser
        return model.eval()


def by_depth(backbone: nn.Module, decay: float) -> list[tuple[list[nn.Parameter], float]]:
    """Return the backbone's parameters block by block, each with the factor of its learning rate: 1 for the last.

    Layer-wise decay as in BEiT (Bao et al. 2021, appendix D): decay^k for a block with k blocks after it.
    """
    blocks: dict[str, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        block = re.match(r".*?[._]\d+(?:\.\d+)?(?=\.)|.*?\..*?(?=\.)", name)
        blocks.setdefault(block[0] if block else name, []).append(parameter)
    return [(parameters, decay ** (len(blocks) - 1 - i)) for i, parameters in enumerate(blocks.values())]


def logits_of(model: nn.Module, weights: Weights, images: Tensor, device: torch.device) -> Tensor:
    """float32 [B, K] of images [B, H, W]; in bf16 where the device computes in it."""
    images = normalised(images.to(device).unsqueeze(1), weights.mean, weights.std)
    mixed = resolve_precision("auto", device).mixed == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        return model(images).float()


def class_weights(codes: np.ndarray, classes: int) -> Tensor:
    """float32 [K]: N / (K n_k), so that every class weighs the same in the loss whatever its number of crops."""
    return torch.from_numpy(len(codes) / (classes * np.bincount(codes, minlength=classes).clip(1))).float()
