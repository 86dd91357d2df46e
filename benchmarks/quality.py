"""What minutes of pretraining teach on real crops: ours beside lightly-train's DINO, plain DINO and raw pixels.

    python benchmarks/quality.py --shards shards/ufba --out quality [--minutes 10] [--seeds 0 1 2] [--only ours ...]

Each contender gets as many steps as fit into the minutes at the speed that a trial of it shows at the beginning, with
all cores, so do nothing else then (kept in OUT/speeds.json). Backbone, sizes and number of views, and batch
are the same for all. Scored is the holdout beside the shards, with the crops of the other patients as neighbours and to
fit a linear probe on. The same command continues what was stopped or killed; OUT/quality.md and .json hold the table of
all runs in OUT, also of calls with other minutes, of which OUT/curve.png is drawn. `taken` are the minutes that a run's
steps took in the end: more than asked for where runs share the cores (--parallel).
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from augment_peer import peer_python
from lightly_peer import PeerRun, export_crops
from matplotlib.figure import Figure
from runs import ROOT, train

from data_shards.errors import ShardError
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import Stream
from downstream.config import DownstreamError, KnnConfig, LinearConfig
from downstream.features.weights import load_weights
from downstream.tasks import probe
from pretrain.__main__ import MISTAKES, read_command_line
from pretrain.checkpoints.combined import save_combined
from pretrain.config.schema import Config
from pretrain.models.backbones import build_backbone
from pretrain.models.batchnorm import calibrate_batchnorm, calibration_crops
from pretrain.models.projection_head import proj_head
from pretrain.runs.metrics_log import read_metrics
from pretrain.runs.run_folder import RunFolder
from pretrain.runtime.precision import resolve_threads
from tooth_foundations.core.cli import UserError, fail
from tooth_foundations.core.files import replace_atomically

RECIPE = ["--recipe", "small-cnn", "--views", "panoramic"]
RECIPE += ["--eval.every", "0", "--eval.bank", "0", "--pictures", "false"]  # scored here
QUIET = ("blur", "motion", "noise", "local_contrast", "sharpen", "border", "text")
# DINO as it was first tried on these crops: a moving mean instead of Sinkhorn-Knopp, no KoLeo, wider tone, no texture.
PLAIN = [part for name in QUIET for part in (f"--views.{name}_probability", "0.3" if name == "blur" else "0")]
PLAIN += ["--views.shear", "0", "--views.brightness", "[-0.2,0.2]", "--views.contrast", "[0.6,1.4]"]
PLAIN += ["--views.gamma", "[0.6,1.6]", "--method.centering", "mean", "--method.koleo", "0"]
PLAIN += ["--method.teacher_temperature", "0.04", "--method.teacher_temperature_start", "0.04"]
PLAIN += ["--method.ema_start", "0.99", "--method.freeze_last_layer", "0", "--optim.lr", "5e-4"]
OURS = {"ours": [], "plain DINO": PLAIN}
# As its users run it, and with what ours has and its defaults lack in runs as short.
PEERS: dict[str, dict[str, Any]] = {
    "lightly-train": {},
    "lightly-train adapted": {"optimizer": "adamw", "frozen_share": 0.05},
}
CONTENDERS = {name.replace(" ", "-"): name for name in (*OURS, *PEERS)}
TRIAL, SKIPPED = 20, 8
"""Steps of a trial, and the first of them, which open files and choose kernels."""
LABELS = ("tooth_type", "position")
BASELINES = {"random": "random weights", "pixels": "raw pixels", "size": "crop size"}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.error = fail
    parser.add_argument("--shards", required=True, help="shard folder with a holdout beside it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    parser.add_argument("--label", nargs="+", default=list(LABELS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--batch", type=int, default=64)
    arguments, overrides = parser.parse_known_args()
    try:
        if not ShardSet(arguments.shards).holdout():
            raise UserError(f"{arguments.shards} has no holdout to score on: pack with --holdout 0.3")
        contest = Contest(arguments, overrides)
        complete = contest.train()
        contest.tabulate()
    except (UserError, DownstreamError, ShardError, *MISTAKES, OSError) as error:
        fail(error)
    sys.exit(not complete)


class Contest:
    """The runs of one call, and the table of all in its folder."""

    def __init__(self, arguments: argparse.Namespace, overrides: list[str]) -> None:
        self.arguments, self.out, self.shards = arguments, arguments.out, arguments.shards
        self.options = [*RECIPE, *overrides, "--data.shards", self.shards, "--data.batch_size", str(arguments.batch)]
        self.config: Config = read_command_line(self.options)[0]
        self.out.mkdir(parents=True, exist_ok=True)
        self._same_as_before()

    def _same_as_before(self) -> None:
        """Raise UserError for a folder of runs that were asked for with other options or crops."""
        asked = {"options": [part for part in self.options if part != self.shards], "label": self.arguments.label}
        asked["crops"] = ShardSet(self.shards).checksum
        kept = self.out / "asked.json"
        if not kept.exists():
            replace_atomically(kept, lambda file: file.write(json.dumps(asked, indent=1).encode()))
        elif (before := json.loads(kept.read_text())) != asked:
            changed = [name for name, value in asked.items() if before.get(name) != value]
            raise UserError(f"the runs in {self.out} have other {', '.join(changed)}: give another --out")

    def train(self) -> bool:
        """Train and score what is not finished; False when a signal asked for a stop."""
        minutes, parallel, names = self.arguments.minutes, self.arguments.parallel, self.arguments.only
        if PEERS.keys() & names:
            export_crops(self.shards, self.out / "crops")
        steps = {name: max(TRIAL, round(minutes * 60 / self.seconds(name))) for name in names}
        print(f"steps in {minutes:g} minutes: " + ", ".join(f"{name} {count}" for name, count in steps.items()))
        threads = resolve_threads(None, parallel)
        commands = {}
        for seed in self.arguments.seeds:
            for name in names:
                folder = self.out / f"{name.replace(' ', '-')}_{minutes:g}min_seed{seed}"
                commands[folder] = self.command(name, folder, steps[name], seed, threads)
        return train(commands, parallel)

    def seconds(self, name: str) -> float:
        """Of a step of a contender, by a trial of it that is made once."""
        kept = self.out / "speeds.json"
        speeds = json.loads(kept.read_text()) if kept.exists() else {}
        if name not in speeds:
            folder = self.out / f"trial-{name.replace(' ', '-')}"
            if not train({folder: self.command(name, folder, TRIAL, 0, resolve_threads(None, 1))}, 1):
                raise UserError("stopped in a trial; the same command makes it again")
            if RunFolder(folder).read_state().get("state") != "finished":
                raise UserError(f"the trial of {name} failed, see {folder}.log")
            speeds[name] = median(step_seconds(folder, self.arguments.batch)[SKIPPED:])
            replace_atomically(kept, lambda file: file.write(json.dumps(speeds, indent=1).encode()))
        return float(speeds[name])

    def command(self, name: str, folder: Path, steps: int, seed: int, threads: int) -> list[str]:
        """What trains a contender."""
        if name in PEERS:
            views = self.config.views
            sizes = views.global_size, views.local_size, views.local_count
            crops, workers = str(self.out / "crops"), self.config.data.workers
            run = PeerRun(
                crops, str(folder), self.config.backbone, *sizes, self.arguments.batch, steps, seed, threads,
                workers=workers, **PEERS[name],
            )  # fmt: skip
            return run.command(peer_python(self.out / "peer-venv"))
        own = ["--steps", str(steps), "--seed", str(seed), "--threads", str(threads), "--out", str(folder)]
        every = ["--checkpoint_every", str(max(steps // 4, 1))]
        return [sys.executable, str(ROOT / "pretrain.py"), *self.options, *OURS[name], *own, *every]

    def tabulate(self) -> None:
        """Score what is finished, and print and write the table and the curve of all runs in the folder."""
        runs = []
        for folder in sorted(self.out.glob("*min_seed*/")):
            name, minutes, seed = re.fullmatch(r"(.+)_([\d.e-]+)min_seed(\d+)", folder.name).groups()
            if RunFolder(folder).read_state().get("state") == "finished":
                own: dict[str, Any] = {"name": CONTENDERS[name], "minutes": float(minutes), "seed": int(seed)}
                own["taken"] = sum(step_seconds(folder, self.arguments.batch)) / 60
                runs.append(own | self.scores(folder, int(seed)))
        rows = table(runs, self.arguments.label)
        print("\n" + rows)
        replace_atomically(self.out / "quality.md", lambda file: file.write(rows.encode()))
        replace_atomically(self.out / "quality.json", lambda file: file.write(json.dumps(runs, indent=1).encode()))
        if len({run["minutes"] for run in runs if run["name"] == "ours"}) > 1:
            draw(self.out / "curve.png", runs, self.arguments.label)

    def scores(self, folder: Path, seed: int) -> dict[str, Any]:
        """Balanced accuracies of a finished run by probe, label and features, and what it has seen."""
        kept = folder / "scores.json"
        if kept.exists():
            return json.loads(kept.read_text())
        weights = RunFolder(folder).weights
        if not weights.exists():
            self.export_peer(folder, weights)
        places = {"checkpoint": str(weights), "out": str(folder / "scores"), "shards": [self.shards]}
        places |= {
            "label": self.arguments.label,
            "query": [str(Path(self.shards) / "holdout")],
            "seed": seed,
            "features": "pooled",
        }
        (folder / "scores").mkdir(exist_ok=True)
        knn, linear = KnnConfig(**places), LinearConfig(**places)
        loaded, found = load_weights(knn), {}
        for name, measured in (("knn", probe.knn(knn, loaded)), ("linear", probe.linear(linear, loaded))):
            found[name] = measured["labels"]
        steps = len(step_seconds(folder, self.arguments.batch))
        result = {"steps": steps, "crops": steps * self.arguments.batch, "scores": found}
        replace_atomically(kept, lambda file: file.write(json.dumps(result, indent=1).encode()))
        return result

    def export_peer(self, folder: Path, weights: Path) -> None:
        """The peer's teacher as ours are exported, BatchNorm measured on training crops: a fair score needs it."""
        backbone, config = build_backbone(self.config.backbone), self.config
        backbone.load_state_dict(torch.load(folder / "teacher.pt", weights_only=True))
        crops = calibration_crops(Stream([ShardSet(self.shards)], None, config.seed), config.views.global_size)
        calibrate_batchnorm(backbone, crops, config.mean, config.std)
        save_combined(weights, backbone, proj_head(backbone.num_features))  # a head nobody uses
        convention = {"size": list(config.views.global_size), "mean": config.mean, "std": config.std}
        weights.with_suffix(".json").write_text(json.dumps({"backbone": config.backbone, "input": convention}))


