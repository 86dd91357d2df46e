"""Weights that a run starts from (`--init`): backbone and head of the release or one's own, or any backbone alone."""

import contextlib
import hashlib
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.checkpoints.combined import Combined, MismatchError, backbone_of, fill
from pretrain.checkpoints.foreign_weights import Foreign, fill_foreign, read_any
from pretrain.checkpoints.metadata import ASSUMED, read_facts
from pretrain.checkpoints.timm_hub import is_hub
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.released_backbones import release_of
from pretrain.config.schema import Config, ConfigError
from pretrain.models.backbones import Backbone, build_backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from pretrain.models.student_teacher import Network


class Initial(NamedTuple):
    """Weights to start from, their checksum, and what is stated of them and of their images."""

    stored: Combined | Foreign
    checksum: str
    known: dict[str, Any]

    @property
    def prototypes(self) -> int | None:
        """The width K of its head; None without one."""
        if isinstance(self.stored, Foreign):
            return None
        return len(self.stored.proj_head["last_layer.weight_v"])

    @property
    def lags(self) -> bool:
        """Whether its BatchNorm statistics lag behind its weights: those of a resume checkpoint, not for users."""
        return isinstance(self.stored, Combined) and bool(self.stored.stated)

    def said(self, config: Config) -> str:
        """The input convention that is assumed of a combined checkpoint, and whether it was stated, in one line."""
        assert isinstance(self.stored, Combined)
        (height, width), mean, std = (self.known.get(name, value) for name, value in ASSUMED.items())
        ours = config.views.global_size
        stated = [name for name in ASSUMED if name in self.known]
        place = "it" if self.stored.stated else self.stored.path.with_suffix(".json").name
        source = (
            f"stated in {place}" if len(stated) == len(ASSUMED) else "nothing beside it states it, so it is assumed"
        )
        sizes = "" if (height, width) == ours else f", and now sees {ours[0]}x{ours[1]}"
        given = config.mean, config.std
        scaled = "" if (mean, std) == given else " and now with {:g} and {:g}".format(*given)
        return (
            f"starting from {self.stored.path.name} ({self.checksum}), made for crops of {height}x{width} px"
            f"{sizes}, (pixel / white - {mean:g}) / {std:g}{scaled}: {source}"
        )


def read_initial(path: str, backbone: str | None = None) -> Initial:
    """Read a combined checkpoint and the facts beside it, or a backbone alone; `timm` is the weights of `backbone`.

    Raises CheckpointError in one line.
    """
    stored = read_any(path, backbone=backbone)
    if isinstance(stored, Foreign):
        return Initial(stored, _checksum_of(stored), stored.stated)
    last = stored.proj_head.get("last_layer.weight_v")
    if last is None or last.ndim != 2:
        raise CheckpointError(f"--init {path}: its head has no last_layer.weight_v [K, width], as the release's have")
    return Initial(stored, _checksum(path), stored.stated | read_facts(Path(path).with_suffix(".json")))


def checksum_of(path: str | None, kept: str | None) -> str | None:
    """The checksum of the file that a continued run began from; `kept` where it is gone, None if none is named.

    Raises CheckpointError if one is named that is not there, of a run that began from none.
    """
    if path is None or Path(path).is_file():
        return _checksum(path) if path else None
    if kept is None:
        raise CheckpointError(f"no checkpoint at {path}, and the run that is continued began from random weights")
    return kept


def start_from(initial: Initial, config: Config, student: Network, teacher: Network) -> str:
    """Give both networks of a run these weights; where they have no head, its own stays. Returns a line about them.

    Raises ConfigError, with the option that would fit.
    """
    stored, known = initial.stored, initial.known
    if isinstance(stored, Foreign):
        notes = [fill_foreign(stored, n.backbone, config.backbone, config.mean, config.std) for n in (student, teacher)]
        return f"starting from {notes[0]}; checksum {initial.checksum}; the head is new"
    path = stored.path
    if "backbone" in known:
        _same_backbone(path, str(known["backbone"]), config)
    for name, theirs in {"method.prototypes": initial.prototypes, **known}.items():
        if name in ("method.prototypes", "mean", "std") and theirs != (ours := attrgetter(name)(config)):
            raise ConfigError(f"--init {path} has {name} {theirs:g}, the run {ours:g}: give --{name} {theirs:g}")
    for network in (student, teacher):
        try:
            fill(stored, network.backbone, network.proj_head)
        except MismatchError as error:
            with contextlib.suppress(CheckpointError):  # of no released one: the keys must do
                _same_backbone(path, backbone_of(stored), config)
            raise ConfigError(f"--init: {error}") from error
    return initial.said(config)


def starting_backbone(config: Config, checksum: str | None, crops: Callable[[], np.ndarray]) -> Backbone | None:
    """The backbone that a run began with, as users of its file load it; None if the file is gone or another by now.

    A resume checkpoint, which is not for users, is given the BatchNorm statistics of `crops` [N, H, W], as an export.
    """
    if config.init is None or not (is_hub(config.init) or Path(config.init).is_file()):
        return None
    try:
        initial = read_initial(config.init, config.backbone)
    except CheckpointError:  # another file by now, or a hub that is out of reach
        return None
    if initial.checksum != checksum:
        return None
    backbone, stored = build_backbone(config.backbone), initial.stored
    if isinstance(stored, Foreign):
        fill_foreign(stored, backbone, config.backbone, config.mean, config.std)
        return backbone
    fill(stored, backbone)
    if initial.lags:
        calibrate_batchnorm(backbone, crops(), config.mean, config.std)
    return backbone


def _same_backbone(path: Path, name: str, config: Config) -> None:
    if (release_of(name) or name) != (release_of(config.backbone) or config.backbone):
        raise ConfigError(f"--init {path} has backbone {name}, the run {config.backbone}: give --backbone {name}")


def _checksum_of(foreign: Foreign) -> str:
    """The checksum of the file; of weights that timm holds, of their values."""
    if foreign.path.is_file():
        return _checksum(str(foreign.path))
    digest = hashlib.sha256()
    for key, tensor in foreign.tensors.items():
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
