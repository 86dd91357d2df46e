"""The first steps of a run, made in earnest and kept by nobody: what the whole run will cost."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState

from data_shards.shards.stream import ShardSet, Stream
from pretrain.checkpoints.combined import save_combined
from pretrain.checkpoints.init_weights import Initial, read_initial, start_from
from pretrain.checkpoints.weights_io import save_resume
from pretrain.config.auto import resolved
from pretrain.config.schema import Config
from pretrain.data.multicrop_loader import view_batches
from pretrain.data.shard_sets import open_sets, phantom_shards, shard_cache
from pretrain.method.diagnostics import memory_bytes
from pretrain.method.trainer import Trainer
from pretrain.models.batchnorm import calibration_crops, exported
from pretrain.runtime.precision import resolve_precision, resolve_threads
from pretrain.runtime.watchdog import Watchdog

STEPS = 10
WARM_UP = 3  # the first steps open files and connections, choose kernels and fill caches


class Trial(NamedTuple):
    """What ten steps showed, on this process."""

    crops: int
    """In the training sets."""
    parameters: int
    """Numbers that are summed over the processes at each step."""
    reader_rate: float
    """Crops a second, of all processes, that the data workers give with nothing else to do."""
    rate: float
    """Crops a second that the run trains on, all processes together."""
    waited: float
    """Share of the steps spent waiting for data."""
    step_seconds: float
    steps: int
    """Of the whole run."""
    save_seconds: float
    """Of one checkpoint with the weights' statistics; 0 on all but the main process."""
    peak_bytes: int
    """Of GPU memory; on a CPU of this process and its data workers."""
    checkpoint_bytes: int
    weights_bytes: int

    def seconds(self, config: Config) -> float:
        """Of the whole run, without its scores at the end."""
        saves = -(-self.steps // config.checkpoint_every)
        return self.steps * self.step_seconds + saves * self.save_seconds

    def disk_bytes(self, config: Config) -> int:
        """What the run folder holds at its fullest."""
        saves, stones = self.steps // config.checkpoint_every, self.steps // config.milestone_every
        return (min(config.keep, saves) + stones + 1) * self.checkpoint_bytes + 2 * self.weights_bytes


class Ready(NamedTuple):
    """What a run reads from, looked at by one process by itself."""

    config: Config
    stream: Stream
    initial: Initial | None
    reader_rate: float


def prepare(config: Config, state: PartialState, phantom: Path | None) -> Ready:
    """Open a run's shards and read some batches: what one process alone finds wrong, before any waits for another.

    `phantom` are the shards of a recipe that has none. Raises what a run would for a user's mistakes.
    """
    config.check(state.num_processes)
    torch.set_num_threads(resolve_threads(config.threads, state.num_processes if state.device.type == "cpu" else 1))
    sets, weights = open_sets(config, shard_cache(config.data))
    stream = Stream(sets or [ShardSet(phantom or "")], weights, config.seed, config.data.shard_group)
    initial = read_initial(config.init, config.backbone) if config.init else None
    head = initial.prototypes if initial else None
    config, _ = resolved(config, len(stream), state.device.type, state.num_processes, head=head)
    return Ready(config, stream, initial, _reader_rate(config, stream, state))


def small_phantom(config: Config, folder: Path) -> Path:
    """A few patients for a recipe that renders its own."""
    data = replace(config.data, phantom_patients=min(24, config.data.phantom_patients))
    return phantom_shards(replace(config, data=data), folder, lambda _: None)


def trial(ready: Ready, state: PartialState, watchdog: Watchdog, folder: Path) -> Trial:
    """Run the first steps of a run on all processes; files go to `folder`, which is to be deleted."""
    config, stream, initial, reader_rate = ready
    precision = resolve_precision(config.precision, state.device)
    on_cpu = state.device.type == "cpu"
    trainer = Trainer(config, Accelerator(cpu=on_cpu, mixed_precision=precision.mixed), stream)
    if initial:
        start_from(initial, config, trainer.student, trainer.teacher)
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
    ends, waits, peak = [time.perf_counter()], [0.0], 0

    def log(line: dict[str, Any]) -> None:
        nonlocal peak
        ends.append(time.perf_counter())
        waits.append(line["data_wait"] * config.data.batch_size / line["images_per_s"])
        peak = max(peak, memory_bytes(state.device))

    steps = min(STEPS, trainer.total)
    with watchdog.training(trainer):
        trainer.run(log, lambda: None, lambda: trainer.step >= steps)
    warm = min(WARM_UP, steps - 1)
    durations = [after - before for before, after in zip(ends[warm:-1], ends[warm + 1 :], strict=True)]
    step_seconds = statistics.mean(durations)
    resume, weights_file = folder / "resume.pth", folder / "weights.pth"
    crops = calibration_crops(stream, config.views.global_size) if state.is_main_process else None
    began = time.perf_counter()
    if crops is not None:
        network = exported(trainer.teacher, crops, config)
        save_combined(weights_file, network.backbone, network.proj_head)
        save_resume(resume, trainer.state_dict())
    return Trial(
        crops=len(stream),
        parameters=sum(p.numel() for p in trainer.student.parameters() if p.requires_grad),
        reader_rate=reader_rate,
        rate=config.data.batch_size / step_seconds,
        waited=sum(waits[warm + 1 :]) / sum(durations),
        step_seconds=step_seconds,
        steps=trainer.total,
        save_seconds=time.perf_counter() - began if state.is_main_process else 0.0,
        peak_bytes=max(peak, memory_bytes(state.device)),
        checkpoint_bytes=resume.stat().st_size if state.is_main_process else 0,
        weights_bytes=weights_file.stat().st_size if state.is_main_process else 0,
    )


def _reader_rate(config: Config, stream: Stream, state: PartialState) -> float:
    """Of batches behind those of the trial, which are to be read for the first time there as in a run."""
    ahead = 1 + 2 * config.data.workers  # read while the workers start
    ranks = state.process_index, state.num_processes
    batches = view_batches(config, stream, STEPS, 2 * STEPS + ahead, *ranks)
    for _ in range(ahead):
        next(batches)
    began = time.perf_counter()
    read = sum(1 for _ in batches)
    return read * config.data.batch_size / (time.perf_counter() - began)
