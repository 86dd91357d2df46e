"""Ask timm for the pretrained weights of a model, from a hub or from its cache: `timm` and `timm:NAME`."""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.released_backbones import release_of


def is_hub(path: str | Path) -> bool:
    """Return whether `path` asks timm for weights instead of naming a file."""
    return not Path(path).is_file() and (str(path) == "timm" or str(path).startswith("timm:"))


def download(source: str, backbone: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict of a pretrained timm model, and its name, mean and std.

    `source` is `timm:NAME`, or `timm` for the weights of `backbone`. Raises CheckpointError with the remedy.
    """
    name = source.partition(":")[2] or backbone
    if not name:
        raise CheckpointError(f"{source} names no model: give timm:NAME, or --backbone")
    release = release_of(name)
    name = release.timm_name if release else name
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of a hub, a proxy, a cache or timm; each library raises its own
        reason = " ".join(str(error).split())[:120].rstrip(". ") or type(error).__name__
        raise CheckpointError(
            f"timm cannot load weights for '{name}' ({reason}): give a name with pretrained weights "
            f"(timm.list_pretrained()); where no hub is reachable, set HTTPS_PROXY, or download model.safetensors of "
            f"huggingface.co/timm/{name} elsewhere and give that file; HF_HUB_OFFLINE=1 uses the cache only"
        ) from error
    cfg: Any = model.pretrained_cfg
    return model.state_dict(), {"backbone": name, "mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}
