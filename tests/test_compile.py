"""--optim.compile: the same training to rounding, the same files, and one line where it cannot be."""

import dataclasses

import pytest
import torch
from processes import ENVIRONMENT, PYTHON, logged, smoke, weights
from test_step import BATCH, STEPS, configuration, trainer_of

from pretrain.checkpoints.weights_io import resume_files, step_of
from pretrain.config.schema import ConfigError
from pretrain.method.compilation import compiler_mistakes
from pretrain.method.step_rates import rates_at
from pretrain.models.batchnorm import exported

SHORT = ["--steps", 6, "--checkpoint_every", 3, "--data.batch_size", 8, "--data.workers", 0, "--eval.every", 3]
SHORT += ["--eval.label", "finding"]
SHORT += ["--precision", "fp32"]  # in bf16, which auto takes where a CPU has it, fused kernels round by over 1 %
COMPILE = ["--optim.compile", "true"]


def steps(compile: bool, micro_batches: int, monkeypatch) -> tuple[list, dict, dict]:
    """Figures of each step of a tiny network, its trainer's state, and what it exports."""
    config = configuration("sinkhorn", micro_batches)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, compile=compile))
    trainer = trainer_of(config, monkeypatch)
    torch.manual_seed(1)
    figures = []
    for number in range(STEPS):
        views = [
            torch.randint(0, 256, (n * BATCH, 1, *size), dtype=torch.uint8) for n, size in ((2, (16, 12)), (3, (8, 6)))
        ]
        figures.append(trainer.train_step(views, rates_at(config, number, STEPS))["measured"].tolist())
    crops = torch.randint(0, 256, (8, 16, 12), dtype=torch.uint8).numpy()
    return figures, trainer.state_dict(), exported(trainer.teacher, crops, config).state_dict()


@pytest.mark.parametrize(
    "micro_batches", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.extended)]
)
def test_compiled_steps_are_the_eager_ones_to_rounding(micro_batches, monkeypatch):
    """In one graph for each network, crop size and mode: a break or a fall back to eager would be no compilation."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = (steps(compile, micro_batches, monkeypatch) for compile in (False, True))
    assert not torch._dynamo.utils.counters["graph_break"]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - 1  # the trial's
    assert graphs == (2 if micro_batches == 1 else 3)
    torch.testing.assert_close(torch.tensor(compiled[0]), torch.tensor(eager[0]), rtol=1e-4, atol=1e-4)
    for mine, theirs in ((compiled[1][part], eager[1][part]) for part in ("student", "teacher")):
        assert list(mine) == list(theirs)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(compiled[2], eager[2], rtol=1e-3, atol=1e-3)


def test_no_compiler_is_one_line_before_training(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "CXX", "no-such-compiler")
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    printed = smoke(tmp_path / "run", shards, *SHORT, *COMPILE, command=PYTHON, code=2)
    assert printed.strip().splitlines()[-1].startswith("error: torch.compile does not work here on cpu (")
    assert "no-such-compiler" in printed
    assert "leave --optim.compile out" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_only_errors_of_the_compiler_are_told_as_such():
    with pytest.raises(ZeroDivisionError), compiler_mistakes("vit"):
        1 / 0  # noqa: B018
    broken = torch.compile(lambda x: x + 1, backend=lambda *_: 1 / 0)
    said = r"backbone 'vit' .*division by zero.*--optim.compile"
    with pytest.raises(ConfigError, match=said) as raised, compiler_mistakes("vit"):
        broken(torch.zeros(1))
    assert "\n" not in str(raised.value)


@pytest.mark.extended
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])  # larger ones compile for minutes
def test_a_compiled_run_trains_saves_and_continues_as_an_eager_one(backbone, shards, tmp_path):
    """Scores on the way, exports and checkpoints included; the compiled run's middle is continued without compiling."""
    more = [*SHORT, "--backbone", backbone]
    smoke(tmp_path / "eager" / "run", shards, *more, command=PYTHON)
    smoke(tmp_path / "compiled" / "run", shards, *more, *COMPILE, command=PYTHON)
    expected, compiled = weights(tmp_path / "eager" / "run"), weights(tmp_path / "compiled" / "run")
    assert list(compiled) == list(expected)
    torch.testing.assert_close(compiled, expected, rtol=1e-2, atol=1e-3)
    step_3 = next(p for p in resume_files(tmp_path / "compiled" / "run" / "checkpoints") if step_of(p) == 3)
    printed = smoke(tmp_path / "compiled" / "run", shards, *more, "--resume", step_3)
    assert "compile was True, now False" in printed
    for name in ("eager", "compiled"):
        assert [line["step"] for line in logged(tmp_path / name / "run")] == list(range(6))
    for mine, theirs in zip(logged(tmp_path / "compiled" / "run"), logged(tmp_path / "eager" / "run"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2)
