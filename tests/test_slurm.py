"""The sbatch script: what it says, and a real Slurm that stops, requeues and finishes a run on its own."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LAUNCHED, LAUNCHED_1, ROOT, logged, smoke
from slurm_here import slurm

from launch.__main__ import main
from launch.slurm import SlurmConfig, script, seconds


def written(tmp_path: Path, *arguments: object) -> str:
    path = tmp_path / "job.sbatch"
    main(["slurm", "--script", str(path), *map(str, arguments)])
    subprocess.run(["bash", "-n", path], check=True)
    return path.read_text()


def test_the_script_asks_for_one_task_a_node_and_carries_the_runs_own_options(tmp_path, capsys):
    options = ["--nodes", 4, "--processes", 8, "--partition", "gpu", "--seeds", 0, 3, "--recipe", "smoke"]
    text = written(
        tmp_path, *options, "--data.shards", "a b", "c", "--data.batch_size", 64, "--out", tmp_path / "runs" / "v"
    )
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", text, re.M))
    assert asked["nodes"] == "4"
    assert asked["ntasks-per-node"] == "1"
    assert asked["gpus-per-node"] == "8"
    assert asked["partition"] == "gpu"
    assert asked["array"] == "0-1"
    assert asked["signal"] == "B:USR1@300"
    assert "requeue" in asked
    assert "--num_machines 4 --num_processes 32" in text
    assert "seeds=(0 3)" in text
    assert "--recipe smoke --data.shards 'a b' c --data.batch_size 64 --out" in text
    assert (tmp_path / "runs" / "v.slurm").is_dir()
    assert "submit it with: sbatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--time", "soon"], "--time is 'soon'; write minutes, H:MM:SS"),
        (["--time", "24:00"], "--time is '24:00'; write minutes, H:MM:SS"),  # to Slurm these are minutes
        (["--time", "6", "--grace", "300"], "leaves 60 s a try"),
        (["--nodes", "0"], "--nodes is 0; give from 1 to"),
        (["--grace", "100000", "--time", "7-0"], "--grace is 100000; give from 1 to 65535"),
        (["--port", "65530", "--seeds", *"0123456"], "each of 7 seeds takes the next"),
        (["--seeds", "0", "0"], "--seeds are to be different numbers"),
        (["--seeds", "4294967296"], "--seeds are to be different numbers"),
        (["--memory", "lots"], "--memory is 'lots'; write it as Slurm does"),
        (["--setup", "if true"], "--setup is no command that bash can read"),
        (["--recipe", "small-cnn"], "no shards given"),
        (["--backbone", "nonsense"], "backbone 'nonsense' is neither released"),
        (["--nodes", "4", "--processes", "8", "--data.batch_size", "30"], "does not divide over 32 processes"),
        (["--optim.lr", "-5"], "optim.lr is -5"),
        (["--script", "none/job"], "cannot write none/job (No such file or directory)"),
        (["--out", "/proc/none/r"], "cannot write /proc/none"),
        (["--resume", "never"], "must continue its run"),
        (["--recipe", "none"], "there is no recipe 'none'"),
    ],
)
def test_a_mistake_is_told_before_the_job_waits_for_hours(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["slurm", "--script", str(tmp_path / "job"), "--out", str(tmp_path / "r"), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


def test_values_that_would_change_the_script_are_refused():
    for wrong in ({"name": "a\nrm"}, {"partition": "x;y"}):
        with pytest.raises(ValueError, match="letters, digits"):
            script(SlurmConfig(**wrong), [], "/runs/r", "/code", "/")
    wrong = {("/my run", "/code", "/"): "--out", ("/r", "/my code", "/"): "repository", ("/r", "/c", "/my x"): "folder"}
    for paths, said in wrong.items():
        with pytest.raises(ValueError, match=said):
            script(SlurmConfig(), [], *paths)


def test_time_limits_are_read_as_slurm_reads_them():
    read = {"3": 180, "0:10:05": 605, "24:00:00": 86400, "1-0": 86400, "2-01:30": 178200, "1-00:00:01": 86401}
    assert {text: seconds(text) for text in read} == read
    assert [seconds(text) for text in ("", "10:30", "1-", "x", "1:2:3")] == [None] * 5


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_is_requeued_and_finishes_as_if_undisturbed(shards, tmp_path):
    """On Debian's slurmctld, slurmd and munge (`apt-get install slurmctld slurmd slurm-client munge`)."""
    steps = 1500  # Slurm looks at limits twice a minute: it must find the run at work
    run = ["--recipe", "smoke", "--data.shards", shards, "--steps", steps]
    out = tmp_path / "r"
    setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} OMP_NUM_THREADS=1"
    job = ["--gpus", "false", "--cpus", 1, "--time", 3, "--grace", 60, "--setup", setup]
    written(tmp_path, *job, *run, "--out", out)
    with slurm() as cluster:
        code, said = cluster.run(["sbatch", str(tmp_path / "job.sbatch")])
        assert code == 0, said
        log = next(iter_until(lambda: list((tmp_path / "r.slurm").glob("*.log")), 400))
        list(iter_until(lambda: out.joinpath("metrics.jsonl").exists(), 400))
        # The signal that Slurm sends before the limit, without the minutes until then.
        assert cluster.run(["scontrol", "update", "JobId=1", "TimeLimit=1"])[0] == 0
        state = out / "state.json"
        list(iter_until(lambda: state.exists() and re.search("stopped|finished", state.read_text()), 600))
        assert '"stopped"' in state.read_text(), "the run finished before the signal: give it more steps"
        list(iter_until(lambda: "PENDING" in cluster.run(["squeue", "-h", "-o", "%T"])[1], 400))
        assert cluster.run(["scontrol", "update", "JobId=1", "TimeLimit=30"])[0] == 0  # what it was, so to say
        list(iter_until(lambda: state.exists() and '"finished"' in state.read_text(), 600))
    said = log.read_text()
    assert "try 1, on node0" in said
    assert "try 2, on node0" in said
    assert "stopped after step" in said
    smoke(tmp_path / "whole" / "r", shards, "--steps", steps, command=LAUNCHED_1)
    assert logged(out) == logged(tmp_path / "whole" / "r")


