"""The released combined format: `{"backbone": state dict, "proj_head": state dict}`, and its forms in circulation."""

import json
import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.checkpoints.weights_io import CheckpointError, read_weights, torch_save
from pretrain.config.released_backbones import RELEASED
from pretrain.models.backbones import Backbone, build_backbone
from pretrain.models.projection_head import proj_head
from tooth_foundations.core.files import sync

StateDict = dict[str, Tensor]
Network = Literal["teacher", "student"]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
"""What DistributedDataParallel and torch.compile put before (compile also between) the names of a module."""


NEARLY = 0.9
"""Share of a released backbone's keys and shapes from which on a file is taken for that one, damaged if under 1."""


class Combined(NamedTuple):
    """The two state dicts of the combined checkpoint at `path`.

    `stated` holds what a resume checkpoint says of its run: backbone, size (height, width in px), mean and std.
    """

    path: Path
    backbone: StateDict
    proj_head: StateDict
    stated: dict[str, Any]


class Loaded(NamedTuple):
    """What `load_combined` did: the modules, and by full name the keys that were loaded or ignored.

    `name` is the backbone's where it was inferred. `ignored` are the head's keys where no head was asked for, `shorter`
    the types of less precision than ours that tensors were stored in; missing, unexpected and reshaped keys are a
    MismatchError.
    """

    backbone: Backbone
    head: proj_head | None
    name: str
    loaded: list[str]
    ignored: list[str]
    shorter: list[str]

    def __str__(self) -> str:
        ignored = f", {len(self.ignored)} of the head ignored" if self.ignored else ""
        stored = f" (stored as {', '.join(self.shorter)})" if self.shorter else ""
        return f"{len(self.loaded)} tensors loaded{stored}{ignored}, none missing, unexpected or reshaped"


class MismatchError(CheckpointError):
    """Weights of another module.

    `loaded` (those that would have fitted), `missing`, `unexpected` and `reshaped` hold every key by its full name.
    """

    def __init__(self, path: str | Path, keys: dict[str, list[str]], remedy: str) -> None:
        self.loaded = keys["loaded"]
        self.missing, self.unexpected, self.reshaped = keys["missing"], keys["unexpected"], keys["reshaped"]
        self.differences = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in keys.items()
            if names and kind != "loaded"
        )
        super().__init__(f"{path} does not fit: {len(self.loaded)} keys do; {self.differences}; {remedy}")


def save_combined(path: str | Path, backbone: nn.Module, head: nn.Module) -> None:
    """Write `{"backbone": state dict, "proj_head": state dict}`, float32 on the CPU, replacing `path` atomically.

    The file is first written under its final name in a temporary folder: the root inside a .pth zip is the file's stem,
    so size and bytes depend on that name.
    """
    path = Path(path)
    combined = {"backbone": _released(backbone), "proj_head": _released(head)}
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        torch_save(combined, written)
        sync(written)
        written.replace(path)
    sync(path.parent)


def read_combined(path: str | Path, network: Network = "teacher") -> Combined:
    """The state dicts of a combined checkpoint in any form in circulation.

    These are: nested; flat with `backbone.` and `proj_head.` before the keys; either under `state_dict`; any of them
    with the `module.` and `_orig_mod.` of a wrapped model; safetensors; and a resume checkpoint of ours, which holds a
    student and a teacher. Raises CheckpointError for anything else. Nothing is unpickled but tensors.
    """
    return combined_of(Path(path), read_weights(Path(path)), network)


