"""What a user of the weights must know, as `<run>.json` beside them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from augment import RESIZE_RULE
from data_shards.stream import ShardSet
from pretrain.backbones import release_of
from pretrain.checkpoint import replace_atomically
from pretrain.config import Config

# Settings that name places on a disk, which are nobody's business and may be a clinic's name.
PRIVATE = ("out", "shards", "cache")


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
) -> dict[str, Any]:
    """The facts about one combined checkpoint, JSON-ready; paths are left out, data sets are named by checksum."""
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
        "settings": _without_places(dataclasses.asdict(config)) | {"precision": precision},
        "monitors": monitors,
        "scores": scores,
    }


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write the facts atomically."""
    text = json.dumps(facts, indent=2) + "\n"
    replace_atomically(path, lambda file: file.write(text.encode()))


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_places(v) if isinstance(v, dict) else v for k, v in settings.items() if k not in PRIVATE}
