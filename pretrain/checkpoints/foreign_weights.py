"""Read backbones without a head, as timm, torchvision, Hugging Face, DINO, DINOv2 and Lightning store them."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from pretrain.checkpoints.combined import Combined, MismatchError, Network, StateDict, combined_of, fill
from pretrain.checkpoints.fold_stem import FoldError, Scaling, find_stems, fold_stem
from pretrain.checkpoints.metadata import ASSUMED, read_facts, read_json
from pretrain.checkpoints.timm_hub import download, is_hub
from pretrain.checkpoints.weights_io import CheckpointError, read_weights
from pretrain.config.released_backbones import release_of
from pretrain.models.backbones import Backbone, timm_places

AVERAGED = {"teacher", "ema", "model_ema", "state_dict_ema", "teacher_backbone", "target", "momentum"}
"""Parts of a key that mark the averaged network, which is preferred to the one that learnt by gradient."""


class Foreign(NamedTuple):
    """Every tensor of a file without a head of ours, by its path in the file, and what is stated of its images.

    `stated` may hold backbone, mean and std; mean and std are tuples with a number per channel.
    """

    path: Path
    tensors: StateDict
    stated: dict[str, Any]
    network: Network


class Adapted(NamedTuple):
    """The weights for a backbone of ours, without a head, and a line that says how they were made."""

    stored: Combined
    note: str


class _Matched(NamedTuple):
    """Tensors under the keys of the plain timm model, and how they came to these."""

    state: StateDict
    how: list[str]


def read_any(path: str | Path, network: Network = "teacher", backbone: str | None = None) -> Combined | Foreign:
    """Read a checkpoint in our combined format or a backbone alone; `timm` or `timm:NAME` asks timm for the weights.

    `backbone` is the one that `timm` stands for. Raises CheckpointError. Nothing is unpickled but tensors.
    """
    if is_hub(path):
        return Foreign(Path(path), *download(str(path), backbone), network)
    path = Path(path)
    content = read_weights(path)
    tensors = dict(_tensors(content))
    if not tensors or any("proj_head" in key.split(".") for key in tensors):
        return combined_of(path, content, network)
    return Foreign(path, tensors, _stated(path), network)


def adapt(foreign: Foreign, backbone: Backbone, name: str, mean: float, std: float) -> Adapted:
    """Return the weights of `foreign` for `backbone`, called `name`, which sees (pixel / 255 - mean) / std.

    The backbone is not changed. Keys that do not fit stay for `fill` to refuse. Raises CheckpointError.
    """
    release = release_of(name)
    timm_name, options = (release.timm_name, release.options) if release else (name, {})
    plain = timm.create_model(timm_name, pretrained=False, num_classes=0, **options)
    own = {key.removeprefix("m."): tensor for key, tensor in backbone.state_dict().items()}
    places = timm_places(list(own), list(plain.state_dict()))
    matched = _matched(foreign, plain, places)
    state = {places[key]: tensor for key, tensor in matched.state.items() if key in places}
    for place, tensor in own.items():  # a counter of no effect, absent from files of old versions
        if place.endswith("num_batches_tracked"):
            state.setdefault(place, tensor)
    left = [key for key in matched.state if key not in places]
    said = [f"{len(state)} of {len(own)} tensors of {name}", *matched.how]
    if own.keys() <= state.keys():
        state, folded = _folded(foreign, state, backbone, plain, Scaling((mean,), (std,)))
        said += folded
    said.append(f"left out {len(left)} ({', '.join(left[:4])}{', ...' if len(left) > 4 else ''})" if left else "")
    stored = Combined(foreign.path, {f"m.{key}": tensor for key, tensor in state.items()}, {}, {})
    return Adapted(stored, f"{foreign.path.name}: {', '.join(filter(None, said))}")


def fill_foreign(foreign: Foreign, backbone: Backbone, name: str, mean: float, std: float) -> str:
    """Load what `adapt` returns into `backbone`, every key and shape, and return the line about it.

    Raises CheckpointError that names the keys which do not fit, and the backbone that they are likely of.
    """
    adapted = adapt(foreign, backbone, name, mean, std)
    try:
        fill(adapted.stored, backbone)
    except MismatchError as error:
        likely = likely_backbone(foreign)
        remedy = (
            f"give --backbone {likely}" if likely and likely != name else "name the timm model it is of by --backbone"
        )
        first = ", ".join(list(foreign.tensors)[:3])
        raise CheckpointError(
            f"{foreign.path} does not fit backbone {name}: {error.differences}; its own first keys: {first}; {remedy}"
        ) from error
    return adapted.note


def likely_backbone(foreign: Foreign) -> str | None:
    """Return the timm model that is stated beside the file, or that its name begins with; None if neither."""
    if "backbone" in foreign.stated:
        return str(foreign.stated["backbone"])
    stem = foreign.path.stem.replace("-", "_")
    return max((name for name in timm.list_models() if stem.startswith(name)), key=len, default=None)


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dicts, by its path joined with dots; an optimiser's are left out."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif "optim" not in str(key):
            yield from _tensors(value, f"{prefix}{key}.")


def _stated(path: Path) -> dict[str, Any]:
    """What the facts beside a file state, or timm's config.json in its folder."""
    if facts := read_facts(path.with_suffix(".json")):
        return facts | {"mean": (facts["mean"],), "std": (facts["std"],)}
    try:
        config = read_json(path.with_name("config.json"))
        cfg = config["pretrained_cfg"]
        scaling = {name: tuple(float(x) for x in cfg[name]) for name in ("mean", "std")}
        return {"backbone": str(config["architecture"])} | scaling
    except (ValueError, KeyError, TypeError, OSError):  # of another program, which states it elsewhere
        return {}


