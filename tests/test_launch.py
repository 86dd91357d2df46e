"""The configurations of launch/: read by Accelerate itself, and started as far as CPUs go."""

import json
import re
import shlex

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from processes import LAUNCHED, LAUNCHER, ROOT, smoke

from pretrain.launch_check import mistake_at_start

FILES = sorted((ROOT / "launch").glob("*.yaml"))
TABLE = (ROOT / "launch" / "README.md").read_text()
COMMANDS = re.findall(r"`(?:ACCELERATE_USE_CPU=true )?accelerate launch ((?:--\S+ \S+ )*pretrain\.py)`", TABLE)
STEP = ("--steps", 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration_and_a_command_of_the_readme_uses_it(path):
    load_config_from_file(str(path))  # raises for a key it does not know
    assert any(f"launch/{path.name}" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_accelerate_understands_every_command_of_the_readme(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    given, _, _ = _validate_launch_command(launch_command_parser().parse_args(shlex.split(command)))
    asked = re.search(r"--num_processes (\d+)", command)
    several = asked is not None
    assert bool(given.multi_gpu) == several  # what decides between torchrun and a single process
    if several:
        assert given.num_processes == int(asked[1])
    if "nodes.yaml" in command:
        assert (given.num_machines, given.main_process_ip, given.main_process_port) == (2, "node1", 29500)
        assert not given.same_network  # else the address would not reach c10d
    assert not given.cpu


def test_the_launcher_that_starts_one_process_of_two_is_found_out(shards, tmp_path):
    command = [*LAUNCHER[:-1], "--cpu", "--num_processes", "2", "pretrain.py"]
    printed = smoke(tmp_path / "r", shards, *STEP, command=command, code=1)  # 1: Accelerate's for our 2
    assert re.search(r"^error: accelerate launch was asked for several processes and started one", printed, re.M)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_cpu_configurations_start_as_many_processes_as_they_say(processes, shards, tmp_path):
    one = [*LAUNCHER, "launch/cpu.yaml", "pretrain.py"]
    command = one if processes == 1 else [*LAUNCHED[:-1], "--num_processes", str(processes), "pretrain.py"]
    printed = smoke(tmp_path / "r", shards, *STEP, command=command)
    assert f"on {processes} x cpu" in printed
    assert json.loads((tmp_path / "r" / "state.json").read_text())["state"] == "finished"


NODES = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
LEFT = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "processes", "said"),
    [
        ({}, 1, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, None),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, 1, None),  # somebody's shell; no launcher was asked for anything
        (LEFT | {"RANK": "0", "WORLD_SIZE": "1"}, 1, None),  # torchrun with one process
        (LEFT | {"RANK": "1", "WORLD_SIZE": "4"}, 4, None),
        (LEFT, 1, "asked for several processes and started one"),
        (LEFT | {"RANK": "1", "WORLD_SIZE": "4"}, 1, "started 4 processes, but each trains alone"),
        (NODES | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, 2, "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        (NODES | {"TORCHELASTIC_USE_AGENT_STORE": "False"}, 2, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, 1, "srun started 4 tasks"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "RANK": "3", "WORLD_SIZE": "8"}, 8, None),  # ours
    ],
)
def test_fewer_processes_than_asked_for_are_told_by_what_launchers_leave(environment, processes, said):
    found = mistake_at_start(environment, processes)
    assert (said in found) if said else not found
