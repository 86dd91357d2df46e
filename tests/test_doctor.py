"""`python -m launch doctor`: its table on runs that start, and each check where something is amiss."""

import errno
import json
import re

import pytest
import torch
from processes import LAUNCHED, complete_lines, run, smoke

from launch import checks

DOCTOR = [*LAUNCHED[:-1], "-m", "launch"]


def test_every_failing_row_says_what_to_do(tmp_path):
    node = {"python": "3.11", "torch": "2.14"}
    assert "torch 2.13, 2.14" in checks.versions_row([node, node | {"torch": "2.13"}]).found
    failing = [
        checks.versions_row([node, node | {"torch": "2.13"}]),
        checks.network_row(seconds=0.4, numbers=10**7, step_seconds=0.5),
        checks.disk_row(free=10**9, needed=10**9),
        checks.data_row(crops=100, alone=500, eaten=50, waited=0.4),
        checks.data_row(crops=100, alone=50, eaten=50, waited=0.01),
        checks.storage_row(tmp_path / "absent", rank=0),
    ]
    assert all(row.advice for row in failing)
    assert failing[-1].advice == "put OUT where every node sees it"
    assert checks.versions_row([node, {"python": "3.11"}]).found == "torch 2.14, missing"
    assert checks.versions_row([{"python": "3.11"}, node]).found == "torch 2.14, missing"
    shown = checks.table(failing)
    assert shown.count("FAIL") == len(failing)
    assert shown.count("->") == len(failing)
    well = [
        checks.versions_row([node, node]),
        checks.network_row(0.01, 10**7, 0.5),
        checks.network_row(0.0, 10**7, 0.5),
        checks.disk_row(130_000_000, 10**8),
        checks.data_row(100, 500, 50, 0.01),
        checks.storage_row(tmp_path, 0),
        checks.devices_row(torch.device("cpu"), 1),
    ]
    assert not any(row.advice for row in well)


@pytest.mark.slow
def test_two_processes_are_examined_and_nothing_is_left(shards, tmp_path):
    settings = ["doctor", "--recipe", "smoke", "--data.shards", shards, "--out", tmp_path / "runs" / "r"]
    printed = run(*settings, command=DOCTOR)
    for row in ("2 x cpu on 1 node(s)", "backend gloo", "read back by 2 process(es)", "MB of gradients summed in"):
        assert row in printed
    assert "FAIL" not in printed
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_no_matter_of_rights(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    row = checks.storage_row(tmp_path, rank=0)
    assert (row.found, row.advice) == ("cannot write beside OUT: no space", "make room there")


@pytest.mark.slow
def test_what_cannot_be_is_a_row_below_those_before_it(shards, tmp_path):
    """What a process finds by itself, and what the ten steps end with."""
    out = ["--recipe", "smoke", "--out", tmp_path / "r"]
    table = run("doctor", *out, "--data.shards", tmp_path / "none", command=DOCTOR, code=1)
    assert "ok    shared storage" in table
    assert re.search(rf"FAIL  data +a run would end at its start\n +-> no shards at {tmp_path / 'none'}", table)
    table = run("doctor", *out, "--data.shards", shards, "--backbone", "nonsense", command=DOCTOR, code=1)
    assert re.search(r"FAIL  ten steps +a run would end at its start\n +-> backbone 'nonsense' is neither", table)


@pytest.mark.extended
def test_the_predicted_rate_is_that_of_the_run(shards, tmp_path):
    """Within a factor of two: the machine is shared, and a speed has no place in a test that must not lie."""
    settings = ["--recipe", "smoke", "--data.shards", shards, "--out", tmp_path / "r", "--steps", 30]
    printed = run("doctor", *settings, command=[DOCTOR[0], "-m", "launch"])
    predicted = float(re.search(r"([\d.]+) crops/s, 30 steps in", printed)[1])
    smoke(tmp_path / "r", shards, "--steps", 30)
    rates = [json.loads(line)["images_per_s"] for line in complete_lines(tmp_path / "r")[3:]]
    assert 0.5 < predicted / (len(rates) / sum(1 / rate for rate in rates)) < 2
