"""The commands of `python -m downstream`: knn, linear, finetune, embed, export."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from augment import ViewError
from data_shards.errors import ShardError
from downstream import export as exporting
from downstream import finetune as tuning
from downstream import probe
from downstream.config import CropsConfig, DownstreamError, FinetuneConfig, KnnConfig, LinearConfig, WeightsConfig
from downstream.weights import Weights, load_weights
from launch.cli import fail, new_parser, read
from pretrain.backbones import BackboneError
from pretrain.checkpoint import CheckpointError, replace_atomically
from pretrain.config import ConfigError
from pretrain.evaluate import EvaluationError

PROG = "python -m downstream"
MISTAKES = (BackboneError, CheckpointError, ConfigError, DownstreamError, EvaluationError, ShardError, ViewError)
LISTS = ("--shards", "--label", "--query", "--size", "--l2")


def knn(config: KnnConfig, weights: Weights) -> dict[str, Any]:
    """Classify crops by their nearest neighbours among other patients' crops."""
    return _shown(probe.knn(config, weights))


def linear(config: LinearConfig, weights: Weights) -> dict[str, Any]:
    """Classify crops by logistic regression on frozen features."""
    return _shown(probe.linear(config, weights))


def finetune(config: FinetuneConfig, weights: Weights) -> dict[str, Any]:
    """Train backbone and a new classifier end to end; writes model.pth."""
    metrics = tuning.finetune(config, weights)
    print(f"balanced accuracy {metrics['balanced_accuracy']:.3f} (chance {metrics['chance']:.3f}), {_sides(metrics)}")
    for name, recall in metrics["recall"].items():
        print(f"  {name:<16}" + ("  no crop to validate on" if recall is None else f"{recall:>9.3f} recall"))
    return metrics


def embed(config: CropsConfig, weights: Weights) -> dict[str, Any]:
    """Write every crop's features (features.npy) and ids (keys.txt)."""
    metrics = exporting.embed(config, weights)
    print(f"{metrics['crops']} crops, {metrics['features']} features each")
    return metrics


def export(config: WeightsConfig, weights: Weights) -> dict[str, Any]:
    """Write a folder that timm loads, and check that it gives the same features."""
    metrics = exporting.export(config, weights)
    print(f"{metrics['load']} gives the same features, bit by bit ({metrics['megabytes']} MB)")
    return metrics


def _sides(metrics: dict[str, Any]) -> str:
    train, validation = metrics["train"], metrics["validation"]
    return (
        f"{validation['crops']} crops of {validation['patients']} patients, "
        f"after training on {train['crops']} of {train['patients']} others"
    )


def _shown(metrics: dict[str, Any]) -> dict[str, Any]:
    columns = ("trained", "random", "pixels", "size", "chance")
    print(f"balanced accuracy, {metrics['protocol']}")
    print(f"  {'label':<16}" + "".join(f"{name:>9}" for name in columns) + f"{'crops':>9}{'patients':>10}")
    for label, score in metrics["labels"].items():
        figures = "".join(f"{score[name]:>9.3f}" for name in columns)
        print(f"  {label:<16}{figures}{score['crops']:>9}{score['patients']:>10}")
    return metrics


COMMANDS: dict[str, tuple[type[WeightsConfig], Callable[[Any, Weights], dict[str, Any]]]] = {
    "knn": (KnnConfig, knn),
    "linear": (LinearConfig, linear),
    "finetune": (FinetuneConfig, finetune),
    "embed": (CropsConfig, embed),
    "export": (WeightsConfig, export),
}


def run(name: str, argv: Sequence[str]) -> None:
    """Read the options, load the weights, run the command, write OUT/metrics.json."""
    settings, command = COMMANDS[name]
    parser = new_parser(f"{PROG} {name}", command.__doc__ or "")
    parser.add_class_arguments(settings)
    lists = [option for option in LISTS if (name, option) != ("finetune", "--label")]
    config = settings(**vars(read(parser, argv, lists)))
    weights = load_weights(config)
    if weights.assumed:
        print(f"not stated beside the checkpoint, so assumed: {_convention(weights, weights.assumed)}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    metrics = {"command": name, "weights": weights.stated(), **command(config, weights)}
    text = json.dumps(metrics, indent=2) + "\n"
    replace_atomically(out / "metrics.json", lambda file: file.write(text.encode()))
    print(f"  {out / 'metrics.json'}")


def _convention(weights: Weights, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(weights, name)}" for name in names)


def main(argv: Sequence[str]) -> None:
    """Run one command; a user's mistake is one line and exit 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND --checkpoint FILE.pth --out DIR ...\n")
        for name, (_, command) in COMMANDS.items():
            print(f"  {name:<9} {command.__doc__}")
        print(f"\n`{PROG} COMMAND --help` explains every option.")
        return
    if argv[0] not in COMMANDS:
        fail(f"there is no command '{argv[0]}': use one of {', '.join(COMMANDS)}")
    try:
        run(argv[0], argv[1:])
    except MISTAKES as error:
        fail(error)
    except OSError as error:
        fail(f"cannot read or write {error.filename} ({error.strerror}): check the path and its rights")


if __name__ == "__main__":
    main(sys.argv[1:])
