"""Label-efficiency curves, and the features that are kept for the next command."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from crops_fixture import mistake, run, written
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.shards.shard_set import ShardSet
from downstream.config import CurveConfig
from downstream.data.crops import find_crops
from downstream.features import embedded_crops as keeping
from downstream.reports.curve_plot import SERIES, Series
from downstream.tasks import curve as efficiency
from downstream.tasks.curve import subsets

QUICK = ("--epochs", 2, "--min_steps", 12, "--batch_size", 16, "--workers", 0)


@pytest.fixture(scope="module")
def curved(shards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("curve")
    options = ("--shards", shards, "--query", shards / "holdout", "--label", "finding", *QUICK)
    options += ("--fractions", 0.25, 1, "--draws", 2, "--lr", 1e-9, 1e-3)
    return out, run("curve", checkpoint, out, *options), options


def test_every_line_has_every_point(curved, shards):
    out, metrics, _ = curved
    assert set(metrics["balanced_accuracy"]) == {f"{s.method} {s.source}" for s in SERIES}
    for by_share in metrics["balanced_accuracy"].values():
        assert {share: len(draws) for share, draws in by_share.items()} == {"0.25": 2, "1": 1}
        assert all(0 <= score <= 1 for draws in by_share.values() for score in draws)
    assert metrics["tested"]["crops"] == len(ShardSet(shards / "holdout"))
    assert metrics["learnt_from"]["1"] == [
        {"crops": len(ShardSet(shards)), "patients": ShardSet(shards).manifest["statistics"]["patients"]}
    ]
    assert all(count["patients"] == 4 for count in metrics["learnt_from"]["0.25"])  # of 16, with 6 crops each
    assert metrics["balanced_accuracy"]["finetune trained"]["1"][0] > 0.9  # the signal is planted
    chosen = metrics["rate_or_l2"]
    assert set(chosen) == {f"{s.method} {s.source}" for s in SERIES if s.method != "knn"}
    assert chosen["finetune random"]["0.25"] == [1e-3] * 2  # of 4 patients: the middle one, of two the greater
    assert chosen["finetune random"]["1"][0] in (1e-9, 1e-3)
    assert chosen["linear pixels"]["0.25"] == [1e-2] * 2
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_the_whole_is_what_the_probes_give(command, curved, shards, checkpoint, tmp_path):
    options = ("--shards", shards, "--query", shards / "holdout", "--label", "finding", "--workers", 0)
    probed = run(command, checkpoint, tmp_path / "o", *options)["labels"]["finding"]
    for source in ("trained", "pixels"):
        assert curved[1]["balanced_accuracy"][f"{command} {source}"]["1"] == [probed[source]]


def test_a_curve_continues_where_it_was_stopped(curved, checkpoint, monkeypatch, capsys):
    out, metrics, options = curved
    lines = (out / "points.jsonl").read_text().strip().splitlines()
    assert len(lines) == 3 * len(SERIES)
    (out / "points.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:20])  # killed while writing a line
    measured = []

    def point(learner, series):
        measured.append(series)
        line = json.loads(lines[-2 if len(measured) == 1 else -1])
        return efficiency.Point(line["score"], None if series.method == "knn" else line["chosen"])

    monkeypatch.setattr(efficiency.Learner, "point", point)
    assert run("curve", checkpoint, out, *options)["balanced_accuracy"] == metrics["balanced_accuracy"]
    assert measured == list(SERIES[:2])  # fine-tuning comes last
    assert run("curve", checkpoint, out, *options)["balanced_accuracy"] == metrics["balanced_accuracy"]
    assert len(measured) == 2
    assert "earlier command" in capsys.readouterr().out
    run("curve", checkpoint, out, *options, "--seed", 1)  # another run's points are not taken for its own
    assert len(measured) > 2


def test_nothing_is_chosen_on_the_patients_that_are_tested(shards, monkeypatch):
    crops = find_crops([str(shards)], ["finding"])
    codes = np.unique(crops.labels["finding"], return_inverse=True)[1]
    patients = np.unique(crops.patients)
    tested, subset = np.isin(crops.patients, patients[:4]), np.flatnonzero(np.isin(crops.patients, patients[4:]))
    asked = []

    def train_classifier(_b, _w, _c, codes, _k, train, validation, config, *_, **_more):
        asked.append(set(crops.patients[validation]))
        assert asked[-1]
        assert not asked[-1] & set(crops.patients[train])
        assert not {*asked[-1], *crops.patients[train]} & set(patients[:4])
        assert len(config.lr) == 3
        return SimpleNamespace(model=None, lr=config.lr[1])

    def choose_l2(features, labels, groups, strengths, _seed):
        assert set(groups) == set(patients[4:])
        assert list(features[:, 0]) == list(subset)
        assert len(strengths) == 4
        return strengths[0]

    monkeypatch.setattr(efficiency, "train_classifier", train_classifier)
    monkeypatch.setattr(efficiency, "choose_l2", choose_l2)
    monkeypatch.setattr(efficiency, "predict", lambda _m, _w, _c, indices, *_: np.eye(2)[codes[indices]])
    config = CurveConfig(checkpoint="", out="", shards=["x"], label="finding")
    features = {"trained": np.arange(len(codes), dtype=float)[:, None]}
    weights = SimpleNamespace(model=None, backbone="test_resnet")
    learner = efficiency.Learner(config, weights, crops, codes, np.arange(2), features, tested, subset, None)
    for source in ("trained", "random"):
        point = learner.point(Series("finetune", source, ""))
        assert point == (1, 4e-4)
    assert asked[0] == asked[1]  # both sides choose by the same patients, among the same rates
    assert learner.point(Series("linear", "trained", "")).chosen == 0.1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 14), min_size=6, max_size=80).filter(lambda p: len(set(p)) > 4),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_subsets_are_whole_patients_and_just_enough(patients, fractions, seed):
    patients = np.array([f"p{p}" for p in patients])
    codes = np.arange(len(patients)) % 2
    tested = np.isin(patients, np.unique(patients)[:1])
    known = np.flatnonzero(~tested)
    if len(np.unique(codes[known])) < 2:
        return
    config = CurveConfig(checkpoint="", out="", shards=["x"], label="y", fractions=tuple(fractions), draws=2, seed=seed)
    found = list(subsets(config, SimpleNamespace(patients=patients), codes, tested))
    assert len(found) == sum(1 if f == 1 else 2 for f in fractions)
    for subset in found:
        chosen = set(patients[subset.crops])
        assert not chosen & set(patients[tested])
        assert set(subset.crops) == {i for i in known if patients[i] in chosen}  # whole patients
        assert len(subset.crops) >= subset.fraction * len(known) - 1e-6
        assert len(np.unique(codes[subset.crops])) == 2
        without = [subset.crops[patients[subset.crops] != patient] for patient in chosen]
        assert any(len(w) < subset.fraction * len(known) or len(np.unique(codes[w])) < 2 for w in without)


def test_mistakes_are_one_line(shards, checkpoint, tmp_path, capsys, monkeypatch):
    def said(*options):
        return mistake(
            capsys, "curve", "--checkpoint", checkpoint, "--out", tmp_path / "o", "--shards", shards, *options
        )

    assert "--fractions" in said("--label", "finding", "--fractions", "0")
    assert "--test" in said("--label", "finding", "--test", "1.5")
    assert "nothing to learn" in said("--label", "grade")
    assert "'tooth_type'" in said("--label", "tooth_type")


# Kept features


def test_features_are_kept_for_the_next_command_and_only_for_the_same(shards, checkpoint, tmp_path, capsys):
    options = ("--shards", shards, "--label", "finding", "--workers", 0)
    first = run("knn", checkpoint, tmp_path / "o", *options)
    assert "earlier command" not in capsys.readouterr().out
    assert run("knn", checkpoint, tmp_path / "o", *options) == first
    assert "earlier command" in capsys.readouterr().out
    kept = tmp_path / "o" / keeping.KEPT
    whole = kept.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"x" * 100):
        kept.write_bytes(damage)
        assert run("knn", checkpoint, tmp_path / "o", *options) == first
        assert "earlier command" not in capsys.readouterr().out
        assert kept.read_bytes()[:2] == b"PK"
    for other in (("--seed", 1), ("--mean", 0.3), ("--size", 96, 64)):
        run("knn", checkpoint, tmp_path / "o", *options, *other)
        assert "earlier command" not in capsys.readouterr().out
    weights = written(tmp_path / "other.pth", seed=4)
    run("knn", weights, tmp_path / "o", *options)
    assert "earlier command" not in capsys.readouterr().out
    assert str(shards) not in Path(kept).read_bytes().decode("latin1")
