"""A combined checkpoint, or a backbone alone, with its input convention: ready for use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from downstream.config import DownstreamError, WeightsConfig
from downstream.released_files import Identified, identify
from pretrain.checkpoints.combined import backbone_of, fill
from pretrain.checkpoints.foreign_weights import Foreign, fill_foreign, likely_backbone, read_any
from pretrain.checkpoints.metadata import ASSUMED, read_facts, read_json
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.models.backbones import Backbone, build_backbone, check_view_size


@dataclass(frozen=True)
class Weights:
    """A trained backbone in `eval()` on the best device, and how images must be made for it."""

    model: Backbone
    backbone: str
    size: tuple[int, int]
    mean: float
    std: float
    assumed: tuple[str, ...]  # which of these nobody stated
    facts: dict[str, Any]  # all that lies beside the checkpoint, {} if nothing does: for the model card
    loaded: str  # what was loaded from which file, for the terminal: it may show a name
    release: Identified | None  # which published file it is

    def stated(self) -> dict[str, Any]:
        """The convention, and the published file if it is one, JSON-ready, for metrics.json."""
        names = ("backbone", "size", "mean", "std", "assumed")
        return {name: getattr(self, name) for name in names} | ({"release": str(self.release)} if self.release else {})


def load_weights(config: WeightsConfig) -> Weights:
    """Build the backbone and load the checkpoint into it, strictly. It takes the same forms as `--init` of a run.

    Options win over the facts beside the checkpoint, these over what a resume checkpoint says of its run, and that over
    the keys and `ASSUMED`. Raises DownstreamError, CheckpointError or BackboneError in one line; also where a file
    has the name of a published one, no facts beside it, and is another.
    """
    checkpoint = Path(config.checkpoint)
    stored = read_any(config.checkpoint, config.network, config.backbone)
    if isinstance(stored, Foreign):
        return _foreign_weights(config, stored)
    facts = read_facts(checkpoint.with_suffix(".json"))
    published = None if facts else identify(checkpoint)
    known = stored.stated | facts
    known |= {name: value for name in ("backbone", *ASSUMED) if (value := getattr(config, name)) is not None}
    try:
        name = known["backbone"] if "backbone" in known else backbone_of(stored)
    except CheckpointError as error:
        beside = checkpoint.with_suffix(".json").name
        raise DownstreamError(f"{error} with --backbone, or put its facts beside it as {beside}") from None
    model = build_backbone(name)
    loaded = fill(stored, model)
    convention = ASSUMED | {k: v for k, v in known.items() if k in ASSUMED}
    height, width = convention["size"]
    check_view_size(model, name, (height, width))
    return Weights(
        model=to_device(model).eval(),
        backbone=name,
        size=(height, width),
        mean=float(convention["mean"]),
        std=float(convention["std"]),
        assumed=tuple(name for name in ASSUMED if name not in known),
        facts=read_json(checkpoint.with_suffix(".json")),
        loaded=f"{published or checkpoint.name}: {name}, {loaded}",
        release=published,
    )


def _foreign_weights(config: WeightsConfig, foreign: Foreign) -> Weights:
    """A backbone alone, its stem made for one channel and for the scaling that the options name, else `ASSUMED`."""
    name = config.backbone or likely_backbone(foreign)
    if name is None:
        first = ", ".join(list(foreign.tensors)[:3])
        raise DownstreamError(f"{foreign.path} is a backbone alone (first keys: {first}): name it with --backbone")
    options = {key: value for key in ASSUMED if (value := getattr(config, key)) is not None}
    convention = ASSUMED | options
    height, width = convention["size"]
    mean, std = float(convention["mean"]), float(convention["std"])
    model = build_backbone(name)
    loaded = fill_foreign(foreign, model, name, mean, std)
    check_view_size(model, name, (height, width))
    assumed = ("size",) if "size" not in options else ()  # any mean and std are right: the stem was made for them
    return Weights(to_device(model).eval(), name, (height, width), mean, std, assumed, {}, loaded, None)


def to_device(model: Backbone) -> Backbone:
    """The model on the accelerator if there is one, in the memory layout that convolutions are fastest in."""
    return model.to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def best_device() -> torch.device:
    """CUDA, else Apple's, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
