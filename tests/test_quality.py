"""The contest of quality: a real small one, and the table from made-up scores."""

import importlib
import json
import sys

import pytest
from processes import ROOT, ended, start

sys.path.append(str(ROOT / "benchmarks"))
quality = importlib.import_module("quality")
SMALL = ["--backbone", "test_resnet", "--data.workers", "0", "--views.local_count", "2", "--label", "finding"]


def run(seed: int, value: float, name: str = "ours", minutes: float = 10) -> dict:
    of_label = {"trained": value, "random": 0.5, "pixels": 0.7, "size": 0.3}
    scores = {method: {"tooth_type": of_label} for method in ("knn", "linear")}
    return {
        "name": name,
        "minutes": minutes,
        "taken": minutes + 0.25,
        "seed": seed,
        "steps": 5,
        "crops": 320,
        "scores": scores,
    }


def test_the_table_has_means_and_deviations_over_seeds_and_the_baselines_once():
    runs = [run(0, 0.8), run(1, 0.82), run(2, 0.84), run(0, 0.6, "plain DINO"), run(0, 0.75, minutes=2.5)]
    lines = quality.table(runs, ["tooth_type"]).splitlines()
    assert "| ours | 10 | 10.2 | 320 | 3 | 0.820 ± 0.020 | 0.820 ± 0.020 |" in lines
    assert "| plain DINO | 10 | 10.2 | 320 | 1 | 0.600 | 0.600 |" in lines
    assert lines.index("| ours | 2.5 | 2.8 | 320 | 1 | 0.750 | 0.750 |") > lines.index(
        "| plain DINO | 10 | 10.2 | 320 | 1 | 0.600 | 0.600 |"
    )
    assert "| raw pixels | | | | 3 | 0.700 | 0.700 |" in lines
    assert "| random weights | | | | 3 | 0.500 | 0.500 |" in lines


@pytest.mark.extended
def test_a_contest_trains_scores_and_continues(shards, tmp_path):
    # "both cores" is one here: two threads beside other tests wait for one another for minutes
    command = ["taskset", "--cpu-list", "0", sys.executable, "benchmarks/quality.py", "--shards", shards]
    command += ["--out", tmp_path / "q"]
    command += ["--minutes", "0.01", "--seeds", "0", "--only", "ours", "plain DINO", "--batch", "8", *SMALL]
    printed = ended(start(command))
    assert "steps in 0.01 minutes: ours 20, plain DINO 20" in printed  # no fewer than a trial
    runs = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert {one["name"]: one["crops"] for one in runs} == {"ours": 160, "plain DINO": 160}
    for one in runs:
        for method in ("knn", "linear"):
            assert 0 <= one["scores"][method]["finding"]["trained"] <= 1
    assert "2 runs, 2 of them finished" in ended(start(command))
    assert "give another --out" in ended(start([*command, "--data.workers", "1"]), code=2)
