"""Kill runs with SIGKILL at random places, let the same command continue them, and compare to the bit.

    python benchmarks/faults.py --kills 100 --out faults

One phantom is packed and trained on undisturbed with one process and with two. Each trial starts the same run, kills
its processes once or more (at a random time, or as soon as a checkpoint is seen half-written), continues it
with another number of data workers until it is finished, and compares samples, losses and weights. Last, a run changes
between two processes and one at every kill; its samples and views must be those of the others.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    1: [sys.executable, "pretrain.py"],
    2: [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu-2.yaml", "pretrain.py"],
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TIMES = ("images_per_s", "data_wait", "memory_gb", "verdict", "knn_every", "knn_seconds")
HALF_WRITTEN = ("checkpoints/.step-*", ".*-*/*.pth", ".*.json.*")
"""A resume checkpoint, the weights, the facts or the state, beside their places."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kills")
    parser.add_argument("--out", type=Path, default=Path("faults"), help="folder for the runs; must not exist")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if out.exists():
        parser.error(f"{out} exists; give another --out")
    rng = random.Random(arguments.seed)

    print("drawing the data and training undisturbed", flush=True)
    finish([*COMMANDS[1], "--recipe", "smoke", "--steps", "1", "--out", str(out / "data" / "smoke")])
    runs = Runs(out, next((out / "data" / "smoke" / "phantom").glob("seed-*/")), arguments.steps)
    wholes, durations = {}, {}
    for processes in COMMANDS:
        wholes[processes] = out / f"whole-{processes}" / "smoke"
        began = time.monotonic()
        finish(runs.command(wholes[processes], processes, 2))
        durations[processes] = time.monotonic() - began

    trial = kills = different = 0
    print("\n| trial | processes | workers | killed at | largest difference |\n|---|---|---|---|---|", flush=True)
    while kills < arguments.kills:
        folder, processes = out / f"trial-{trial}" / "smoke", rng.choice([1, 2])
        places, workers = [], [rng.randrange(4)]
        for _ in range(rng.randint(3, 10)):
            moment: float | InWrite = rng.uniform(2, 0.6 * durations[processes])
            if rng.random() < 0.5:
                moment = InWrite(rng.choice(HALF_WRITTEN), after=rng.randrange(arguments.steps))
            if (place := killed(runs.command(folder, processes, workers[-1]), folder, moment)) is None:
                break
            places.append(place)
            workers.append(rng.randrange(4))
        finish(runs.command(folder, processes, workers[-1]))
        worst = difference(folder, wholes[processes])
        row = (trial, processes, " ".join(map(str, workers)), "; ".join(places) or "ended first", worst)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        shutil.rmtree(folder.parent)
        trial, kills, different = trial + 1, kills + len(places), different + (worst != 0)
    print(f"\n{kills} kills in {trial} runs: {trial - different} runs equal to the bit, {different} not")
    same = elastic(runs, wholes[1])
    print(f"2, 1, 2 processes: samples and views are {'the same' if same else 'OTHERS'}")
    print("\n" + latency(runs, wholes[1]))
    sys.exit(different > 0 or not same)


class Runs(NamedTuple):
    """The commands of this benchmark: one recipe on the same shards."""

    out: Path
    shards: Path
    steps: int

    def command(self, folder: Path, processes: int, workers: int) -> list[str]:
        options = ["--recipe", "smoke", "--steps", str(self.steps), "--out", str(folder), "--data.record", "true"]
        return [*COMMANDS[processes], *options, "--data.shards", str(self.shards), "--data.workers", str(workers)]


def elastic(runs: Runs, whole: Path) -> bool:
    """Whether a run that goes on with another number of processes after each kill takes the samples of the others."""
    folder = runs.out / "elastic" / "smoke"
    for processes, after in ((2, runs.steps // 3), (1, runs.steps * 2 // 3)):
        killed(runs.command(folder, processes, 2), folder, AtStep(after))
    finish(runs.command(folder, 2, 2))
    return (folder / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def latency(runs: Runs, whole: Path) -> str:
    """Seconds from the command to its next logged step: of a new run, and of one that continues."""
    new, old = runs.out / "new" / "smoke", runs.out / "old" / "smoke"
    shutil.copytree(whole, old)
    (old / "checkpoints" / f"step-{runs.steps:08d}.pth").unlink()
    (old / "metrics.jsonl").unlink()
    seconds = []
    for folder in (new, old):
        began = time.monotonic()
        killed(runs.command(folder, 1, 2), folder, AtStep(1))
        seconds.append(time.monotonic() - began)
    return f"from the command to its first step: {seconds[0]:.1f} s anew, {seconds[1]:.1f} s continuing"


def start(command: list[str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes)


def finish(command: list[str]) -> None:
    process = start(command)
    printed, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with {process.returncode}:\n{printed}")


class InWrite(NamedTuple):
    """As soon as a file of this pattern is half-written, once so many steps are logged."""

    pattern: str
    after: int


class AtStep(NamedTuple):
    """Once so many steps are logged."""

    steps: int


def killed(command: list[str], folder: Path, moment: float | InWrite | AtStep) -> str | None:
    """Start, kill after so many seconds, at a step or in a write; say where the run was, or None if it had ended."""
    pattern = moment.pattern if isinstance(moment, InWrite) else ""
    stale = set(folder.glob(pattern)) if pattern else set()  # of the kill before
    process, begun, place = start(command), time.monotonic(), ""
    while process.poll() is None and not place:
        if isinstance(moment, InWrite):
            torn = next((path for path in folder.glob(pattern) if path not in stale), None)
            if torn and steps_logged(folder) >= moment.after:
                place = f" while writing {re.sub('[.][0-9]+$', '', torn.name.lstrip('.'))}"
        elif isinstance(moment, AtStep):
            place = " " if steps_logged(folder) >= moment.steps else ""
        elif time.monotonic() > begun + moment:
            place = " "
        time.sleep(0.001)
    ended = process.poll() is not None
    if not ended:  # torchrun's workers have process groups of their own
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.communicate()
    return None if ended else f"step {steps_logged(folder)}{place.rstrip()}"


def steps_logged(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def difference(one: Path, other: Path) -> float:
    """The largest difference of any logged value and any weight; infinite where lines, samples or keys differ."""
    lines, expected = logged(one), logged(other)
    if [sorted(line) for line in lines] != [sorted(line) for line in expected]:
        return float("inf")
    if (one / "samples.jsonl").read_text() != (other / "samples.jsonl").read_text():
        return float("inf")
    values = [(a[k], b[k]) for a, b in zip(lines, expected, strict=True) for k in a if k != "source_counts"]
    worst = max(abs(a - b) for a, b in values)
    ours, theirs = weights(one), weights(other)
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(worst, *((ours[k].double() - theirs[k].double()).abs().max().item() for k in ours))


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / f"{folder.name}.pth", weights_only=True)
    return {f"{part}.{k}": v for part, state in content.items() for k, v in state.items()}


if __name__ == "__main__":
    main()
