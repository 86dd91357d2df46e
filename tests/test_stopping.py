"""Every way to stop a run, and every way in which a process of it can die or hang, with real processes and signals."""

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from processes import (
    FORKED,
    LAUNCHED,
    LAUNCHED_1,
    PYTHON,
    TORCHRUN,
    complete_lines,
    kill,
    smoke,
    standing,
    start,
    wait_for,
)

from pretrain.runtime.heartbeats import Peers, Sign, is_running
from pretrain.runtime.watchdog import Watchdog

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STARTED: list = []


@pytest.fixture(autouse=True)
def nothing_lives_on():
    """What a failed test leaves behind would slow the next ones down."""
    yield
    while STARTED:
        if (process := STARTED.pop()).poll() is None:
            kill(process)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "smoke"
    smoke(out, None, "--steps", 1)
    return next((out / "phantom").glob("seed-*/"))


def begin(command: list[str], out: Path, shards: Path, *more: object, lines: int = 3):
    """A run that has made so many steps since it began, and its training processes by rank."""
    steps = out / "metrics.jsonl"
    before = len(complete_lines(out)) if steps.exists() else 0
    process = start(command, "--recipe", "smoke", "--out", out, "--data.shards", shards, "--steps", 5000, *more)
    STARTED.append(process)
    wait_for(lambda: steps.exists() and len(complete_lines(out)) >= before + lines, process)
    return process, trainers(process)


def trainers(process) -> dict[int, psutil.Process]:
    """The processes that train, which are the parents of data workers."""
    found = {}
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        line = one.cmdline()
        if "pretrain.py" in line and "-m" not in line and not any(one in t.children() for t in found.values()):
            found[int(one.environ().get("RANK", "0"))] = one
    return found or {0: psutil.Process(process.pid)}


def ended(process, out: Path, code: int, status: str, unwritten: int = 0) -> tuple[str, float]:
    """All it printed and the seconds it took to end, once it ended with this code, and state.json says this.

    It may count so many steps more than were written down.
    """
    began = time.monotonic()
    printed = "".join(process.communicate(timeout=300))
    assert process.returncode == code, printed
    state, written = standing(out), len(complete_lines(out))
    assert state["state"] == status, printed
    assert written <= state["step"] <= written + unwritten, printed
    return printed, time.monotonic() - began


def told(printed: str, pattern: str) -> None:
    """One line of ours says it, and nothing of ours is a traceback."""
    (line,) = re.findall(r"^(?:error: |interrupted|stopped while).*", printed, re.MULTILINE)
    assert re.search(pattern, line), line
    assert "[rank" not in re.sub(r"\[rank\d\]:\[W.*", "", printed)


def send(number: int):
    """To one process, the last; rank 0 has nothing special in this."""
    return lambda process, ranks, out: ranks[max(ranks)].send_signal(number)


def to_all(process, ranks, out: Path) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def touch(process, ranks, out: Path) -> None:
    (out / "stop").touch()


def stops_and_continues(command: list[str], out: Path, shards: Path, *ways) -> None:
    """Each way in turn stops the run, which saves, says so and is continued for the next."""
    for i, way in enumerate(ways):
        process, ranks = begin(command, out, shards)
        way(process, ranks, out)
        printed, _ = ended(process, out, 0, "stopped")
        assert "stopped after step" in printed
        assert ("continuing from step" in printed) == (i > 0)
        assert list((out / "checkpoints").glob(f"step-*{len(complete_lines(out))}.pth"))
        assert not (out / "stop").exists()


def test_term_usr1_and_int_stop_and_save_and_the_same_command_continues(shards, tmp_path):
    ways = [to_all, send(signal.SIGUSR1), send(signal.SIGINT)]
    stops_and_continues(PYTHON, tmp_path / "r", shards, *ways)


@pytest.mark.extended
def test_under_accelerate_launch_with_one_process(shards, tmp_path):
    stops_and_continues(LAUNCHED_1, tmp_path / "r", shards, *map(send, STOPS))


