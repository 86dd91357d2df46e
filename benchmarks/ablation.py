"""What each part of the views and of the method is worth: short runs with it changed, scored by k-NN and tabulated.

    python benchmarks/ablation.py --shards shards/clinic --out ablation --seeds 0 1 2 [--parallel 2] [--steps 100 ...]

Runs lie in OUT/<variant>-<seed>, what they print beside them, the table in OUT/ablation.md and .json. The same command
continues what was stopped or killed. Scored are --eval-shards, or the holdout beside the shards. Further options go to
every run.
"""

import argparse
import json
import math
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from runs import ROOT, train

from data_shards.shards.remote import Url
from pretrain.__main__ import MISTAKES, read_command_line
from pretrain.config.schema import Config
from pretrain.data.shard_sets import open_sets, shard_cache
from pretrain.evaluation.final_knn import labelled_sets
from pretrain.runs.metrics_log import read_metrics
from pretrain.runs.resume_check import HARMLESS
from pretrain.runs.run_folder import RunFolder, flat
from pretrain.runtime.precision import resolve_threads
from tooth_foundations.core.cli import UserError, fail
from tooth_foundations.core.files import replace_atomically


def _off(*names: str) -> list[str]:
    return [part for name in names for part in (f"--views.{name}", "0")]


TONE = ["--views.brightness", "[0,0]", "--views.contrast", "[1,1]", "--views.gamma", "[1,1]"]
BORDERS = _off("border_probability", "text_probability")
TEXTURE = _off(*(f"{name}_probability" for name in ("blur", "motion", "noise", "local_contrast", "sharpen")))
# Mean centering at the default 0.02 falls into few prototypes; 0.04 is where it works (docs/verdict.md).
MEAN_TEMPERATURE = ["--method.teacher_temperature", "0.04", "--method.teacher_temperature_start", "0.04"]
# What each changes of the base: options that come after all others.
VARIANTS: dict[str, list[str]] = {
    "base": [],
    **{f"without {name}": _off(f"{name}_probability") for name in ("mirror", "rotation", "blur", "motion", "noise")},
    "without shear": _off("shear"),
    "without aspect jitter": _off("aspect_jitter"),
    "without local contrast": _off("local_contrast_probability"),
    "without sharpening": _off("sharpen_probability"),
    "without tone": TONE,
    "without borders and text": BORDERS,
    "all tone and texture off": [*TONE, *TEXTURE, *BORDERS],
    "crop and mirror only": [*TONE, *TEXTURE, *BORDERS, *_off("rotation_probability", "shear", "aspect_jitter")],
    "global 0.25-1": ["--views.global_scale", "[0.25,1]"],
    "global 0.6-1": ["--views.global_scale", "[0.6,1]"],
    "local 0.05-0.25": ["--views.local_scale", "[0.05,0.25]"],
    "local 0.2-0.6": ["--views.local_scale", "[0.2,0.6]"],
    "no local views": _off("local_count"),
    **{f"K = {width}": ["--method.prototypes", str(width)] for width in (64, 1024, 4096)},
    "without KoLeo": ["--method.koleo", "0"],
    "mean centering": ["--method.centering", "mean", *MEAN_TEMPERATURE],
    "teacher at 0.04": MEAN_TEMPERATURE,
}
FREE = {*HARMLESS, "seed", "eval.batch_size"} - {"steps", "epochs", "precision"}  # need not be those of earlier calls
# Student's t, two-sided 95 %, for 1 to 9 degrees of freedom; for more the last serves, which is a little wide.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
HEADS = "| run | seeds | k-NN | SD | to base | standard error | 95 % interval | minutes |\n" + "|---" * 8 + "|"
ROW = "| {name} | {seeds} | {mean:.3f} | {sd:.3f} | {difference:+.3f} | {error:.3f} | {low:+.3f} to {high:+.3f}{mark} |"
NOTES = """
k-NN: balanced accuracy for {}. Differences are paired by seed; * marks an interval without 0, which chance alone gives
one row in twenty. Seeds vary weights, order and views, not patients. Minutes are a run's without saves and scores."""
MIXED = "Not all of these runs were made by the same code of augment/ and pretrain/ with as many threads."


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__, allow_abbrev=False)
    parser.error = fail
    parser.add_argument("--shards", nargs="+", help="training sets, as --data.shards of a run")
    parser.add_argument("--eval-shards", nargs="+", default=[], help="labelled sets to score on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="small-cnn")
    parser.add_argument("--label", help="label of the k-NN; left out: the recipe's")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--table", action="store_true", help="only tabulate the runs that are there")
    arguments, overrides = parser.parse_known_args()
    try:
        if arguments.table and not arguments.out.is_dir():
            raise UserError(f"there is no {arguments.out}: give the --out of an ablation")
        complete = arguments.table or ablate(arguments, overrides)
        lost = write_table(arguments.out)
    except (UserError, *MISTAKES, OSError) as error:
        fail(error)
    if not complete:
        print(f"\nstopped; this continues it: {shlex.join(['python', *sys.argv])}")
    sys.exit(bool(lost and complete))


def ablate(arguments: argparse.Namespace, overrides: list[str]) -> bool:
    """Train all that is not finished; False if it was stopped."""
    if not arguments.shards or arguments.parallel < 1:
        raise UserError("give --shards DIR, and a --parallel of at least 1")
    if any(not 0 <= seed < 2**32 for seed in arguments.seeds):
        raise UserError("a seed is below 0 or above 4294967295; give --seeds within")
    if {override.partition("=")[0] for override in overrides} & {"--seed", "--resume"}:
        raise UserError("--seed and --resume cannot go to every run; give --seeds, or another --out")
    options = ["--recipe", arguments.recipe, "--threads", str(resolve_threads(None, arguments.parallel))]
    options += ["--data.shards", *arguments.shards]
    options += ["--eval.shards", *arguments.eval_shards] if arguments.eval_shards else []
    options += [*(["--eval.label", arguments.label] if arguments.label else []), *overrides]
    check({name: read_command_line([*options, *changes])[0] for name, changes in VARIANTS.items()}, arguments.out)
    base, *others = dict.fromkeys(["base", *(name for name in VARIANTS if name in arguments.only)])
    commands, seeds = {}, dict.fromkeys(arguments.seeds)
    for name, seed in [(base, s) for s in seeds] + [(name, s) for s in seeds for name in others]:
        folder = folder_of(arguments.out, name, seed)
        own = [*VARIANTS[name], "--out", str(folder), "--seed", str(seed)]
        commands[folder] = [sys.executable, str(ROOT / "pretrain.py"), *options, *own]
    return train(commands, arguments.parallel)


def check(configs: dict[str, Config], out: Path) -> None:
    """Raise, before any training, for what every run would fail at, and for runs of another ablation in `out`."""
    base, cache, reasons = configs["base"], shard_cache(configs["base"].data), ["the shards have no holdout"]
    sets, weights = open_sets(base, cache)
    if not labelled_sets(base, sets, cache, reasons.append):
        raise UserError(f"nothing to score on ({reasons[-1]}); pack with --holdout, or name --eval-shards")
    for name, seed in runs_there(out):
        run, new = RunFolder(folder_of(out, name, seed)), flat(json.loads(json.dumps(asdict(configs[name]))))
        if not run.facts.exists():  # no checkpoint yet: it begins anew
            continue
        old = flat(yaml.safe_load(run.config.read_text()))
        old["data"] = [[one["sha256"], one["weight"]] for one in json.loads(run.facts.read_text())["data"]]
        new["data"] = [[one.checksum, weights[i] if weights else None] for i, one in enumerate(sets)]
        new["eval.shards"] = [str(Url(path)) if "://" in path else path for path in base.eval.shards]
        decided = {key for key, value in new.items() if value == "auto"}  # in `old`, by the data
        decided |= {"steps"} if "epochs" in decided else set()
        changed = [key for key in sorted({*old, *new} - FREE - decided) if old.get(key) != new.get(key)]
        if said := "; ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in changed):
            raise UserError(f"{run.path} was made with other settings ({said}); give those again, or another --out")


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '-')}-{seed}"


