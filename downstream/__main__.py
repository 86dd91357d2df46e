"""The commands of `python -m downstream`: knn, linear, finetune, curve, embed, export, zoo."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from augment import ViewError
from data_shards.errors import Mistake
from downstream import released_files
from downstream.config import (
    CropsConfig,
    CurveConfig,
    DownstreamError,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    WeightsConfig,
)
from downstream.data.sources import packed
from downstream.exporters import export as exporting
from downstream.features.weights import Weights, load_weights
from downstream.reports.curve_plot import SERIES
from downstream.reports.metrics import SCORES
from downstream.tasks import curve as efficiency
from downstream.tasks import finetune as tuning
from downstream.tasks import probe
from pretrain.runtime.watchdog import PEER_LOST, WORKER_LOST, Watchdog
from tooth_foundations.core.cli import end_quietly, fail, new_parser, one_line, read
from tooth_foundations.core.files import replace_atomically

PROG = "python -m downstream"
MISTAKES = (Mistake, ViewError)
LISTS = ("--shards", "--label", "--query", "--size", "--l2", "--lr", "--fractions")
SILENCE = 300.0
"""Seconds without a sign of life after which a process counts as lost: each gives one a second, whatever it does."""
ONE_LABEL = ("finetune", "curve")
"""Commands that learn one label, so that --label takes one name."""
TOGETHER = (*ONE_LABEL, "embed")
"""Commands that run in all processes that a launcher started, or say why not."""


def knn(config: KnnConfig, weights: Weights) -> dict[str, Any]:
    """Classify crops by their nearest neighbours among other patients' crops."""
    return _shown(probe.knn(config, weights))


def linear(config: LinearConfig, weights: Weights) -> dict[str, Any]:
    """Classify crops by logistic regression on frozen features."""
    return _shown(probe.linear(config, weights))


def finetune(config: FinetuneConfig, weights: Weights) -> dict[str, Any]:
    """Train backbone and a new classifier end to end, tested on other patients; writes report.html."""
    metrics = tuning.finetune(config, weights, Accelerator())
    if _first_process():
        print(f"{metrics['crops']} crops of {metrics['patients']} patients, {metrics['protocol']}; in brackets 95 %")
        for name, words in SCORES.items():
            value, low, high = metrics["scores"][name].values()
            if value is not None:
                print(f"  {words:<18}{value:>7.3f} [{low:.3f}, {high:.3f}]")
        print(f"  {'chance':<18}{metrics['chance']:>7.3f} (balanced accuracy)")
        print(f"  {Path(config.out) / 'report.html'}")
    return metrics


def curve(config: CurveConfig, weights: Weights) -> dict[str, Any]:
    """Score by the number of labels, beside training from scratch and raw pixels; writes curve.png."""
    metrics = efficiency.curve(config, weights, Accelerator())
    shares = list(metrics["learnt_from"])
    print(f"balanced accuracy on {metrics['tested']['patients']} other patients, chance {metrics['chance']:.3f}")
    print(f"  {'share of the labels':<32}" + "".join(f"{float(share):>9.1%}" for share in shares))
    for series in SERIES:
        scores = metrics["balanced_accuracy"][f"{series.method} {series.source}"]
        means = "".join(f"{sum(scores[share]) / len(scores[share]):>9.3f}" for share in shares)
        print(f"  {series.label:<32}{means}")
    print(f"  {Path(config.out) / 'curve.png'}")
    return metrics


def embed(config: CropsConfig, weights: Weights) -> dict[str, Any]:
    """Write every crop's features (features.npy) and ids (keys.txt)."""
    metrics = exporting.embed(config, weights, Accelerator())
    if _first_process():
        speed = f"{metrics['crops_per_second']:.0f} crops/s"
        print(f"{metrics['crops']} crops, {metrics['features']} features each, {speed}")
    return metrics


def export(config: WeightsConfig, weights: Weights) -> dict[str, Any]:
    """Write a folder for timm and onnxruntime, checked to give the same features, with a model card."""
    metrics = exporting.export(config, weights)
    print(f"{metrics['load']} gives the same features, bit by bit ({metrics['megabytes']} MB)")
    onnx = metrics["onnx"]
    if onnx["file"]:
        sizes = ", ".join("{}x{}".format(*one["size"]) for one in onnx["checked"])
        share = max(one["max_difference"] / max(1.0, one["largest_feature"]) for one in onnx["checked"])
        print(
            f"{onnx['file']} gives them to within {share:.1e} (of the largest, where that is above 1), at {sizes} "
            f"({onnx['megabytes']} MB)"
        )
    else:
        print(f"model.onnx is not written, as {', '.join(onnx['missing'])} cannot be imported: {onnx['remedy']}")
    return metrics


