"""Weights that a run starts from (`--init`): the release's or one's own, backbone and head."""

import contextlib
import hashlib
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.backbones import Backbone, build_backbone, release_of
from pretrain.batchnorm import calibrate_batchnorm
from pretrain.checkpoint import CheckpointError
from pretrain.combined import Combined, MismatchError, backbone_of, fill, read_combined
from pretrain.config import Config, ConfigError
from pretrain.facts import ASSUMED, read_facts
from pretrain.student_teacher import Network


class Initial(NamedTuple):
    """A combined checkpoint to start from, its file's checksum, and what is stated of it and of its images."""

    stored: Combined
    checksum: str
    known: dict[str, Any]

    @property
    def prototypes(self) -> int:
        """The width K of its head."""
        return len(self.stored.proj_head["last_layer.weight_v"])

    def said(self, config: Config) -> str:
        """The input convention that is assumed of it, and whether it was stated, in one line."""
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


def read_initial(path: str) -> Initial:
    """Read a combined checkpoint in any of its forms, and the facts beside it. Raises CheckpointError in one line."""
    stored = read_combined(path)
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


def start_from(initial: Initial, config: Config, student: Network, teacher: Network) -> None:
    """Give both networks of a run these weights. Raises ConfigError, with the option that would fit."""
    path, known = initial.stored.path, initial.known
    if "backbone" in known:
        _same_backbone(path, str(known["backbone"]), config)
    for name, theirs in {"method.prototypes": initial.prototypes, **known}.items():
        if name in ("method.prototypes", "mean", "std") and theirs != (ours := attrgetter(name)(config)):
            raise ConfigError(f"--init {path} has {name} {theirs:g}, the run {ours:g}: give --{name} {theirs:g}")
    for network in (student, teacher):
        try:
            fill(initial.stored, network.backbone, network.proj_head)
        except MismatchError as error:
            with contextlib.suppress(CheckpointError):  # of no released one: the keys must do
                _same_backbone(path, backbone_of(initial.stored), config)
            raise ConfigError(f"--init: {error}") from error


def starting_backbone(config: Config, checksum: str | None, crops: Callable[[], np.ndarray]) -> Backbone | None:
    """The backbone that a run began with, as users of its file load it; None if the file is gone or another by now.

    A resume checkpoint, which is not for users, is given the BatchNorm statistics of `crops` [N, H, W], as an export.
    """
    if config.init is None or not Path(config.init).is_file() or _checksum(config.init) != checksum:
        return None
    backbone = build_backbone(config.backbone)
    stored = read_combined(config.init)
    fill(stored, backbone)
    if stored.stated:
        calibrate_batchnorm(backbone, crops(), config.mean, config.std)
    return backbone


def _same_backbone(path: Path, name: str, config: Config) -> None:
    if (release_of(name) or name) != (release_of(config.backbone) or config.backbone):
        raise ConfigError(f"--init {path} has backbone {name}, the run {config.backbone}: give --backbone {name}")


def _checksum(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
