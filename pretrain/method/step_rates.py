"""What a run's schedules say at one step, and how the optimiser takes it."""

from typing import NamedTuple

import torch

from pretrain.config.schema import Config
from pretrain.method.schedules import cosine, ramp, warmup_cosine


class Rates(NamedTuple):
    """What the schedules say at one step."""

    lr: float
    backbone_lr: float
    weight_decay: float
    ema_momentum: float
    teacher_temperature: float
    last_layer_frozen: bool


def rates_at(config: Config, step: int, total: int) -> Rates:
    """Every schedule at `step` of `total`: a pure function, so a resumed run needs only its step.

    In a run from `init` the backbone's learning rate begins to rise when the head has learnt alone: at its peak at once
    it undoes what the weights know (docs/recipes.md).
    """
    method, optim = config.method, config.optim
    temperatures = method.teacher_temperature_start, method.teacher_temperature
    peak = optim.lr * (optim.init_lr if config.init else 1)
    head_alone = round(optim.init_freeze * total) if config.init else 0

    def lr(step: int, total: int) -> float:
        return warmup_cosine(step, total, round(optim.warmup * total), peak, optim.lr_end)

    return Rates(
        lr=lr(step, total),
        backbone_lr=lr(step - head_alone, total - head_alone) if step >= head_alone else 0.0,
        weight_decay=cosine(step, total, optim.weight_decay, optim.weight_decay_end),
        ema_momentum=cosine(step, total, method.ema_start, method.ema_end),
        teacher_temperature=ramp(step, round(method.teacher_temperature_warmup * total), *temperatures),
        last_layer_frozen=step < round(method.freeze_last_layer * total),
    )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Hand this step's learning rate and weight decay to the optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rates.backbone_lr if group["in_backbone"] else rates.lr
        if group["decays"]:
            group["weight_decay"] = rates.weight_decay
