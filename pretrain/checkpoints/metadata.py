"""What a user of the weights must know, as `<run>.json` beside them."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augment import RESIZE_RULE
from data_shards.shards.stream import ShardSet
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.released_backbones import release_of
from pretrain.config.schema import Config, ConfigError
from tooth_foundations.core.files import replace_atomically

# Settings that name places on a disk, which are nobody's business and may be a clinic's name.
PRIVATE = ("out", "shards", "cache", "init")

ASSUMED: dict[str, Any] = {"size": (320, 240), "mean": 0.5, "std": 0.25}
"""Where no facts lie beside a checkpoint: the release's size and this project's scaling."""


def weights_facts(
    config: Config,
    sets: list[ShardSet],
    weights: list[float] | None,
    features: int,
    precision: str,
    step: int,
    total: int,
    scores: dict[str, Any],
    monitors: dict[str, Any],
    init: str | None = None,
    environment: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The facts about one combined checkpoint, JSON-ready.

    Paths are left out; data sets, and the weights that the run began from (`init`), are named by checksum.
    """
    release = release_of(config.backbone)
    packed_here = all(s.manifest for s in sets)  # pack makes both so; of foreign shards nobody checked
    return {
        "format": "combined: {'backbone': state dict, 'proj_head': state dict}, float32",
        "weights_of": "teacher",
        "backbone": config.backbone,
        "timm_name": release.timm_name if release else config.backbone,
        "features": features,
        "head": {"out_dim": config.method.prototypes, "hidden_dim": 256, "bottleneck_dim": 256, "nlayers": 3},
        "input": {
            "channels": 1,
            "size": list(config.views.global_size),
            "size_axes": "height, width in pixels",
            "scale": "pixel / 255",
            "mean": config.mean,
            "std": config.std,
            "polarity": "dense is bright (enamel and metal white, air black)" if packed_here else "as in the shards",
            "pixel_aspect": 1.0 if packed_here else "as in the shards",
            "resize_rule": RESIZE_RULE,
        },
        "training": {"step": step, "steps": total, "samples_seen": step * config.data.batch_size},
        "data": [
            {
                "sha256": s.checksum,
                "crops": len(s),
                "patients": s.manifest.get("statistics", {}).get("patients"),
                "weight": weights[i] if weights else None,
            }
            for i, s in enumerate(sets)
        ],
        "init": init,
        "settings": shareable(config) | {"precision": precision},
        "environment": environment or {},
        "monitors": monitors,
        "scores": scores,
    }


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts atomically."""
    text = json.dumps(facts, indent=2) + "\n"
    replace_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises ValueError for a file of anything else."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


KNN = ("after", "before", "pixels", "size", "classes", "crops", "patients")
"""The figures of a k-NN score that a page shows."""


def read_run_facts(path: Path) -> dict[str, Any]:
    """The facts of a run, in which all that a page shows is whole; {} where there are none yet.

    Raises ConfigError if they are damaged.
    """
    try:
        facts = read_json(path)
        parts: list[tuple[str, Sequence[str]]] = [("training", ("step", "steps")), ("scores", ()), ("environment", ())]
        for name, figures in parts:
            _need(facts.get(name, dict.fromkeys(figures, 0)), name, figures)
        if (knn := facts.get("scores", {}).get("knn")) is not None:
            _need(knn, "scores.knn", (*KNN, "start") if "start" in knn else KNN)
            if "label" not in knn or knn["classes"] < 1:
                raise ValueError("scores.knn has no label or no classes")
        return facts
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the facts in {path} are damaged ({error}): copy them again, or remove the file, and the page is made "
            "without them"
        ) from error


def _need(part: Any, name: str, figures: Sequence[str]) -> None:
    """Raise ValueError unless `part` is an object with these numbers."""
    if not isinstance(part, dict):
        raise ValueError(f"{name} is no object")
    if lacking := [figure for figure in figures if not isinstance(part.get(figure), int | float)]:
        raise ValueError(f"{name} has no number for {', '.join(lacking)}")


def read_facts(path: Path) -> dict[str, Any]:
    """Backbone, size, mean and std from a facts file; {} where there is none. Raises CheckpointError if unreadable."""
    try:
        if not (facts := read_json(path)):
            return {}
        given = facts["input"]
        size, mean, std = given["size"], float(given["mean"]), float(given["std"])
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
            raise ValueError("input.size is not a height and a width")
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError("input.mean or input.std is not a number to scale by")
        return {"backbone": str(facts["backbone"]), "size": tuple(size), "mean": mean, "std": std}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"the facts in {path} cannot be read ({type(error).__name__}: {error}): copy them again, or remove the file"
        ) from error


def shareable(config: Config) -> dict[str, Any]:
    """The settings that are nobody's secret."""
    return _without_places(dataclasses.asdict(config))


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_places(v) if isinstance(v, dict) else v for k, v in settings.items() if k not in PRIVATE}