def runs_there(out: Path) -> list[tuple[str, int]]:
    """Variant and seed of every run in `out` that was ever started."""
    names = {name.replace(" ", "-"): name for name in VARIANTS}
    started = [log.stem.rpartition("-") for log in out.glob("*.log")]
    return sorted((names[name], int(seed)) for name, _, seed in started if name in names and seed.isdigit())


def result(folder: Path) -> dict[str, Any] | str:
    """k-NN, minutes of steps and the makings of a finished run; of any other the last it said, an error before all."""
    run, log = RunFolder(folder), Path(f"{folder}.log").read_text(errors="replace")
    if run.read_state().get("state") != "finished":
        lines = [line.strip() for line in log.rpartition("$ ")[2].splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("error: ")), lines[-1])
    facts = json.loads(run.facts.read_text())
    if "knn" not in facts["scores"]:
        return "finished without a score"
    seconds = sum(facts["settings"]["data"]["batch_size"] / line["images_per_s"] for line in read_metrics(run.metrics))
    made_by = [f"threads {facts['settings']['threads']}", *re.findall("^code .*", log, re.MULTILINE)]
    return facts["scores"]["knn"] | {"minutes": seconds / 60, "made_by": made_by}


def compared(scores: dict[int, float], base: dict[int, float]) -> dict[str, float]:
    """Mean and SD over seeds; mean difference to `base` by seed, its standard error and 95 % interval; NaN: n/a."""
    deltas = [score - base[seed] for seed, score in scores.items() if seed in base]
    difference = fmean(deltas) if deltas else math.nan
    error = stdev(deltas) / math.sqrt(len(deltas)) if len(deltas) > 1 else math.nan
    half = error * T_975[min(max(len(deltas) - 1, 1), len(T_975)) - 1]
    sd = stdev(scores.values()) if len(scores) > 1 else math.nan
    own = {"seeds": len(scores), "mean": fmean(scores.values()), "sd": sd}
    return own | {"difference": difference, "error": error, "low": difference - half, "high": difference + half}


