"""Training runs as processes: so many at a time, each continued where it was stopped or killed."""

import ctypes
import hashlib
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from pretrain.config.schema import ConfigError
from pretrain.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


def train(commands: dict[Path, list[str]], parallel: int) -> bool:
    """Run what is not finished, in order, so many at a time; False when a signal asked for a stop."""
    queue = [folder for folder in commands if RunFolder(folder).read_state().get("state") != "finished"]
    print(f"{len(commands)} runs, {len(commands) - len(queue)} of them finished", flush=True)
    running: dict[Path, subprocess.Popen[bytes]] = {}
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(130) if asked else asked.append(number))
    while (running or queue) and not asked:
        for folder in [folder for folder, process in running.items() if process.poll() is not None]:
            print(f"{folder.name} ended with {running.pop(folder).returncode}, {len(queue)} wait", flush=True)
        if queue and len(running) < parallel and not is_held(queue[0]):
            folder = queue.pop(0)
            running[folder] = start(folder, commands[folder])
        time.sleep(0.1)
    for process in running.values():
        process.terminate()  # it saves first
    for process in running.values():
        process.wait()
    return not asked


def is_held(folder: Path) -> bool:
    """Whether another process trains there: what a killed ablation leaves behind saves and ends within seconds."""
    try:
        if folder.exists():
            RunFolder(folder).lock()  # for as long as the object lives
    except ConfigError:
        return True
    return False


def start(folder: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a run in a session of its own, since a Ctrl-C is ours to pass on; if we are killed it is asked to stop."""
    code = b"".join(file.read_bytes() for file in sorted(ROOT.glob("[ap]*/**/*.py")))  # augment, pretrain
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.log").open("a") as log:
        print(f"$ {shlex.join(command)}\ncode {hashlib.sha256(code).hexdigest()}", file=log, flush=True)
        apart = {"start_new_session": True, "preexec_fn": lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)}
        return subprocess.Popen(command, stdout=log, stderr=log, **apart)
