"""Commands of `downstream` as a launcher's two processes: what goes wrong is told once, and nobody waits for ever."""

import subprocess

import numpy as np
import pytest
from crops_fixture import draw
from PIL import Image
from processes import ENVIRONMENT, LAUNCHER, ROOT

pytestmark = pytest.mark.slow


def errors(*arguments, **environment):
    """The lines that begin with `error:` of a launched command that fails, and all it printed."""
    command = [*LAUNCHER, "launch/cpu-2.yaml", *map(str, arguments)]
    given = ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    return [line for line in said.splitlines() if line.startswith("error:")], said


@pytest.mark.parametrize(
    ("label", "options"), [("none", ()), ("finding", ("--batch_size", 9)), ("finding", ("--folds", "x"))]
)
def test_a_mistake_is_told_once(label, options, shards, checkpoint, tmp_path):
    on = ("--checkpoint", checkpoint, "--out", tmp_path / "o", "--shards", shards, "--label", label, "--workers", 0)
    lines, said = errors("-m", "downstream", "finetune", *on, *options)
    assert len(lines) == 1, said
    assert {"none": "no crop carries", "finding": "folds" if "--folds" in options else "2 processes"}[label] in lines[0]


@pytest.mark.parametrize("struck", ["SIGSTOP", "SIGKILL"])
def test_nobody_waits_for_a_first_process_that_is_lost_in_packing(struck, checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "crops" / name).mkdir(parents=True)
        Image.fromarray(draw(rng, name == "a")).save(tmp_path / "crops" / name / "1.png")
    on = ("--checkpoint", checkpoint, "--out", tmp_path / "o", "--shards", tmp_path / "crops", "--label", "class")
    lines, said = errors(
        "tests/two_downstream.py", "finetune", *on, STRUCK_BY=struck, XDG_CONFIG_HOME=str(tmp_path / "config")
    )
    if struck == "SIGKILL" and not lines:  # the launcher's TERM came before the look at the other
        assert "stopped while at work; the same command goes on" in said
        return
    assert len(lines) == 1, said
    assert lines[0].startswith("error: rank 0 of 2 (pid ")
    assert ("has died" if struck == "SIGKILL" else "has not answered for") in lines[0]
    assert "last seen at work; the same command goes on" in lines[0]
