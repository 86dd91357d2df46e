"""Runs of the command as real processes, for the tests that stop, kill and suspend them."""

import contextlib
import json
import multiprocessing
import multiprocessing.reduction
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable, "pretrain.py"]
FORKED = ["forked"]  # as PYTHON, without the seconds of importing
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pretrain.__main__"])
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
LAUNCHED_1 = [*LAUNCHER, "launch/cpu.yaml", "pretrain.py"]
LAUNCHED = [*LAUNCHER, "launch/cpu-2.yaml", "pretrain.py"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "pretrain.py"]
# Where a command takes more threads than cores are free, those that wait must not keep the others from working.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "ACCELERATE_USE_CPU": "true"}
TIMES = ("images_per_s", "data_wait", "memory_gb", "verdict", "knn_every", "knn_seconds")


class Forked:
    """A run in a process of its own, forked from one that has imported everything; as much of Popen as is used here."""

    def __init__(self, arguments: list[str]) -> None:
        self._texts = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  closed with the object
        descriptors = [multiprocessing.reduction.DupFd(text.fileno()) for text in self._texts]
        self._process = SERVER.Process(target=_run_forked, args=(arguments, descriptors))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked run", timeout or 0)
        for text in self._texts:
            text.seek(0)
        out, err = (text.read() for text in self._texts)
        return out, err


def _run_forked(arguments: list[str], descriptors: list) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as for users; else each imports for seconds
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    for number, duplicate in enumerate(descriptors, start=1):
        os.dup2(duplicate.detach(), number)
    from pretrain.__main__ import main

    main(arguments)
    sys.stdout.flush()


def start(command: list[str], *arguments: object) -> "subprocess.Popen[str] | Forked":
    if command == FORKED:
        return Forked([*map(str, arguments)])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, start_new_session=True, **pipes
    )


def ended(process: "subprocess.Popen[str] | Forked", code: int = 0) -> str:
    """What a started command printed, once it has ended with this exit status."""
    printed = "".join(process.communicate(timeout=600))
    assert process.returncode == code, printed
    return printed


def run(*arguments: object, command: list[str] = FORKED, code: int = 0) -> str:
    process = start(command, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    return out + err


def smoke(out: Path, shards: Path | None, *more: object, **options) -> str:
    data = ["--data.shards", shards] if shards else []
    return run("--recipe", "smoke", "--out", out, *data, *more, **options)


def kill(process: "subprocess.Popen[str] | Forked") -> None:
    """SIGKILL to the process and all below it; torchrun's workers have process groups of their own."""
    assert process.poll() is None, "the run ended before it was killed"
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def logged(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def standing(out: Path) -> dict:
    """How a run stands by its state.json, without the verdict, which a slow machine may make `starved`."""
    state = json.loads((out / "state.json").read_text())
    return {name: state[name] for name in ("state", "step")}


def weights(out: Path) -> dict[str, torch.Tensor]:
    content = torch.load(out / f"{out.name}.pth", weights_only=True)
    return {f"{part}.{k}": v for part, state in content.items() for k, v in state.items()}


def assert_same_run(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    expected = weights(other)
    assert all(torch.equal(v, expected[k]) for k, v in weights(one).items())


def corrupted(shards: Path, folder: Path) -> Path:
    """A copy of a shard folder in which the last image's first bytes are overwritten, sizes unchanged."""
    shutil.copytree(shards, folder)
    path = max(folder.glob("*.tar"))
    start, found, end = path.read_bytes().rpartition(b"\x89PNG")
    path.write_bytes(start + b"oops" + end)
    assert found
    return folder


def complete_lines(out: Path) -> list[str]:
    return [line for line in (out / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def wait_for(condition, process: "subprocess.Popen[str] | Forked", seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail("the run ended early: " + "".join(process.communicate()))
        assert time.monotonic() < end, "the run is too slow"
        time.sleep(0.02)
