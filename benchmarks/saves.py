"""What a checkpoint costs: seconds of each part, beside writing as many bytes with fsync, and beside a training step.

    python benchmarks/saves.py --backbones starnet_s4 vit --out saves

A save writes the weights (after measuring their BatchNorm statistics on up to 1,024 crops) and the resume checkpoint.
Whether it should leave the critical path follows from the last column.
"""

import argparse
import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pretrain.checkpoints.combined import save_combined
from pretrain.checkpoints.weights_io import save_resume
from pretrain.config.schema import Config
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import Trainer
from pretrain.models.batchnorm import CROPS, exported


class Endless:
    """Stands for a stream: the steps here get ready tensors."""

    sets = (None,)

    def __len__(self) -> int:
        return 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["starnet_s4", "vit"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("saves"), help="folder for the files; must not exist")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; give another --out")
    arguments.out.mkdir(parents=True)
    columns = (
        "backbone",
        "MB",
        "write + fsync, s",
        "resume checkpoint, s",
        "weights, s",
        "their statistics, s",
        "step, s",
    )
    print("| " + " | ".join((*columns, "share of a run with a checkpoint every 100 steps")) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in arguments.backbones:
        times = measured(name, arguments.batch, arguments.out)
        save = sum(times[1:4])
        row = f"{times[0] / 1e6:.0f} | " + " | ".join(f"{t:.2f}" for t in (bare(times[0], arguments.out), *times[1:]))
        print(f"| {name} | {row} | {100 * save / (100 * times[4] + save):.1f} % |", flush=True)
    shutil.rmtree(arguments.out)


def measured(name: str, batch: int, out: Path) -> tuple[int, float, float, float, float]:
    """Bytes of the resume checkpoint; seconds of it, of the weights, of their statistics, of a step."""
    config = dataclasses.replace(Config(), backbone=name, steps=1000)
    trainer = Trainer(config, Accelerator(cpu=not torch.accelerator.is_available()), Endless())  # type: ignore[arg-type]
    trainer.trained = trainer.accelerator.prepare(trainer.student)
    rng = np.random.default_rng(0)
    views = config.views
    shapes = [(views.global_count, views.global_size), (views.local_count, views.local_size)]
    given = [torch.from_numpy(rng.integers(0, 255, (n * batch, 1, *size), dtype=np.uint8)) for n, size in shapes if n]
    trainer.train_step(given, rates_at(config, 0, 1000))
    began = time.perf_counter()
    for step in (1, 2):
        trainer.train_step(given, rates_at(config, step, 1000))
    step_seconds = (time.perf_counter() - began) / 2
    crops = rng.integers(0, 255, (CROPS, *views.global_size), dtype=np.uint8)
    began = time.perf_counter()
    network = exported(trainer.teacher, crops, config)
    statistics = time.perf_counter() - began
    began = time.perf_counter()
    save_combined(out / "weights.pth", network.backbone, network.proj_head)
    weights = time.perf_counter() - began
    began = time.perf_counter()
    save_resume(out / "resume.pth", trainer.state_dict())
    resume = time.perf_counter() - began
    return (out / "resume.pth").stat().st_size, resume, weights, statistics, step_seconds


def bare(size: int, out: Path) -> float:
    """Seconds to write that many bytes and sync them."""
    content = os.urandom(1 << 20)
    began = time.perf_counter()
    with (out / "bare").open("wb") as file:
        for _ in range(size >> 20):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
