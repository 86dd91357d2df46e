"""One global batch over 1, 2 and 4 processes: samples, loss, KoLeo and centre of the first step are equal."""

import json
import os
import subprocess

import pytest
import torch
from processes import ENVIRONMENT, LAUNCHED, PYTHON, ROOT

from pretrain.config.schema import Config
from pretrain.models.batchnorm import exported
from pretrain.models.projection_head import proj_head
from pretrain.models.student_teacher import Network


def first_step(processes: int, shards, out, *more) -> dict:
    launcher = [PYTHON[0]] if processes == 1 else [*LAUNCHED[:-1], "--num_processes", str(processes)]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [*launcher, "tests/first_step.py", str(shards), str(out), *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_first_step_is_the_same_in_1_2_and_4_processes(shards, tmp_path):
    one, two, four = (first_step(n, shards, tmp_path / str(n)) for n in (1, 2, 4))
    pieces = first_step(2, shards, tmp_path / "pieces", "--optim.micro_batches", "4")
    assert len({row[2] for row in one["samples"]}) == 16
    for other in (two, four, pieces):
        assert other["samples"] == one["samples"]  # indices and checksums of views, in order
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["koleo"] == pytest.approx(one["koleo"], abs=1e-5)
        assert other["gradient"] == pytest.approx(one["gradient"], rel=1e-4)  # of all processes, and of all pieces
        torch.testing.assert_close(torch.tensor(other["center"]), torch.tensor(one["center"]), rtol=0, atol=1e-6)
    assert max(map(abs, one["center"])) > 1e-3  # it has moved


def test_the_buffers_that_are_saved_do_not_depend_on_the_process_that_saves():
    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(self.conv(x)).mean((2, 3))

    torch.manual_seed(0)
    ours = Network(Tiny(), proj_head(8, 16))
    torch.manual_seed(0)
    theirs = Network(Tiny(), proj_head(8, 16))
    for norm in (m for m in theirs.modules() if hasattr(m, "running_mean")):
        norm.running_mean.uniform_(5, 6)  # what another slice of the batch left there
        norm.running_var.uniform_(5, 6)
        norm.num_batches_tracked.fill_(7)
    crops = torch.randint(0, 255, (64, 16, 12), dtype=torch.uint8).numpy()
    saved = [exported(network, crops, Config()).state_dict() for network in (ours, theirs)]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