def _matched(foreign: Foreign, plain: nn.Module, places: dict[str, str]) -> _Matched:
    """The tensors under the plain model's keys: by name, as timm converts them, or by order."""
    wanted, back = plain.state_dict(), {place: key for key, place in places.items()}
    prefix = _prefix(foreign, {*wanted, *back})
    group = {key.removeprefix(prefix): t for key, t in foreign.tensors.items() if key.startswith(prefix)}
    how = [f"'{prefix}' removed from keys"] if prefix else []
    state = {back.get(key, key): tensor for key, tensor in group.items()}
    if all(_fits(state, key, wanted) for key in places):
        return _Matched(state, how)
    convert = getattr(sys.modules[type(plain).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            converted = dict(convert(dict(state), plain))
        except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, TypeError, AssertionError):
            converted = {}  # timm's conversion meets a file of another network
        if sum(_fits(converted, key, wanted) for key in places) > sum(_fits(state, key, wanted) for key in places):
            resized = [key for key in places if key in state and not _fits(state, key, wanted)]
            how += [f"{', '.join(resized)} resampled"] if resized else ["keys converted by timm"]
            return _Matched(converted, how)
    if not any(key in state for key in places) and (ordered := _in_order(group, wanted)):
        return _Matched(ordered, [*how, "in order (no name fits, every shape does)"])
    return _Matched(state, how)


def _prefix(foreign: Foreign, names: set[str]) -> str:
    """The start of the file's keys after which most of `names` follow; of equals the network that is wanted."""
    counts = Counter(key[: len(key) - len(name)] for key in foreign.tensors for name in _endings(key) if name in names)
    if not counts:
        levels = zip(*(key.split(".")[:-1] for key in foreign.tensors), strict=False)
        return "".join(f"{parts[0]}." for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, levels))
    averaged = foreign.network == "teacher"
    return max(counts, key=lambda p: (counts[p], bool(AVERAGED & set(p.split("."))) == averaged, -len(p)))


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _fits(state: StateDict, key: str, wanted: StateDict) -> bool:
    """Whether `state` has that key in the wanted shape, but for the channels of a stem."""
    if key not in state:
        return key.endswith("num_batches_tracked")
    ours, theirs = wanted[key].shape, state[key].shape
    return ours == theirs or (
        len(ours) == len(theirs) == 4 and ours[1] == 3 and (theirs[0], 1, *theirs[2:]) == (ours[0], 1, *ours[2:])
    )


def _in_order(group: StateDict, wanted: StateDict) -> StateDict | None:
    """`group` under the keys of `wanted` if all shapes are equal one by one; a classifier may follow."""
    theirs = [tensor for key, tensor in group.items() if not key.endswith("num_batches_tracked")]
    keys = [key for key in wanted if not key.endswith("num_batches_tracked")]
    same = len(theirs) >= len(keys) and all(
        wanted[key].shape == tensor.shape for key, tensor in zip(keys, theirs, strict=False)
    )
    rest = dict(zip(("classifier.weight", "classifier.bias"), theirs[len(keys) :], strict=False))
    if not same or len(theirs) - len(keys) != len(rest) or any(tensor.ndim > 2 for tensor in rest.values()):
        return None
    return dict(zip(keys, theirs, strict=False)) | rest


def _folded(
    foreign: Foreign, state: StateDict, backbone: Backbone, plain: nn.Module, ours: Scaling
) -> tuple[StateDict, list[str]]:
    """`state` with a stem for our images, and what was done."""
    cfg: Any = plain.pretrained_cfg
    try:
        stems = find_stems(backbone.m, torch.zeros(1, 1, *cfg["input_size"][1:]))
        channels = {state[f"{stem.conv}.weight"].shape[1] for stem in stems}
        if channels == {1}:
            theirs, whose = Scaling((ASSUMED["mean"],), (ASSUMED["std"],)), "assumed"
        else:
            theirs, whose = Scaling(tuple(cfg["mean"]), tuple(cfg["std"])), f"timm's for {cfg['architecture']}"
        if "mean" in foreign.stated:
            theirs, whose = (
                Scaling(foreign.stated["mean"], foreign.stated["std"]),
                f"stated {'beside it' if foreign.path.is_file() else 'by timm'}",
            )
        if not all(len(values) in (1, *channels) for values in theirs):
            raise FoldError(f"its stem takes {max(channels)} channels, its mean and std are of {len(theirs.mean)}")
        state, changed = fold_stem(state, stems, theirs, ours)
    except FoldError as error:
        raise CheckpointError(f"{foreign.path} cannot take gray images: {error}. Use another backbone.") from None
    said = [f"{max(channels)} channels folded to one"] if channels != {1} else []
    return state, [*said, f"mean and std {theirs} ({whose}) moved to {ours} in {', '.join(changed)}"]