def combined_of(path: Path, content: Any, network: Network = "teacher") -> Combined:
    """Return the state dicts in the `content` of a combined checkpoint, read from `path`. Raises CheckpointError."""
    stated: dict[str, Any] = {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a combined checkpoint")
    if isinstance(content.get("teacher"), dict) and isinstance(content.get("student"), dict):
        content, stated = content[network], _stated(content)
    elif network != "teacher":
        raise CheckpointError(f"{path} holds no {network}: only a run's checkpoints/ do, so leave that out")
    elif isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    parts = [_part(path, content, part) for part in ("backbone", "proj_head")]
    if not all(parts) or not all(_is_plain(value) for part in parts for value in part.values()):
        first = ", ".join(map(str, list(content)[:4]))
        raise CheckpointError(
            f"{path} has no backbone and proj_head of plain tensors (its first keys: {first}); give a combined "
            "checkpoint"
        )
    return Combined(path, parts[0], parts[1], stated)


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of real numbers with its values there: no sparse, quantised or meta one."""
    usual = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return usual and not value.is_quantized and not value.is_complex()


def load_combined(
    path: str | Path, backbone: Backbone | None = None, head: proj_head | None = None, network: Network = "teacher"
) -> Loaded:
    """Load a combined checkpoint into `backbone` and, if given, `head`: strictly, every key and shape.

    Without `backbone`, both are built: the backbone that the keys are of, and a head of the stored widths. `network`
    says which one of a resume checkpoint. Raises CheckpointError (also where a value is not finite), or MismatchError
    listing the missing, unexpected and reshaped keys, and then changes neither module.
    """
    return fill(read_combined(path, network), backbone, head)


def fill(stored: Combined, backbone: Backbone | None = None, head: proj_head | None = None) -> Loaded:
    """`load_combined` of a checkpoint that has been read."""
    path, name = stored.path, ""
    if backbone is None:
        name = backbone_of(stored)
        backbone, head = build_backbone(name), head or _head_of(path, stored.proj_head)
    modules: list[tuple[nn.Module, StateDict]] = [(backbone, stored.backbone)]
    ours, theirs = _named("backbone", backbone.state_dict()), _named("backbone", stored.backbone)
    in_head = _named("proj_head", stored.proj_head)
    if head is not None:
        modules.append((head, stored.proj_head))
        ours, theirs = ours | _named("proj_head", head.state_dict()), theirs | in_head
    keys = {
        "loaded": [k for k in ours if k in theirs and theirs[k].shape == ours[k].shape],
        "missing": [k for k in ours if k not in theirs],
        "unexpected": [k for k in theirs if k not in ours],
        "reshaped": [
            f"{k} {tuple(theirs[k].shape)} instead of {tuple(ours[k].shape)}"
            for k in ours
            if k in theirs and theirs[k].shape != ours[k].shape
        ],
    }
    if len(keys["loaded"]) < len(ours) or keys["unexpected"]:
        raise MismatchError(path, keys, _remedy(stored))
    if odd := [k for k in ours if ours[k].is_floating_point() and not theirs[k].is_floating_point()]:
        raise CheckpointError(
            f"{path} holds {theirs[odd[0]].dtype} where float32 belongs, in {len(odd)} of {len(ours)} tensors "
            f"({odd[0]} first): it was quantised; use the original"
        )
    if lost := [k for k in ours if theirs[k].is_floating_point() and not theirs[k].float().isfinite().all()]:
        raise CheckpointError(
            f"{path} holds values that are not finite in {len(lost)} of {len(ours)} tensors ({lost[0]} first): it is "
            "of a run that diverged; use another"
        )
    for module, state in modules:
        module.load_state_dict(state, strict=True)
    shorter = sorted({str(theirs[k].dtype).removeprefix("torch.") for k in ours if _is_shorter(theirs[k], ours[k])})
    return Loaded(backbone, head, name, keys["loaded"], [] if head is not None else list(in_head), shorter)


def _is_shorter(stored: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and stored.element_size() < own.element_size()


def backbone_of(stored: Combined) -> str:
    """The backbone that the file states, else the released one that has its keys and shapes.

    Raises CheckpointError naming the closest, or where that is close MismatchError naming the keys.
    """
    if "backbone" in stored.stated:
        return str(stored.stated["backbone"])
    shared = {name: _shared(name, stored.backbone) for name in RELEASED}
    nearest = max(shared, key=lambda name: shared[name])
    if shared[nearest] > NEARLY:  # `fill` names what is missing, unexpected and reshaped
        return nearest
    close = (
        f"; the closest is {nearest}, with {int(100 * shared[nearest])} % of the keys" if shared[nearest] > 0.5 else ""
    )
    raise CheckpointError(
        f"{stored.path} is none of the released backbones ({', '.join(RELEASED)}{close}): name the timm model it is of"
    )


def _shared(name: str, state: StateDict) -> float:
    """The share of keys with shapes, of those that `name` or `state` has, that both have."""
    ours = _keys_and_shapes(name)
    theirs = {(key, tensor.shape) for key, tensor in state.items()}
    return len(ours & theirs) / len(ours | theirs)


@lru_cache
def _keys_and_shapes(name: str) -> frozenset[tuple[str, torch.Size]]:
    with torch.device("meta"):
        return frozenset((key, tensor.shape) for key, tensor in build_backbone(name).state_dict().items())


def _remedy(stored: Combined) -> str:
    try:
        if "backbone" not in stored.stated and _shared(backbone_of(stored), stored.backbone) < 1:
            return f"it is of backbone '{backbone_of(stored)}' but for these keys: use another copy"
        return f"it is of backbone '{backbone_of(stored)}': build that, and a head of its widths"
    except CheckpointError:
        return "build the backbone it was trained with"


def _head_of(path: str | Path, state: StateDict) -> proj_head:
    """A head of the widths that `state` has."""
    linear = [key for key, tensor in state.items() if tensor.ndim == 2 and re.fullmatch(r"mlp\.\d+\.weight", key)]
    widths = [state[key].shape for key in sorted(linear, key=lambda key: int(key.split(".")[1]))]  # by layer
    last = state.get("last_layer.weight_v")
    if not widths or last is None or last.ndim != 2:
        raise CheckpointError(f"the head in {path} is not of the release's form: build it, and give it as `head`")
    return proj_head(widths[0][1], last.shape[0], widths[0][0], last.shape[1], len(widths) + 1)


def _stated(resume: Mapping[str, Any]) -> dict[str, Any]:
    names = {"backbone": "backbone", "size": "views.global_size", "mean": "mean", "std": "std"}
    try:
        settings = json.loads(resume["identity"])
        return {name: settings[field] for name, field in names.items()}
    except (KeyError, TypeError, ValueError):
        return {}


def _part(path: str | Path, content: Mapping[Any, Any], part: str) -> StateDict:
    """One of the two state dicts, nested or by prefix, without the marks of wrappers."""
    nested = content.get(part)
    if not isinstance(nested, dict):
        named = {_WRAPPERS.sub("", str(key)): value for key, value in content.items()}
        nested = {k.removeprefix(f"{part}."): v for k, v in named.items() if k.startswith(f"{part}.")}
        if len(named) < len(content):
            raise CheckpointError(f"{path} holds keys that are the same without their wrappers; save one model alone")
    state = {_WRAPPERS.sub("", str(key)): value for key, value in nested.items()}
    if len(state) < len(nested):
        raise CheckpointError(f"{path} holds keys that are the same without their wrappers; save one model alone")
    return state


def _released(module: nn.Module) -> StateDict:
    # The OrderedDict that torch gives, with its `_metadata` of module versions: the published sizes include it.
    state = module.state_dict()
    for key, value in state.items():
        # Neither channels_last strides nor storage shared with other tensors reach the file.
        state[key] = value.detach().cpu().contiguous().clone()
    return state


def _named(part: str, state: StateDict) -> StateDict:
    return {f"{part}.{key}": tensor for key, tensor in state.items()}
