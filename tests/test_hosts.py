"""Runs over several hosts (tests/hosts.py): lost hosts, cut and slow links, restarts; all over gloo, as root."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest
from hosts import Host, hosts
from processes import LAUNCHED, LAUNCHER, complete_lines, logged, smoke, standing

STEPS, TIMEOUT = 9, 10
RELEASED = ["--backbone", "mambaout_femto"]  # whose steps take long enough for a cut between two of them
TWO = [*LAUNCHER, "launch/nodes.yaml", "--num_processes", "2", "--main_process_ip", "node0"]
ELASTIC = ["--rdzv_backend", "c10d", "--max_restarts", "2"]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    """The same run with both processes on this machine, with nothing between them."""
    out = tmp_path_factory.mktemp("whole") / "r"
    smoke(out, shards, *RELEASED, "--steps", STEPS, "--data.record", "true", command=LAUNCHED)
    return out


@pytest.fixture
def two():
    assert os.geteuid() == 0, "network namespaces need root"
    for program in ("ip", "tc", "unshare"):
        assert shutil.which(program), f"install {program} (iproute2, util-linux)"
    with hosts(2) as made:
        yield made


def begin(host: Host, out: Path, shards: Path, *launcher: str, steps: int = STEPS):
    rank = host.name.removeprefix("node")
    settings = ["--recipe", "smoke", *RELEASED, "--out", out, "--data.shards", shards, "--data.record", "true"]
    command = [*TWO, *launcher, "--machine_rank", rank, "pretrain.py", *settings]
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if launcher else {}
    return host.start([*command, "--steps", steps, "--timeout", TIMEOUT], **fresh)


def steps_made(out: Path) -> int:
    return len(complete_lines(out)) if (out / "metrics.jsonl").exists() else 0


def wait_for_steps(out: Path, steps: int) -> None:
    end = time.monotonic() + 400
    while steps_made(out) < steps:
        assert time.monotonic() < end, "the run is too slow"
        time.sleep(0.05)


def ended(process, code: int, within: float) -> str:
    began = time.monotonic()
    printed = "".join(process.communicate(timeout=400))
    assert process.returncode == code, printed
    assert time.monotonic() - began < within, printed
    return printed


def assert_same_order(out: Path, undisturbed: Path) -> None:
    """Every step once, with the samples, views and losses of a run that nothing happened to."""
    assert (out / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()
    assert logged(out) == logged(undisturbed)
    assert standing(out) == {"state": "finished", "step": STEPS}


@pytest.mark.slow
def test_a_link_cut_for_a_while_and_a_slow_link_change_nothing(two, shards, undisturbed, tmp_path):
    out = tmp_path / "r"
    two[0].slow("400mbit")
    running = [begin(host, out, shards) for host in two]
    wait_for_steps(out, 3)
    two[1].cut()
    time.sleep(TIMEOUT / 3)
    assert steps_made(out) < STEPS
    two[1].mend()
    for process in running:
        ended(process, 0, within=400)
    assert_same_order(out, undisturbed)


@pytest.mark.extended
def test_a_link_that_stays_cut_ends_both_sides_and_each_names_the_other(two, shards, tmp_path):
    out = tmp_path / "r"
    running = [begin(host, out, shards, steps=500) for host in two]
    wait_for_steps(out, 6)
    two[1].cut()
    printed = [ended(process, 1, within=TIMEOUT + 90) for process in running]  # torchrun itself takes some seconds
    assert re.search(r"^error: rank 1 of 2 \(pid \d+ on node1\) has not answered for \d+ s", printed[0], re.M)
    assert re.search(
        r"^error: rank 1 of 2 \(pid \d+ on node1\) has not reached the launcher of rank 0 at node0:\d+ ",
        printed[1],
        re.M,
    )
    assert all("the same command continues from step 5" in text for text in printed)
    assert json.loads((out / "state.json").read_text())["state"] == "failed"


@pytest.mark.extended
def test_the_first_host_lost_is_told_by_the_other_which_writes_it_down(two, shards, tmp_path):
    out = tmp_path / "r"
    running = [begin(host, out, shards, steps=500) for host in two]
    wait_for_steps(out, 6)
    two[0].die()
    printed = ended(running[1], 1, within=TIMEOUT + 90)
    assert re.search(r"^error: rank 1 of 2 .* has not reached the launcher of rank 0 at node0:\d+ ", printed, re.M)
    assert json.loads((out / "state.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_a_lost_host_that_comes_back_joins_again_and_the_run_is_the_same(two, shards, undisturbed, tmp_path):
    out = tmp_path / "r"
    running = [begin(host, out, shards, *ELASTIC) for host in two]
    wait_for_steps(out, 6)
    two[1].die()
    two[1].mend()
    running[1] = begin(two[1], out, shards, *ELASTIC)
    printed = [ended(process, 0, within=400) for process in running]
    assert re.search(r"^error: rank 1 of 2 \(pid \d+ on node1\) has not answered", printed[0], re.M)
    assert "continuing from step 5" in printed[0]
    assert_same_order(out, undisturbed)


@pytest.mark.extended
def test_a_lost_process_is_replaced_on_its_host_and_the_run_is_the_same(two, shards, undisturbed, tmp_path):
    out = tmp_path / "r"
    running = [begin(host, out, shards, *ELASTIC) for host in two]
    wait_for_steps(out, 6)
    trainer(running[1]).kill()
    printed = [ended(process, 0, within=400) for process in running]
    assert "continuing from step 5" in printed[0]
    assert_same_order(out, undisturbed)


def trainer(process) -> psutil.Process:
    """The process that trains, below a launcher: the parent of its data workers."""
    for one in psutil.Process(process.pid).children(recursive=True):
        if one.status() != psutil.STATUS_ZOMBIE and one.cmdline()[:3] == [sys.executable, "-u", "pretrain.py"]:
            return one
    raise AssertionError("nothing trains there")