def write_table(out: Path) -> list[str]:
    """Print and write the table of the finished runs in `out`; returns the others and how they stand."""
    found = {(name, seed): result(folder_of(out, name, seed)) for name, seed in runs_there(out)}
    lost = [f"{name}, seed {seed}: {run}" for (name, seed), run in found.items() if isinstance(run, str)]
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in VARIANTS}
    for (name, seed), run in found.items():
        runs[name] |= {seed: run} if isinstance(run, dict) else {}
    made_by = {one for made in runs.values() for run in made.values() for one in run["made_by"]}
    rows, lines = {}, [HEADS]
    base = {seed: run["after"] for seed, run in runs["base"].items()}
    for name, made in ((name, made) for name, made in runs.items() if made):
        row = compared({seed: run["after"] for seed, run in made.items()}, base if name != "base" else {})
        row["minutes"] = fmean(run["minutes"] for run in made.values())
        rows[name], mark = row, " *" if row["low"] > 0 or row["high"] < 0 else ""
        line = ROW.format(name=name, mark=mark, **row) + f" {row['minutes']:.1f} |"
        lines.append(line.replace("+nan to +nan", "n/a").replace("+nan", "n/a").replace("nan", "n/a"))
    for name, key in (("raw pixels", "pixels"), ("untrained", "before")) if base else ():
        lines.append(f"| {name} | {len(base)} | {fmean(run[key] for run in runs['base'].values()):.3f} |" + " |" * 5)
    labels = sorted({run["label"] for made in runs.values() for run in made.values()})
    lines += [NOTES.format(", ".join(labels))] * bool(labels)
    lines += [MIXED] * (len(made_by) > 2) + [f"\nnot counted: {line}" for line in lost]
    replace_atomically(out / "ablation.md", lambda file: file.write("\n".join([*lines, ""]).encode()))
    content = json.dumps({"rows": rows, "runs": runs, "not_counted": lost}, indent=1).replace(": NaN", ": null")
    replace_atomically(out / "ablation.json", lambda file: file.write(content.encode()))
    print("\n" + "\n".join(lines), flush=True)
    return lost


if __name__ == "__main__":
    main()
