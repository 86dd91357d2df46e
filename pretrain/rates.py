"""What a run's schedules say at one step, and how the optimiser takes it."""

from typing import NamedTuple

import torch

from pretrain.config import Config
from pretrain.schedules import cosine, ramp, warmup_cosine


class Rates(NamedTuple):
    """What the schedules say at one step."""

    lr: float
    weight_decay: float
    ema_momentum: float
    teacher_temperature: float
    last_layer_frozen: bool
    backbone_frozen: bool


def rates_at(config: Config, step: int, total: int) -> Rates:
    """Every schedule at `step` of `total`: a pure function, so a resumed run needs only its step."""
    method, optim = config.method, config.optim
    temperatures = method.teacher_temperature_start, method.teacher_temperature
    peak = optim.lr * (optim.init_lr if config.init else 1)
    return Rates(
        lr=warmup_cosine(step, total, round(optim.warmup * total), peak, optim.lr_end),
        weight_decay=cosine(step, total, optim.weight_decay, optim.weight_decay_end),
        ema_momentum=cosine(step, total, method.ema_start, method.ema_end),
        teacher_temperature=ramp(step, round(method.teacher_temperature_warmup * total), *temperatures),
        last_layer_frozen=step < round(method.freeze_last_layer * total),
        backbone_frozen=bool(config.init) and step < round(optim.init_freeze * total),
    )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Hand this step's learning rate and weight decay to the optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["in_backbone"] and rates.backbone_frozen else rates.lr
        if group["decays"]:
            group["weight_decay"] = rates.weight_decay
