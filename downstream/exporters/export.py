"""The weights in forms that other programs read: arrays of features, and a folder for timm and ONNX with its card."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor

from downstream.config import CropsConfig, DownstreamError, WeightsConfig
from downstream.data.crops import find_crops
from downstream.exporters.model_card import is_card, model_card
from downstream.exporters.onnx import EXTRA, missing_packages, write_onnx
from downstream.exporters.trial_images import phantom_teeth
from downstream.features.embedded_crops import embed_crops
from downstream.features.weights import Weights
from pretrain.config.released_backbones import release_of
from pretrain.models.backbones import Backbone, timm_places
from tooth_foundations.core.files import replace_atomically


def embed(config: CropsConfig, weights: Weights, accelerator: Accelerator) -> dict[str, Any]:
    """Write `features.npy`, float32 [N, C], and `keys.txt`, the id of each row, one a line.

    Called on every process alike; the main one writes.
    """
    crops = find_crops(config.shards, [])
    began = time.monotonic()
    features = embed_crops(crops, weights, config, accelerator)
    speed = len(crops) / (time.monotonic() - began)
    if accelerator.is_main_process:
        out, keys = Path(config.out), "".join(f"{key}\n" for key in crops.keys)
        replace_atomically(out / "features.npy", lambda file: np.save(file, features))
        replace_atomically(out / "keys.txt", lambda file: file.write(keys.encode()))
    return {
        "crops": len(crops),
        "features": features.shape[1],
        "dtype": str(features.dtype),
        "processes": accelerator.num_processes,
        "crops_per_second": round(speed, 1),
    }


def export(config: WeightsConfig, weights: Weights) -> dict[str, Any]:
    """Write `model.safetensors` and `config.json`, which `timm.create_model("local-dir:OUT", pretrained=True)` loads.

    What timm then gives is the list of feature maps; the last one averaged over space is the backbone's output. The
    folder is loaded again and compared with the backbone. Raises DownstreamError unless every bit is equal. Beside them
    `model.onnx`, compared too (see write_onnx), unless packages for it are missing, and the card `README.md`.
    """
    model = copy.deepcopy(weights.model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    release = release_of(weights.backbone)
    timm_name = release.timm_name if release else weights.backbone
    options = {"in_chans": 1, "num_classes": 0, **(release.options if release else {})}
    plain = timm.create_model(timm_name, pretrained=False, **options)
    out = Path(config.out)
    if (out / "README.md").exists() and not is_card((out / "README.md").read_text(encoding="utf-8", errors="replace")):
        raise DownstreamError(f"{out / 'README.md'} is not of an export, and one would replace it: name another --out")
    for name in ("model.onnx", "README.md"):
        (out / name).unlink(missing_ok=True)  # of an earlier export: it would be beside other weights
    content = save(plain_keys(model, list(plain.state_dict()), weights.backbone))
    replace_atomically(out / "model.safetensors", lambda file: file.write(content))
    text = json.dumps(timm_config(timm_name, plain.pretrained_cfg, options, weights), indent=2)
    replace_atomically(out / "config.json", lambda file: file.write(text.encode() + b"\n"))
    try:
        difference = compare(out, model, weights)
    except DownstreamError:
        (out / "config.json").unlink()  # so that nobody loads what was found wrong
        raise
    missing = missing_packages()
    onnx = None if missing else write_onnx(model, weights, out / "model.onnx")
    card = model_card(weights, onnx)
    replace_atomically(out / "README.md", lambda file: file.write(card.encode()))
    return {
        "load": 'timm.create_model("local-dir:OUT", pretrained=True)',
        "max_difference": difference,
        "megabytes": round(len(content) / 1e6, 2),
        "timm": timm.__version__,
        "onnx": onnx or {"file": None, "missing": missing, "remedy": EXTRA},
    }


def plain_keys(model: Backbone, plain: list[str], name: str) -> dict[str, Tensor]:
    """The backbone's tensors under the keys of the plain timm model, which timm loads before it makes features of it.

    Raises DownstreamError where a key has no counterpart.
    """
    ours = {key.removeprefix("m."): tensor for key, tensor in model.state_dict().items()}
    found = {key: ours.pop(place).contiguous() for key, place in timm_places(list(ours), plain).items()}
    if ours:
        raise DownstreamError(
            f"backbone '{name}' cannot be exported: timm's plain model has no place for {', '.join(list(ours)[:3])} "
            f"({len(ours)} keys); one of the released backbones can"
        )
    return found


def timm_config(timm_name: str, registered: Any, options: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """`config.json` in timm's format: how to build the model, and the input convention.

    The model to build has 0 classes (`model_args`); the weights are said to have -1, because timm accepts that the
    layers after the last feature map are absent only where the two numbers differ.
    """
    return {
        "architecture": timm_name.partition(".")[0],
        "num_features": weights.model.num_features,
        "model_args": {**options, "features_only": True},
        "pretrained_cfg": {
            "input_size": [1, *weights.size],
            "mean": [weights.mean],
            "std": [weights.std],
            "num_classes": -1,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "fixed_input_size": bool(registered.get("fixed_input_size")) and "dynamic_img_size" not in options,
            "first_conv": registered.get("first_conv"),
            "classifier": registered.get("classifier"),
        },
    }


@torch.no_grad()
def compare(folder: Path, model: Backbone, weights: Weights) -> float:
    """Largest difference between the last feature maps of `model` and of the exported folder, on phantom teeth: 0.

    Raises DownstreamError if it is not, if any tensor differs (timm does not tell which it did not find in the file),
    or if timm cannot load the folder.
    """
    images = phantom_teeth(weights, 2, weights.size)
    try:
        exported = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        difference = float((exported(images)[-1] - model.m(images)[-1]).abs().max())
    except (RuntimeError, KeyError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DownstreamError(
            f"timm {timm.__version__} cannot load backbone '{weights.backbone}' from {folder} ({reason}): "
            "use the checkpoint itself; the released backbones can be exported"
        ) from error
    ours, theirs = model.m.state_dict(), exported.state_dict()
    different = [key for key in ours.keys() | theirs.keys() if not _same(ours.get(key), theirs.get(key))]
    if different or difference != 0:  # also when it is NaN
        raise DownstreamError(
            f"what timm {timm.__version__} loads from {folder} differs from backbone '{weights.backbone}' (tensors: "
            f"{', '.join(sorted(different)[:3]) or 'none'}; features: by up to {difference}): use the checkpoint itself"
        )
    return difference


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)
