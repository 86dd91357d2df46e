"""The benchmark of averaged and whole feature maps: its averaged row is what `downstream knn` measures."""

import importlib
import re
import sys

import pytest
from processes import ROOT

from downstream.config import KnnConfig
from downstream.features.weights import load_weights
from downstream.tasks import probe

sys.path.append(str(ROOT / "benchmarks"))
pooling = importlib.import_module("pooling")


def test_averaged_and_pixels_are_those_of_the_knn_command(shards, checkpoint, tmp_path, monkeypatch, capsys):
    given = ["--checkpoint", str(checkpoint), "--shards", str(shards), "--label", "finding"]
    monkeypatch.setattr(sys, "argv", ["pooling.py", *given])
    pooling.main()
    rows = dict(re.findall(r"^\| (.*?) \| ([\d.]+) \|$", capsys.readouterr().out, re.M))
    config = KnnConfig(
        checkpoint=str(checkpoint),
        out=str(tmp_path),
        shards=[str(shards)],
        query=[str(shards / "holdout")],
        label=["finding"],
    )
    scores = probe.knn(config, load_weights(config))["labels"]["finding"]
    for row, kind in (("trained, the last map averaged", "trained"), ("random, the last map averaged", "random")):
        assert float(rows[f"{row} (what a backbone gives)"]) == pytest.approx(scores[kind], abs=0.001)
    assert float(rows["raw pixels"]) == pytest.approx(scores["pixels"], abs=0.001)
    assert len(rows) == 9
    monkeypatch.setattr(sys, "argv", ["pooling.py", *given[:-1], "nothing"])
    with pytest.raises(SystemExit):
        pooling.main()
    assert re.match(r"error: .*nothing", capsys.readouterr().err)
