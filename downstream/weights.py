"""A combined checkpoint with its input convention, as a backbone ready for use."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from downstream.config import DownstreamError, WeightsConfig
from pretrain.backbones import RELEASED, Backbone, build_backbone, check_view_size
from pretrain.checkpoint import load_combined, read_combined

ASSUMED: dict[str, Any] = {"size": (320, 240), "mean": 0.5, "std": 0.25}
"""Where no facts lie beside a checkpoint: the release's size and this project's scaling."""


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

    def stated(self) -> dict[str, Any]:
        """The convention, JSON-ready, for metrics.json."""
        names = ("backbone", "size", "mean", "std", "assumed")
        return {name: getattr(self, name) for name in names}


def load_weights(config: WeightsConfig) -> Weights:
    """Build the backbone and load the checkpoint into it, strictly.

    Options win over the facts beside the checkpoint, facts over inference and `ASSUMED`. Raises DownstreamError,
    CheckpointError or BackboneError in one line.
    """
    checkpoint = Path(config.checkpoint)
    known: dict[str, Any] = read_facts(checkpoint.with_suffix(".json"))
    known |= {name: value for name in ("backbone", *ASSUMED) if (value := getattr(config, name)) is not None}
    assumed = tuple(name for name in ASSUMED if name not in known)
    name = known.get("backbone") or infer_backbone(checkpoint)
    model = build_backbone(name)
    load_combined(checkpoint, model)
    convention = ASSUMED | {k: v for k, v in known.items() if k in ASSUMED}
    height, width = convention["size"]
    check_view_size(model, name, (height, width))
    return Weights(
        to_device(model).eval(),
        name,
        (height, width),
        float(convention["mean"]),
        float(convention["std"]),
        assumed,
        read_json(checkpoint.with_suffix(".json")),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_facts(path: Path) -> dict[str, Any]:
    """Backbone, size, mean and std from a facts file; {} where there is none. Raises DownstreamError if unreadable."""
    try:
        if not (facts := read_json(path)):
            return {}
        size = tuple(int(side) for side in facts["input"]["size"])
        if len(size) != 2:
            raise ValueError("input.size is not a height and a width")
        return {"backbone": str(facts["backbone"]), "size": size} | {
            name: float(facts["input"][name]) for name in ("mean", "std")
        }
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DownstreamError(
            f"the facts in {path} cannot be read ({type(error).__name__}: {error}): "
            "copy them again, or remove the file and give --backbone, --size, --mean and --std"
        ) from error


def infer_backbone(checkpoint: Path) -> str:
    """The released backbone whose keys and shapes the checkpoint has. Raises DownstreamError if it is none of them."""
    wanted = {key: tensor.shape for key, tensor in read_combined(checkpoint)[0].items()}
    for name in RELEASED:
        if wanted == {key: tensor.shape for key, tensor in build_backbone(name).state_dict().items()}:
            return name
    raise DownstreamError(
        f"{checkpoint} is none of the released backbones ({', '.join(RELEASED)}) and has no facts beside it "
        f"({checkpoint.with_suffix('.json').name}): name its timm model with --backbone"
    )


def to_device(model: Backbone) -> Backbone:
    """The model on the accelerator if there is one, in the memory layout that convolutions are fastest in."""
    return model.to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def best_device() -> torch.device:
    """CUDA, else Apple's, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