def step_seconds(folder: Path, batch: int) -> list[float]:
    """Of each step of a run, of ours or the peer's, waiting for data included."""
    if (peer := folder / "steps.json").exists():
        return json.loads(peer.read_text())["seconds"]
    return [batch / line["images_per_s"] for line in read_metrics(RunFolder(folder).metrics)]


def table(runs: list[dict[str, Any]], labels: list[str]) -> str:
    """Mean and SD over the seeds of each contender and number of minutes, and of what they must beat."""
    columns = [(method, label) for label in labels for method in ("knn", "linear")]
    heads = [f"{label}, {'k-NN' if method == 'knn' else 'linear probe'}" for method, label in columns]
    lines = ["| | minutes | taken | crops | seeds | " + " | ".join(heads) + " |", "|---" * (5 + len(heads)) + "|"]
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((-run["minutes"], run["name"]), []).append(run)
    for (minutes, name), made in sorted(groups.items()):
        scores = [spread([run["scores"][m][x]["trained"] for run in made if x in run["scores"][m]]) for m, x in columns]
        taken, crops = (fmean(run[figure] for run in made) for figure in ("taken", "crops"))
        seen = f"{taken:.1f} | {crops:,.0f}"
        lines.append(f"| {name} | {-minutes:g} | {seen} | {len(made)} | " + " | ".join(scores) + " |")
    for source, words in BASELINES.items() if runs else ():
        seeds = {run["seed"]: run for run in runs}.values()
        scores = [spread([run["scores"][m][x][source] for run in seeds if x in run["scores"][m]]) for m, x in columns]
        lines.append(f"| {words} | | | | {len(seeds)} | " + " | ".join(scores) + " |")
    return "\n".join([*lines, ""])


def spread(values: list[float]) -> str:
    """Mean and, of several, the standard deviation."""
    if not values:
        return "n/a"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 and stdev(values) else "")


def draw(path: Path, runs: list[dict[str, Any]], labels: list[str]) -> None:
    """Scores of ours against the minutes of training, with raw pixels as a line."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for method, style in (("knn", "-"), ("linear", "--")):
            words = "k-NN" if method == "knn" else "linear probe"
            points: dict[float, list[float]] = {}
            for run in runs:
                if run["name"] == "ours":
                    points.setdefault(run["minutes"], []).append(run["scores"][method][label]["trained"])
            x = sorted(points)
            axes.plot(x, [fmean(points[m]) for m in x], style, marker="o", color="#1f6fb4", label=f"ours, {words}")
            pixels = runs[0]["scores"][method][label]["pixels"]
            axes.axhline(pixels, linestyle=style, color="#707070", label=f"raw pixels, {words}")
        axes.set_xlabel("minutes of training")
        axes.set_ylabel(f"balanced accuracy, {label}")
        axes.grid(alpha=0.2)
        axes.legend(fontsize=7, frameon=False)
    replace_atomically(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
    main()