def _shown(metrics: dict[str, Any]) -> dict[str, Any]:
    columns = ("trained", "random", "pixels", "size", "chance")
    for remark in metrics["warnings"]:
        print(f"warning: {remark}", file=sys.stderr)
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
    "curve": (CurveConfig, curve),
    "embed": (CropsConfig, embed),
    "export": (WeightsConfig, export),
}


def zoo_command(argv: Sequence[str]) -> None:
    """List the published files, or say which one a file is: zoo list, zoo verify FILE..."""
    action, files = (argv[0] if argv else ""), argv[1:]
    if {"-h", "--help"} & set(files):
        action = "--help"
    if action == "list" and not files:
        print(released_files.table())
    elif action == "verify" and files:
        wrong = [complaint for file in files if (complaint := _complaint(Path(file)))]
        if wrong:
            fail(f"{len(wrong)} of {len(files)} files are not of the release: {'; '.join(wrong)}")
    elif action in ("-h", "--help"):
        print(f"usage: {PROG} zoo list\n       {PROG} zoo verify FILE...\n\n{zoo_command.__doc__}")
    else:
        fail(f"say `{PROG} zoo list` or `{PROG} zoo verify FILE...`")


def _complaint(file: Path) -> str:
    try:
        found = released_files.identify(file)
    except DownstreamError as error:
        return str(error)
    if found is None:
        return f"{file} is none of the published files, by its MD5"
    print(f"{file}: {found}, MD5 {found.md5}, https://doi.org/{released_files.DOI}")
    return ""


def run(name: str, argv: Sequence[str]) -> None:
    """Read the options, load the weights, run the command, write OUT/metrics.json."""
    settings, command = COMMANDS[name]
    parser = new_parser(f"{PROG} {name}", command.__doc__ or "")
    parser.add_class_arguments(settings)
    lists = [option for option in LISTS if not (name in ONE_LABEL and option == "--label")]
    config = settings(**vars(read(parser, argv, lists)))
    with tuning.processes() if name in TOGETHER else contextlib.nullcontext():
        if not _first_process() and name not in TOGETHER:
            return  # one process does the other commands' work
        weights = load_weights(config)
        if _first_process():
            print(weights.loaded)
        if weights.assumed and _first_process():
            print(f"not stated beside the checkpoint, so assumed: {_convention(weights, weights.assumed)}")
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(config, CropsConfig):
            config = packed(config, _first_process())
        metrics = {"command": name, "weights": weights.stated(), **command(config, weights)}
    if _first_process():
        text = json.dumps(metrics, indent=2) + "\n"
        replace_atomically(out / "metrics.json", lambda file: file.write(text.encode()))
        print(f"  {out / 'metrics.json'}")


def _first_process() -> bool:
    """Whether this is the one process of those that a launcher started which prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def _convention(weights: Weights, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(weights, name)}" for name in names)


def main(argv: Sequence[str]) -> None:
    """Run one command; a user's mistake is one line and exit 2."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {PROG} COMMAND --checkpoint FILE.pth --out DIR ...\n")
        for name, (_, command) in COMMANDS.items():
            print(f"  {name:<9} {command.__doc__}")
        print(f"  {'zoo':<9} {zoo_command.__doc__}")
        print(f"\n`{PROG} COMMAND --help` explains every option.")
        return
    if argv[0] not in (*COMMANDS, "zoo"):
        fail(f"there is no command '{argv[0]}': use one of {', '.join(COMMANDS)}, zoo")
    with told_once():
        if argv[0] == "zoo":
            zoo_command(argv[1:])
        else:
            run(argv[0], argv[1:])


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """What goes wrong is one line and exit 2; where a launcher started several processes, one of all tells it.

    These end together: none waits for one that has failed, died, or given no sign of life for `SILENCE`.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with Watchdog(SILENCE, "at work") if several else contextlib.nullcontext() as watchdog:
        if watchdog:
            watchdog.standing = lambda: "the same command goes on from what is done"
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            end_quietly()
        except KeyboardInterrupt:
            print("stopped: the same command goes on from what is done", file=sys.stderr)
            sys.exit(130)
        except (*MISTAKES, OSError) as error:
            line = _explained(error)
        except Exception as error:
            if watchdog and (PEER_LOST.search(str(error)) or isinstance(error, torch.distributed.DistError)):
                watchdog.lost()
            if not (dead := WORKER_LOST.search(one_line(error))):
                if watchdog:
                    watchdog.end(1, traceback.format_exc())
                raise
            line = f"a data worker died ({dead[0]}), often for want of memory: give fewer --workers"
        else:
            return
        if watchdog:
            watchdog.end(2, f"error: {one_line(line)}")
        fail(line)


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, MISTAKES):
        reason = error.strerror or str(error) or type(error).__name__
        return f"cannot read or write {error.filename or 'a file'} ({reason}): check the path, its rights and the disk"
    return str(error)


if __name__ == "__main__":
    main(sys.argv[1:])
