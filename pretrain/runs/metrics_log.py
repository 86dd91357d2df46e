"""What a run writes down at every step: metrics, samples, and the samples that could not be read."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from data_shards.shards.stream import ShardError, Stream
from pretrain.data.multicrop_loader import SampleRecord
from pretrain.monitoring.diagnosis import Watch
from pretrain.runs.run_folder import RunFolder

STEP = re.compile(rb'{"step": (\d+)')
STATED = ("samples_seen", "loss_over_ln_k", "teacher_entropy", "teacher_mean_entropy")
"""What a line must state to be shown."""


class StepLog:
    """JSON lines in the order of their steps, every step once however often the run died; no file before the first.

    A line that a full disk refuses waits in memory and is tried again with the next.
    """

    def __init__(self, path: Path, start: int) -> None:
        """Open for appending; lines of steps from `start` on (written after the last checkpoint) are cut off.

        `kept` is the number of lines before `start`: less than that if the file was damaged or is of no such run.
        """
        self.kept = 0
        if path.exists():
            self.kept, end = _lines_before(path, start)
            os.truncate(path, end)
        self._path = path
        self._file: IO[bytes] | None = None
        self._waiting = b""

    def write(self, line: dict[str, Any]) -> None:
        """Append one line at full precision, or keep it for later if the disk is full."""
        self._waiting += json.dumps(line).encode() + b"\n"
        with contextlib.suppress(OSError):  # told by the `flush` before the next checkpoint
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises OSError if the disk takes none of it."""
        while self._waiting:
            self._file = self._file or self._path.open("ab", buffering=0)
            written = self._file.write(self._waiting) or 0
            self._waiting = self._waiting[written:]

    def close(self) -> None:
        """Close the file; lines that still wait are of steps that no checkpoint holds."""
        if self._file:
            self._file.close()


class Journal:
    """The step logs of one run, written by the main process."""

    def __init__(self, folder: RunFolder, stream: Stream, start: int, total: int, record: bool) -> None:
        self.metrics = StepLog(folder.metrics, start)
        self.watch = Watch(total, read_metrics(folder.metrics))
        self._folder = folder
        self._folder.verdict = self.watch.verdict
        self._stream = stream
        self._bad = StepLog(folder.bad_samples, start)
        self._samples = StepLog(folder.samples, start) if record else None

    def write(self, line: dict[str, Any], samples: Tensor) -> None:
        """One step's metrics, to which its verdict is added, and its samples int64 [B, 5] (SampleRecord)."""
        before = self.watch.verdict
        line |= self.watch.take(line)
        self._folder.verdict = verdict = self.watch.verdict
        if verdict and (before is None or before.name != verdict.name):
            tqdm.write(f"step {line['step']}: {verdict}")
        self.metrics.write(line)
        self.note_bad(line["step"], samples)
        if self._samples:
            self._samples.write({"step": line["step"], "samples": samples.tolist()})

    def note_bad(self, step: int, samples: Tensor) -> None:
        """A line for each sample that could not be read: what it is, and which of its set took its place."""
        for record in map(SampleRecord._make, samples.tolist()):
            if record.read != record.index:
                self._bad.write({"step": step, **self._named(record), "instead": record.read})

    def named(self, samples: Tensor) -> list[dict[str, Any]]:
        """The samples int64 [B, 5] of a step by shard and, where we gave it, id."""
        records = map(SampleRecord._make, samples.tolist())
        return [self._named(r) | {"epoch": r.epoch, "read": r.read, "views": r.views} for r in records]

    def _named(self, record: SampleRecord) -> dict[str, Any]:
        shards = self._stream.sets[record.source]
        ends = np.cumsum(shards.shard_sizes)
        number = int(np.searchsorted(ends, record.index, side="right"))
        named: dict[str, Any] = {"source": record.source, "shard": number, "index": record.index}
        if shards.manifest:  # names that others gave may tell whose they are
            named["shard"] = shards.manifest["shards"][number]["name"]
            if isinstance(shards.path, Path):  # a lost server would be waited for
                with contextlib.suppress(ShardError):
                    named["id"] = shards.key(record.index)
        return named

    def flush(self) -> None:
        """Write what a full disk refused. Raises OSError if it still does."""
        for log in self._logs():
            log.flush()

    def close(self) -> None:
        """Close the files."""
        for log in self._logs():
            log.close()

    def _logs(self) -> list[StepLog]:
        return [self.metrics, self._bad, *([self._samples] if self._samples else [])]


def read_metrics(path: Path, having: bytes = b"") -> Iterator[dict[str, Any]]:
    """The lines of a metrics file that contain `having`, without those that a crash cut short or that are damaged."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            if STEP.match(text) and having in text:
                with contextlib.suppress(ValueError):
                    yield json.loads(text)


def whole(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that state what every line does, and nothing as null: others are no run's."""
    return [
        line
        for line in lines
        if all(isinstance(line.get(name), int | float) for name in STATED) and None not in line.values()
    ]


def _lines_before(path: Path, start: int) -> tuple[int, int]:
    """How many lines of steps before `start` a file begins with, and the byte where they end.

    Only the step, which every line begins with, is looked at: logs grow long. A damaged line stays where it is.
    """
    kept, end = 0, 0
    with path.open("rb") as file:
        for line in file:
            step = STEP.match(line)
            if not line.endswith(b"\n") or (step and int(step[1]) >= start):
                break
            kept, end = kept + bool(step), end + len(line)
    return kept, end
