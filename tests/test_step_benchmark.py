"""The benchmark of a step, run for real at the smallest sizes, without the peer; and its table from known figures."""

import importlib
import json
import re
import sys
from statistics import median

import pytest
import torch
from processes import ROOT, run

sys.path.append(str(ROOT / "benchmarks"))
bare_step, step_table = importlib.import_module("bare_step"), importlib.import_module("step_table")
COMMAND = [sys.executable, "benchmarks/step.py"]
SMALL = ["--backbone", "mambaout_femto", "--batch", 8, "--steps", 2, "--drop", 1, "--rounds", 2, "--threads", 1]
SMALL += ["--views.global_size", "[64,48]", "--views.local_size", "[32,32]", "--views.local_count", 2, "--no-peer"]
SMALL += ["--precision", "fp32", "--peak-tflops", 0.1]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


@pytest.mark.extended
def test_the_command_measures_a_run_and_the_bare_passes(tmp_path):
    out = tmp_path / "step"
    printed = run("--out", out, *SMALL, command=COMMAND)
    assert printed.endswith((out / "step.md").read_text())
    found = json.loads((out / "step.json").read_text())
    ours, bare = found["contenders"]
    assert [(c["name"], c["precision"]) for c in (ours, bare)] == [("ours", "fp32"), ("bare passes", "fp32")]
    for rounds in (ours["rounds"], bare["rounds"]):
        assert [len(one["seconds"]) for one in rounds] == [2, 2]
        assert all(one["bytes"] > 2e8 for one in rounds)  # torch alone holds that much
    assert all(0 <= one["waited"] < 1 for one in ours["rounds"])
    heads, _, first, second = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    told = dict(zip(heads, first, strict=True)), dict(zip(heads, second, strict=True))
    assert heads[1:] == [
        "precision", "images/s", "s a step", "ours' s / its (each round)", "data wait", "GB at the peak", "MFU"
    ]  # fmt: skip
    seconds = [[median(one["seconds"]) for one in c["rounds"]] for c in (ours, bare)]
    for row, times in zip(told, seconds, strict=True):
        assert float(row["s a step"]) == pytest.approx(median(times), rel=0.01)
        assert float(row["images/s"]) == pytest.approx(8 / median(times), rel=0.01)
        flop = found["GFLOP a sample"] * 1e9 * 8
        assert float(row["MFU"][:-1]) == pytest.approx(flop / median(times) / 0.1e12 * 100, abs=0.06)
    of_rounds = [a / b for a, b in zip(*seconds, strict=True)]
    figures = [float(number) for number in re.findall(r"[\d.]+", told[1]["ours' s / its (each round)"])]
    assert figures == pytest.approx([median(of_rounds), *of_rounds], abs=0.006)
    assert "ours / bare passes (fp32)" in printed


def rounds(*seconds: float) -> list[dict]:
    return [{"seconds": [s, s, 100 * s], "waited": 0.01, "bytes": 1e9} for s in seconds]


def test_each_aim_is_told_by_the_median_round_and_the_best_precisions():
    rows = {
        ("ours", "fp32"): rounds(4, 4.4, 4.2),
        ("ours", "bf16"): rounds(2, 2.2, 2.4),
        ("bare passes", "fp32"): rounds(4, 4, 4),
        ("bare passes", "bf16"): rounds(2, 2, 2),
        ("lightly-train", "fp32"): rounds(6, 6.6, 6.3),
        ("lightly-train", "bf16"): rounds(7, 7, 7),
    }
    assert step_table.aims(rows) == [
        "- seconds of a step, ours / bare passes (bf16): 1.10 (1.00, 1.10, 1.20); at most 1.1: met",
        "- images/s, ours / lightly-train, each at its best (bf16 and fp32): "
        "3.00 (3.00, 3.00, 2.62); at least 2.2: met",
        "- the same, both in fp32 (fp32): 1.50 (1.50, 1.50, 1.50); at least 1.6: missed",
    ]


def test_the_bare_loss_is_the_mean_over_pairs_of_different_views():
    torch.manual_seed(0)
    logits, targets = torch.randn(5 * 3, 7), torch.softmax(torch.randn(2 * 3, 7), dim=-1)
    total, pairs = 0.0, 0
    for t in range(2):
        for v in range(5):
            for image in range(3) if v != t else ():
                e = torch.exp(logits[v * 3 + image] / 0.1)
                total, pairs = total - float((targets[t * 3 + image] * torch.log(e / e.sum())).sum()), pairs + 1
    assert float(bare_step.loss(logits, targets, 3)) == pytest.approx(total / pairs, rel=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize(("more", "said"), [
    (["--rounds", 0], "--rounds are at least 1"),
    (["--backbone", "nonsense"], "backbone 'nonsense' is neither released nor"),
    (["--shards", "nowhere"], "nowhere"),
])  # fmt: skip
def test_a_mistake_is_one_line(more, said, tmp_path):
    printed = run("--out", tmp_path / "step", *SMALL, *more, command=COMMAND, code=2)
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in printed