def test_a_signal_to_one_of_two_processes_stops_both(shards, tmp_path):
    stops_and_continues(LAUNCHED, tmp_path / "r", shards, send(signal.SIGUSR1))


@pytest.mark.extended
def test_under_accelerate_launch_with_two_processes(shards, tmp_path):
    stops_and_continues(LAUNCHED, tmp_path / "r", shards, send(signal.SIGINT), touch)


@pytest.mark.slow
def test_under_torchrun(shards, tmp_path):
    stops_and_continues(TORCHRUN, tmp_path / "r", shards, send(signal.SIGTERM), touch)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        pytest.param(LAUNCHED_1, signal.SIGINT, id="accelerate-1", marks=pytest.mark.extended),
        pytest.param(LAUNCHED, signal.SIGTERM, id="accelerate-2", marks=pytest.mark.slow),
        pytest.param(TORCHRUN, signal.SIGINT, id="torchrun", marks=pytest.mark.extended),
    ],
)
def test_a_signal_to_the_launcher_stops_and_saves_whatever_the_launcher_says(command, number, shards, tmp_path):
    process, ranks = begin(command, tmp_path / "r", shards)
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal does; torchrun's processes have groups of their own
    process.wait(180)
    assert not psutil.wait_procs(ranks.values(), timeout=180)[1]
    ended(process, tmp_path / "r", 1 if command != LAUNCHED_1 else -number, "stopped")


def test_ctrl_c_twice_stops_now_even_while_it_waits_for_data(shards, tmp_path):
    out = tmp_path / "r"
    process, ranks = begin(FORKED, out, shards, "--data.workers", 1, lines=6)
    ranks[0].children()[0].suspend()
    time.sleep(1)
    ranks[0].send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    ranks[0].send_signal(signal.SIGINT)
    printed, seconds = ended(process, out, 130, "failed")
    told(printed, r"^interrupted; the same command continues from step \d*[05]$")
    assert seconds < 60


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(LAUNCHED_1, id="1", marks=pytest.mark.extended),
        pytest.param(LAUNCHED, id="2", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_twice_under_a_launcher(command, shards, tmp_path):
    out = tmp_path / "r"
    process, ranks = begin(command, out, shards)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    printed, _ = ended(process, out, process.wait(180), "failed")
    told(printed, "^interrupted; the same command starts anew$")
    assert not psutil.wait_procs(ranks.values(), timeout=180)[1]


def test_a_signal_before_training_and_one_while_scoring_end_the_run_at_once(shards, tmp_path):
    out = tmp_path / "phantom"
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.phantom_patients", 400)
    wait_for((out / "phantom").exists, process)
    psutil.Process(process.pid).terminate()
    told("".join(process.communicate(timeout=120)), "^stopped while setting up; the same command starts anew$")
    assert process.returncode == 0
    out = tmp_path / "scoring"
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.shards", shards, "--steps", 2)
    wait_for(lambda: (out / "checkpoints" / "step-00000002.pth").exists(), process)
    time.sleep(0.3)
    psutil.Process(process.pid).send_signal(signal.SIGINT)
    told(ended(process, out, 0, "stopped")[0], "^stopped while scoring; the same command continues from step 2$")


def test_hung_and_dead_data_workers_are_named(shards, tmp_path):
    out = tmp_path / "r"
    computing = ("--backbone", "mambaout_femto")  # most of the time, and not in the middle of the loader's own work
    process, ranks = begin(FORKED, out, shards, *computing, "--data.workers", 1, "--timeout", 10)
    worker = ranks[0].children()[0]
    worker.suspend()
    printed, seconds = ended(process, out, 2, "failed")
    told(printed, rf"no progress for \d+ s: the run \(pid {process.pid} .*waiting for data.*pid {worker.pid} stopped")
    assert seconds < 120  # 10 for --timeout, 2 for the looks; the rest is for a busy machine
    assert not is_running(worker.pid)
    process, ranks = begin(FORKED, out, shards, *computing)
    ranks[0].children()[-1].kill()
    printed, seconds = ended(process, out, 2, "failed")
    told(printed, r"a data worker died \(DataLoader worker .* the same command continues")
    assert seconds < 60


FAULTS = {
    "killed main": (
        0,
        "kill",
        r"rank 0 of 2 \(pid {pid} on .* has died, last seen .* at step \d+; the same command",
        60,
    ),
    "killed other": (
        1,
        "kill",
        r"rank 1 of 2 \(pid {pid} on .* has died, last seen .* at step \d+; the same command",
        60,
    ),
    "suspended main": (0, "suspend", r"rank 0 of 2 \(pid {pid} on .* has not answered for \d+ s, last seen", 90),
    "suspended other": (1, "suspend", r"rank 1 of 2 \(pid {pid} on .* has not answered for \d+ s, last seen", 90),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("killed main", marks=pytest.mark.extended),
        pytest.param("killed other", marks=pytest.mark.slow),
        pytest.param("suspended main", marks=pytest.mark.slow),
        pytest.param("suspended other", marks=pytest.mark.extended),
    ],
)
def test_a_dead_rank_and_a_hung_collective_are_named(name, shards, tmp_path):
    rank, fault, pattern, within = FAULTS[name]
    command = TORCHRUN if name == "killed other" else LAUNCHED  # whose agent is torchrun's
    process, ranks = begin(command, tmp_path / "r", shards, "--timeout", 10)
    time.sleep(1)  # a sign of life a second: the step last told is a step that was made
    getattr(ranks[rank], fault)()
    unwritten = 1 if rank == 0 else 0  # the other may have made a step whose line the main process did not write
    printed, seconds = ended(process, tmp_path / "r", 1, "failed", unwritten)  # 1 is torchrun's; ours is 2
    told(printed, pattern.format(pid=ranks[rank].pid))
    assert re.search(r"exitcode +: 2 ", printed)
    assert seconds < within


