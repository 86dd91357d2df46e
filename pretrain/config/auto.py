"""What the settings left on `auto` become: rules of the crops, the global batch, the steps and the backbone.

Between a thousand crops and a few million no single value serves. Each rule runs through the values that were published
or measured for some size of run, and says which. "DINO" is Caron et al. 2021 (ImageNet, 1.28 million images), "DINOv2"
Oquab et al. 2023; lightly-train 0.18 scales DINO's settings down to small sets.
"""

import dataclasses
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from pretrain.config.bounds import LIMITS
from pretrain.config.released_backbones import RELEASED, release_of
from pretrain.config.schema import Config

BATCH = 64
"""Crops of a global batch on CPUs, or of each GPU's share, as DINO's ViT-S had on each of 16."""
PASSES, CROPS_SEEN = 100, 128_000_000


def global_batch(device: str, processes: int) -> int:
    """64 crops for each GPU; on CPUs 64 in all, or what divides over the processes from there on."""
    if device != "cpu":
        return BATCH * processes
    return max(2 * processes, math.ceil(BATCH / processes) * processes)


def run_steps(crops: int, batch: int) -> int:
    """100 passes over the crops, as DINO and lightly-train take, but no more than 128 million: 100 of ImageNet's."""
    return max(1, math.ceil(min(PASSES * crops, CROPS_SEEN) / batch))


def prototypes(crops: int, batch: int) -> int:
    """K: the power of two at or below a sixteenth of the crops, from the release's 256 to DINO's 65,536.

    lightly-train gives 12 to 24 crops to a prototype (1,024 up to 20,000 crops). At most 64 a crop of the batch, as in
    DINO and DINOv2: Sinkhorn-Knopp has each batch use all of them.
    """
    wanted = min(crops / 16, 64 * batch)
    return 2 ** min(16, max(8, math.floor(math.log2(max(wanted, 1)))))


def teacher_temperature(crops: int) -> float:
    """0.02 up to 20,000 crops, then on a line to 0.07 at a million (lightly-train; 0.07 is DINO's)."""
    return round(_line(crops, 20_000, 1_000_000, 0.02, 0.07), 4)


def teacher_temperature_start(crops: int) -> float:
    """0.02 up to 20,000 crops, then on a line to DINO's 0.04 at a million."""
    return round(_line(crops, 20_000, 1_000_000, 0.02, 0.04), 4)


def teacher_temperature_warmup(steps: int) -> float:
    """The share of DINO's 37,500 steps (30 epochs), at most 0.3 of the run as in lightly-train."""
    return _share(37_500, steps, 0.3)


def freeze_last_layer(steps: int) -> float:
    """The share of DINO's 1,250 steps (one epoch), at most the 0.05 of our short runs."""
    return _share(1_250, steps, 0.05)


def warmup(steps: int) -> float:
    """The share of DINO's 12,500 steps (10 epochs), at most 0.1 of the run as in lightly-train."""
    return _share(12_500, steps, 0.1)


def ema_start(steps: int) -> float:
    """1 - 1 / (5 cbrt(steps)): the teacher averages 5 cbrt(steps) steps at first; never above DINO's 0.996.

    Through 0.97 at 300 steps (tuned here) and 0.996 at 125,000 (DINO's hundred epochs); 20,000 images for 100 epochs in
    batches of 128 have 0.992, and 0.99 in lightly-train.
    """
    return round(min(1 - 1 / (5 * steps ** (1 / 3)), 0.996), 3)


def init_freeze(new_head: bool) -> float:
    """0.05 where the weights have a head, 0.15 for a new one, which it takes that long to fit to the backbone.

    0.15 is what runs from ImageNet's EfficientNet-Lite0 gained with (300 and 900 steps).
    """
    return 0.15 if new_head else 0.05


def learning_rate(batch: int, backbone: str) -> float:
    """1e-3 at 64 crops, with the square root of the batch (DINOv2); half of it for the ViT and ConvNeXtV2.

    1e-3 at 64 is tuned here for small convolutional backbones, and DINOv2's 4e-3 at 1,024; half of it, 2e-3 at 1,024,
    is DINO's for ViT-S. So it is for a backbone that is not released.
    """
    release = release_of(backbone)
    cautious = release is None or release in (RELEASED["vit"], RELEASED["convnextv2"])
    return (5e-4 if cautious else 1e-3) * math.sqrt(batch / BATCH)


def resolved(
    config: Config,
    crops: int,
    device: str,
    processes: int,
    earlier: Mapping[str, Any] | None = None,
    head: int | None = None,
) -> tuple[Config, str]:
    """The settings with numbers in place of `auto`, and a line that says which; "" if none was on `auto`.

    `earlier` is the identity of the run that is continued, if one is: what it trained with stays, whatever the rules
    would say of another number of processes or steps. `head` is the width K of the head that the run starts from.
    """
    earlier, values = earlier or {}, {}
    names = on_auto(config)
    if not names:
        return config, ""

    def settle(name: str, rule: Any) -> Any:
        if name in names:
            values[name] = earlier.get(name, rule)
        return values.get(name, attrgetter(name)(config))

    batch = settle("data.batch_size", global_batch(device, processes))
    if "epochs" in names:
        steps = values["steps"] = earlier.get("total steps", run_steps(crops, batch))
    else:
        steps = _with(config, values).total_steps(crops)
    settle("method.prototypes", head or prototypes(crops, batch))
    settle("method.teacher_temperature", teacher_temperature(crops))
    settle("method.teacher_temperature_start", teacher_temperature_start(crops))
    settle("method.teacher_temperature_warmup", teacher_temperature_warmup(steps))
    settle("method.ema_start", ema_start(steps))
    settle("method.freeze_last_layer", freeze_last_layer(steps))
    settle("optim.lr", learning_rate(batch, config.backbone))
    settle("optim.warmup", warmup(steps))
    settle("optim.init_freeze", init_freeze(new_head=bool(config.init) and head is None))
    used = {name: value for name, value in values.items() if config.init or name != "optim.init_freeze"}
    said = ", ".join(f"{name} {value if isinstance(value, int) else f'{value:.6g}'}" for name, value in used.items())
    origin = "as this run began" if earlier else f"{crops:,} crops in batches of {batch} over {steps:,} steps"
    settled = _with(config, values, **({"epochs": None} if "epochs" in names else {}))
    return settled, f"auto: {said} ({origin})" if used else ""


def on_auto(config: Config) -> list[str]:
    """The dotted names of the numbers that wait for the crops to be counted."""
    return [name for name in LIMITS if attrgetter(name)(config) == "auto"]


def _with(config: Config, values: Mapping[str, Any], **own: Any) -> Config:
    """The configuration with values under dotted names, and `own` of its own."""
    for name, value in values.items():
        group, _, field = name.rpartition(".")
        part = dataclasses.replace(getattr(config, group), **{field: value}) if group else value
        config = dataclasses.replace(config, **{group or name: part})
    return dataclasses.replace(config, **own)


def _line(x: float, low: float, high: float, start: float, end: float) -> float:
    """The line from `start` at `low` to `end` at `high`, level on both sides."""
    return start + (end - start) * min(max((x - low) / (high - low), 0.0), 1.0)


def _share(wanted: int, steps: int, most: float) -> float:
    return min(wanted / steps, most)