@pytest.mark.extended
def test_an_array_of_jobs_on_two_nodes_is_submitted_and_each_goes_on_by_itself(shards, tmp_path):
    """`--submit`, `--nodes 2` and `--seeds` for real; one of the seeds is told to leave."""
    steps, seeds, out = 400, (3, 5), tmp_path / "r"
    setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT} OMP_NUM_THREADS=1"
    job = ["--nodes", 2, "--gpus", "false", "--cpus", 1, "--time", 30, "--grace", 60, "--setup", f"'{setup}'"]
    job += ["--seeds", *seeds, "--script", tmp_path / "job.sbatch", "--submit", "true"]
    run = ["--recipe", "smoke", "--data.shards", shards, "--steps", steps, "--out", out]
    with slurm(2) as cluster:
        code, said = cluster.run([sys.executable, "-m", "launch", "slurm", *map(str, [*job, *run])], 400)
        assert code == 0, said
        assert "Submitted batch job 1" in said
        disturbed, other = (out / f"seed-{seed}" for seed in seeds)
        list(iter_until(lambda: (disturbed / "metrics.jsonl").exists(), 400))
        # What `--signal=B:USR1@60` sends to one of the jobs, 29 minutes early.
        assert cluster.run(["scancel", "--batch", "--signal=USR1", "1_0"])[0] == 0
        list(iter_until(lambda: '"stopped"' in (disturbed / "state.json").read_text(), 400))
        list(iter_until(lambda: "1_0 PENDING" in cluster.run(["squeue", "-h", "-r", "-o", "'%i %T'"])[1], 60))
        for folder in (disturbed, other):
            state = folder / "state.json"
            list(iter_until(lambda state=state: state.exists() and '"finished"' in state.read_text(), 900))
    tries = [(tmp_path / "r.slurm" / f"pretrain-1_{i}.log").read_text().count("on node[0-1]") for i in (0, 1)]
    assert tries == [2, 1]
    for seed in seeds:
        smoke(tmp_path / f"{seed}" / "r", shards, "--steps", steps, "--seed", seed, command=LAUNCHED)
        assert logged(out / f"seed-{seed}") == logged(tmp_path / f"{seed}" / "r")


def iter_until(found, seconds: float):
    """Wait until `found()` is true, and give what it found."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)
    yield from result if isinstance(result, list) else [result]