@pytest.mark.slow
def test_a_rank_that_waits_for_data_is_named_by_the_one_that_waits_for_it(shards, tmp_path):
    process, ranks = begin(LAUNCHED, tmp_path / "r", shards, "--timeout", 10)
    for worker in ranks[1].children():
        worker.suspend()
    printed, _ = ended(process, tmp_path / "r", 1, "failed")
    told(printed, rf"no progress for \d+ s: rank 1 of 2 \(pid {ranks[1].pid} .*waiting for data .*stopped")


@pytest.mark.slow
def test_a_suspended_run_goes_on(shards, tmp_path):
    out = tmp_path / "r"
    process, ranks = begin(FORKED, out, shards, "--timeout", 10)
    ranks[0].suspend()
    time.sleep(13)
    before = len(complete_lines(out))
    ranks[0].resume()
    wait_for(lambda: len(complete_lines(out)) > before + 3, process)
    ranks[0].terminate()
    ended(process, out, 0, "stopped")


def test_who_is_to_blame_for_a_hang():
    watchdog = Watchdog(60)
    watchdog.ranks = 3
    waiting = Sign(1, "a", "m", step=12, phase="waiting for data", workers="data workers: pid 7 disk-sleep; ")
    computing, saving = Sign(2, "b", "n", step=12, phase="computing"), Sign(3, "c", "o", step=12, phase="saving")

    def verdict(*signs: Sign) -> str:
        watchdog._sign, watchdog._peers = signs[0], Peers(0, 3)
        watchdog._peers.signs = dict(enumerate(signs))
        return watchdog._verdict()

    assert "rank 1 of 3 (pid 1 on a) is waiting for data at step 12 (data workers: pid 7 disk-" in verdict(
        computing, waiting, computing
    )
    assert "rank 0 of 3 (pid 3 on c) is saving at step 12" in verdict(saving, saving, saving)
    assert "every process is computing at step 12, so a collective or a device hangs" in verdict(*[computing] * 3)
