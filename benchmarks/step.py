"""Seconds and memory of a pretraining step: a real run, the bare passes of the same networks, and lightly-train's DINO.

    python benchmarks/step.py --shards shards/ufba --out step [--backbone starnet_s4] [--batch 64] [--compile]

In one call, taking turns in rounds of fresh processes: ours, `python pretrain.py` on the shards (phantoms without
--shards), by its own metrics.jsonl; the bare passes, fused AdamW and moving average on ready tensors, a plain loop of
torch (bare_step.py); lightly-train's DINO with the same backbone, crops, views and batch, in an environment of its own.
Each in float32, and in bf16 where the device computes in it. The first steps of each process are left out. Options that
are none of these go to pretrain.py: --views.local_count 4, --data.workers 2. OUT/step.md and step.json hold the table.

Memory is that of a process, looked at five times a second, and of its children (what is theirs alone), looked at every
ten seconds, at its highest; on a GPU what torch allocated there. Do nothing else on the machine meanwhile.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil
import torch
from accelerate import PartialState
from augment_peer import peer_python
from augment_speed import cpu_name, demand
from bare_step import BareRun
from lightly_peer import PeerRun, export_crops
from step_table import BARE, COMPILED, OURS, PEER, table

from data_shards.errors import ShardError
from pretrain.__main__ import MISTAKES, read_command_line
from pretrain.config.schema import Config, DataConfig
from pretrain.data.shard_sets import phantom_shards
from pretrain.method.diagnostics import MONITOR_EVERY
from pretrain.runs.metrics_log import read_metrics
from pretrain.runs.run_folder import RunFolder
from pretrain.runtime.precision import resolve_precision, resolve_threads
from tooth_foundations.core.cli import UserError, fail

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ["--recipe", "small-cnn", "--views.global_size", "[128,96]", "--views.local_size", "[64,48]"]
RECIPE += ["--views.local_count", "8", "--eval.every", "0", "--pictures", "false", "--on_collapse", "warn"]
LONG = ["--steps", "1000000", "--checkpoint_every", "1000000"]  # interrupted when enough steps are done
CROPS_OF_A_PATIENT = 3  # of a phantom, at least
CHILDREN_EVERY = 10.0  # s; the kernel walks their page tables for 40 ms, which a step that uses all cores waits for


class Measured(NamedTuple):
    """One process of a contender: seconds of each step, share of them spent waiting for data, bytes at the peak."""

    seconds: list[float]
    waited: float | None
    bytes: int


@dataclass(frozen=True)
class Row:
    """One contender in one precision."""

    name: str
    precision: str
    measure: Callable[[], Measured]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = fail  # type: ignore[method-assign]
    parser.add_argument("--shards", help="shard folder of real crops; left out: phantoms, rendered into OUT")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, runs and peer")
    parser.add_argument("--backbone", default="starnet_s4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each process")
    parser.add_argument("--drop", type=int, default=2, help="steps before them, which open files and choose kernels")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender, by turns")
    parser.add_argument(
        "--precision", nargs="+", choices=["fp32", "bf16"], help="left out: fp32, and bf16 if the device computes in it"
    )
    parser.add_argument("--threads", type=int, help="of each process; left out: all cores")
    parser.add_argument("--compile", action="store_true", help="a row more: ours with --optim.compile true")
    parser.add_argument("--no-peer", action="store_true", help="leave lightly-train out")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device, for a column MFU; give one --precision with it"
    )
    arguments, overrides = parser.parse_known_args()
    try:
        if min(arguments.batch, arguments.steps, arguments.rounds, arguments.drop + 1) < 1:
            raise UserError("--batch, --steps and --rounds are at least 1, --drop at least 0")
        arguments.out.mkdir(parents=True, exist_ok=True)
        Contest(arguments, overrides).hold()
    except (UserError, ShardError, *MISTAKES, OSError) as error:
        fail(error)


class Contest:
    """The contenders of one call, and the table of what was measured."""

    def __init__(self, arguments: argparse.Namespace, overrides: list[str]) -> None:
        self.arguments, self.out = arguments, arguments.out
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
        self.device = PartialState(cpu=on_cpu).device
        self.threads = resolve_threads(arguments.threads, 1)
        chosen = ["--backbone", arguments.backbone, "--data.batch_size", str(arguments.batch)]
        self.options = [*RECIPE, *chosen, *overrides]
        self.shards = str(arguments.shards or self.phantoms())
        self.config: Config = read_command_line([*self.options, "--data.shards", self.shards])[0]
        if self.config.method.prototypes == "auto":
            raise UserError("the bare passes need to know the head: give --method.prototypes a number")
        self.gflop = demand(self.config.backbone, self.config.views)[1]
        native = resolve_precision("auto", self.device)
        self.precisions = arguments.precision or ["fp32", *["bf16"] * (native.name == "bf16")]
        if "bf16" in self.precisions and native.name != "bf16":
            self.said = f"bf16 as asked for, which this {self.device.type} only emulates"
        else:
            self.said = " and ".join(self.precisions) + (
                "" if native.name == "bf16" else f": this {self.device.type} does not compute in bf16"
            )

    def phantoms(self) -> Path:
        """Shards of phantoms, with crops for all steps of one process: an epoch's end is not measured."""
        crops = self.arguments.batch * (self.arguments.steps + self.arguments.drop + 2)
        data = DataConfig(phantom_patients=-(-crops // CROPS_OF_A_PATIENT), phantom_views=1, phantom_holdout=0)
        return phantom_shards(Config(data=data), self.out / "phantom", print)

    def hold(self) -> None:
        """Measure, tabulate, write and print."""
        rows, rounds = self.rows(), self.arguments.rounds
        print(f"precision: {self.said}; {len(rows)} contenders, {rounds} rounds", flush=True)
        found: list[list[Measured]] = [[] for _ in rows]
        for turn in range(rounds):
            for number in sorted(range(len(rows)), key=lambda i: (i + turn) % len(rows)):  # nobody always goes first
                found[number].append(one := rows[number].measure())
                seconds = f"{median(one.seconds):.3g} s a step"
                print(f"round {turn + 1}: {rows[number].name}, {rows[number].precision}: {seconds}", flush=True)
        contenders = {(row.name, row.precision): measured for row, measured in zip(rows, found, strict=True)}
        results = self.results(contenders)
        (self.out / "step.json").write_text(json.dumps(results, indent=1) + "\n")
        (self.out / "step.md").write_text(text := table(results))
        print("\n" + text, end="")

    def rows(self) -> list[Row]:
        """Every contender in every precision."""
        rows = []
        for precision in self.precisions:
            rows.append(Row(OURS, precision, partial(self.ours, precision)))
            if self.arguments.compile:
                rows.append(Row(COMPILED, precision, partial(self.ours, precision, "--optim.compile", "true")))
            rows.append(Row(BARE, precision, partial(self.bare, precision)))
        if not self.arguments.no_peer:
            python = peer_python(self.out / "peer-venv")
            export_crops(self.shards, self.out / "crops")
            rows += [Row(PEER, precision, partial(self.peer, python, precision)) for precision in self.precisions]
        return rows

    def ours(self, precision: str, *more: str) -> Measured:
        """A run as its user starts it, interrupted when its metrics hold enough steps."""
        folder, drop = RunFolder(self.out / "run"), self.arguments.drop
        shutil.rmtree(folder.path, ignore_errors=True)
        own = ["--precision", precision, "--threads", str(self.threads), "--out", str(folder.path), *LONG]
        command = [sys.executable, str(ROOT / "pretrain.py"), *self.options, "--data.shards", self.shards, *own, *more]
        enough = drop + self.arguments.steps
        if self.device.type == "cuda":
            enough = max(enough, MONITOR_EVERY + 1)  # memory is in each tenth line; the first lacks AdamW's moments
        with watched(command, self.out / "run.log", self.threads) as seen:
            for _ in seen:
                if folder.metrics.exists() and folder.metrics.read_bytes().count(b"\n") >= enough:
                    seen.process.send_signal(signal.SIGINT)  # the second ends it at once, unsaved
        lines = list(read_metrics(folder.metrics))
        gpu = max((int(line.get("memory_gb", 0) * 1e9) for line in lines), default=0)
        lines = lines[drop : drop + self.arguments.steps]
        seconds = [self.arguments.batch / line["images_per_s"] for line in lines]
        waited = sum(s * line["data_wait"] for s, line in zip(seconds, lines, strict=True)) / sum(seconds)
        return Measured(seconds, waited, gpu if self.device.type == "cuda" else seen.bytes)

    def bare(self, precision: str) -> Measured:
        views, steps = self.config.views, self.arguments.drop + self.arguments.steps
        sizes = [(views.global_count, *views.global_size), (views.local_count, *views.local_size)]
        task = BareRun(
            self.config.backbone, self.config.method.prototypes, [s for s in sizes if s[0]], self.arguments.batch,
            steps, precision, self.device.type, self.threads,
        )  # fmt: skip
        log = self.out / "bare.log"
        with watched(task.command(), log, self.threads) as seen:
            list(seen)
        told = json.loads(log.read_text().splitlines()[-1])
        return Measured(told["seconds"][self.arguments.drop :], None, told.get("gpu_bytes", seen.bytes))

    def peer(self, python: Path, precision: str) -> Measured:
        views, drop, folder = self.config.views, self.arguments.drop, self.out / "peer"
        shutil.rmtree(folder, ignore_errors=True)
        run = PeerRun(
            str((self.out / "crops").resolve()), str(folder.resolve()), self.config.backbone, views.global_size,
            views.local_size, views.local_count, self.arguments.batch, drop + self.arguments.steps, 0, self.threads,
            precision="bf16-mixed" if precision == "bf16" else "32-true", workers=self.config.data.workers,
        )  # fmt: skip
        with watched(run.command(python), self.out / "peer.log", self.threads) as seen:
            list(seen)
        told = json.loads((folder / "steps.json").read_text())
        seconds, waits = told["seconds"][drop:], told["waited"][drop:]
        return Measured(seconds, sum(waits) / sum(seconds), told.get("gpu_bytes", seen.bytes))

    def results(self, contenders: dict[tuple[str, str], list[Measured]]) -> dict[str, Any]:
        """All that was measured and what it was measured with, JSON-ready."""
        views = self.config.views
        counts = f"{views.global_count} x {views.global_size} + {views.local_count} x {views.local_size}"
        return {
            "machine": {"device": device_name(self.device), "threads": self.threads, "torch": torch.__version__},
            "what": f"{self.config.backbone}, {counts} views, batches of {self.arguments.batch}",
            "precision": self.said,
            "batch": self.arguments.batch,
            "GFLOP a sample": self.gflop,
            "peak TFLOP/s": self.arguments.peak_tflops,
            "contenders": [
                {"name": name, "precision": precision, "rounds": [one._asdict() for one in measured]}
                for (name, precision), measured in contenders.items()
            ],
        }


class Watched:
    """A process that is waited for: iterating looks at it five times a second; `bytes` is its peak of memory."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process, self.bytes = process, 0

    def __iter__(self) -> Iterator[None]:
        children, looked = 0, time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - looked > CHILDREN_EVERY:
                children, looked = children_bytes(self.process.pid), time.monotonic()
            self.bytes = max(self.bytes, resident_bytes(self.process.pid) + children)
            yield
            time.sleep(0.2)


@contextmanager
def watched(command: list[str], log: Path, threads: int) -> Iterator[Watched]:
    """Start a command with its output in `log`; it is ended with the block. Raises UserError if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            yield Watched(process)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
    if process.returncode not in (0, 130):
        last = (log.read_text().splitlines() or ["nothing was printed"])[-1]
        raise UserError(f"{log.stem} ended with {process.returncode}, see {log}: {last}")


def resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 of one that has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def children_bytes(pid: int) -> int:
    """What the children of a process hold and do not share with it."""
    total = 0
    try:
        for child in psutil.Process(pid).children(recursive=True):
            total += child.memory_full_info().uss
    except psutil.Error:  # one ended meanwhile
        pass
    return total


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


if __name__ == "__main__":
    main()
