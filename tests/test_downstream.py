"""The weights in use: k-NN, linear probe, embeddings, export; on small real shards and checkpoints."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from crops_fixture import SIZE, TINY, lively, mistake, run, written
from hypothesis import given, settings
from hypothesis import strategies as st
from released import released
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from augment import fit
from data_shards.shards.shard_set import ShardSet
from downstream import __main__ as main_module
from downstream.config import CropsConfig
from downstream.exporters import export
from downstream.tasks import probe
from pretrain import build_backbone
from pretrain.evaluation.embed import unit
from pretrain.evaluation.knn import knn_over_folds

ROOT = Path(__file__).parent.parent

# k-NN and the linear probe


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_a_planted_signal_is_found_and_a_coin_is_not(command, shards, checkpoint, tmp_path, capsys):
    metrics = run(command, checkpoint, tmp_path / "o", "--shards", shards, "--label", "finding", "category")
    assert metrics["command"] == command
    convention = {"backbone": TINY, "size": [64, 48], "mean": 0.4, "std": 0.2, "assumed": []}
    assert metrics["weights"] == convention
    planted, coin = metrics["labels"]["finding"], metrics["labels"]["category"]
    assert planted["classes"] == ["blotches", "stripes"]
    assert (planted["crops"], planted["chance"]) == (len(ShardSet(shards)), 0.5)
    assert planted["patients"] == ShardSet(shards).manifest["statistics"]["patients"]
    assert planted["trained"] > 0.95 < planted["random"]
    assert planted["size"] == 0.5  # all crops are of one size
    for kind in ("trained", "random", "pixels"):
        assert 0.3 < coin[kind] < 0.7
    shown = capsys.readouterr().out
    assert f"{planted['trained']:.3f}" in shown
    assert "not stated" not in shown


def test_knn_is_what_an_independent_computation_gives(shards, checkpoint, tmp_path):
    options = (
        "--shards",
        shards,
        "--query",
        shards / "holdout",
        "--label",
        "category",
        "--neighbours",
        5,
        "--features",
        "pooled",
    )
    found = run("knn", checkpoint, tmp_path / "knn", *options)["labels"]["category"]
    sides = []
    for name, folder in (("bank", shards), ("query", shards / "holdout")):
        run("embed", checkpoint, tmp_path / name, "--shards", folder)
        labels = np.array([ShardSet(folder).meta(i)["category"] for i in range(len(ShardSet(folder)))])
        sides.append((np.load(tmp_path / name / "features.npy"), labels))
    (bank, labels), (queries, truth) = sides
    nearest = np.argsort(cdist(queries, bank, "cosine"), axis=1)[:, :5]
    predicted = np.where((labels[nearest] == "heads").mean(1) > 0.5, "heads", "tails")
    recalls = [(predicted[truth == name] == name).mean() for name in ("heads", "tails")]
    assert found["trained"] == pytest.approx(np.mean(recalls), abs=1e-4)
    assert found["crops"] == len(truth)

    options = ("--shards", shards, "--label", "category", "--neighbours", 5, "--features", "pooled")
    folds = run("knn", checkpoint, tmp_path / "folds", *options)
    patients = np.array([ShardSet(shards).meta(i)["patient"] for i in range(len(labels))])
    expected = knn_over_folds(unit(bank), labels, patients, 5, 5)
    assert folds["labels"]["category"]["trained"] == pytest.approx(expected, abs=1e-4)


def test_folds_and_patients_are_those_that_there_are(shards, checkpoint, tmp_path, capsys):
    """Shards that others made state no patient, and more folds than patients cannot be."""
    found = run("knn", checkpoint, tmp_path / "o", "--shards", shards, "--label", "finding", "--folds", 50)
    patients = ShardSet(shards).manifest["statistics"]["patients"]
    assert (found["protocol"], found["warnings"]) == (f"{patients} patient-disjoint folds", [])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with tarfile.open(foreign / "a.tar", "w") as tar:
        for i in range(12):
            fields = json.dumps({"finding": ShardSet(shards).meta(i)["finding"]}).encode()
            for name, raw in ((f"{i}.png", ShardSet(shards).image_bytes(i)), (f"{i}.json", fields)):
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    found = run("knn", checkpoint, tmp_path / "f", "--shards", foreign, "--label", "finding", "--neighbours", 3)
    assert found["warnings"] == [
        "12 of 12 crops state no patient, so each counts as one, and no score here is known to be of new patients"
    ]
    assert "warning: 12 of 12 crops state no patient" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [".", "/"])
def test_a_folder_is_no_checkpoint(wrong, shards, tmp_path, capsys):
    said = mistake(capsys, "embed", "--checkpoint", wrong, "--shards", shards, "--out", tmp_path / "o")
    assert "checkpoint" in said


def test_crops_without_the_label_are_left_out(shards, checkpoint, tmp_path):
    metrics = run("knn", checkpoint, tmp_path / "o", "--shards", shards, "--label", "severity", "finding")
    carriers = sum("severity" in ShardSet(shards).meta(i) for i in range(len(ShardSet(shards))))
    assert (metrics["labels"]["severity"]["crops"], carriers) == (carriers, len(ShardSet(shards)) // 2)
    assert metrics["labels"]["finding"]["crops"] == len(ShardSet(shards))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=40).filter(lambda p: len(set(p)) > 3), st.integers(0, 5))
def test_nothing_is_learnt_from_the_patients_that_are_tested(patients, seed):
    patients = np.array(patients)
    features = np.stack([patients, np.arange(len(patients))], 1).astype(float)
    labels = np.array(["a", "b"])[np.arange(len(patients)) % 2]
    seen = []

    def classify(train, train_labels, train_patients, queries):
        assert set(train[:, 0]) == set(train_patients)
        assert not set(train[:, 0]) & set(queries[:, 0])
        assert list(train_labels) == list(labels[train[:, 1].astype(int)])
        seen.extend(queries[:, 1])
        return np.full(len(queries), "a")

    fold = probe.patient_folds(patients, 4, seed)
    probe.score("x", {"trained": features}, labels, patients, fold, classify)
    assert sorted(seen) == list(range(len(patients)))
    seen.clear()
    one_side = np.where(np.isin(patients, np.unique(patients)[:2]), 0, -1)
    probe.score("x", {"trained": features}, labels, patients, one_side, classify)
    assert sorted(seen) == list(np.flatnonzero(one_side == 0))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "fit_predict", lambda f, y, q, strength: classify(f, y, np.unique(f[:, 0]), q))
        assert probe.choose_l2(features, labels, patients, (0.1, 0.01), seed) == 0.1


@pytest.mark.parametrize(("seed", "strength"), [(0, 0.1), (1, 1e-2), (2, 1e-3)])
def test_logistic_regression_reaches_the_optimum(seed, strength):
    rng = np.random.default_rng(seed)
    n, c, k = 150, 6, 3
    features, codes = rng.normal(size=(n, c)), rng.integers(0, k, n)
    features[:, 0] += codes

    def objective(flat):
        weight, bias = flat[: k * c].reshape(k, c), flat[k * c :]
        logits = features @ weight.T + bias
        log_sum = np.logaddexp.reduce(logits, axis=1)
        return (log_sum - logits[np.arange(n), codes]).mean() + strength / 2 * (weight**2).sum()

    best = minimize(objective, np.zeros(k * c + k), tol=1e-10)
    weight, bias = probe.logistic_regression(features, codes, k, strength)
    assert objective(np.concatenate([weight.ravel(), bias])) == pytest.approx(best.fun, abs=1e-5)
    assert weight == pytest.approx(best.x[: k * c].reshape(k, c), abs=5e-3)


def test_the_linear_probe_does_not_depend_on_the_features_scale():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(80, 5)), rng.choice(["a", "b", "c"], 80)
    features[:, 0] += labels == "a"
    scaled = features * [1, 1e-3, 1e3, 7, 1] + [5, 0, -1e3, 0, 0]
    first = probe.fit_predict(features[:60], labels[:60], features[60:], 0.01)
    assert list(first) == list(probe.fit_predict(scaled[:60], labels[:60], scaled[60:], 0.01))


# Embeddings


def test_embeddings_are_the_backbones_output_with_their_ids(shards, checkpoint, tmp_path):
    metrics = run("embed", checkpoint, tmp_path / "e", "--shards", shards, shards / "holdout", "--batch-size", 7)
    features = np.load(tmp_path / "e" / "features.npy", allow_pickle=False)
    keys = (tmp_path / "e" / "keys.txt").read_text().splitlines()
    sets = [ShardSet(shards), ShardSet(shards / "holdout")]
    assert keys == [s.meta(i)["id"] for s in sets for i in range(len(s))]
    assert (len(keys), features.dtype) == (len(features), np.float32)
    backbone = build_backbone(TINY).eval()
    backbone.load_state_dict(torch.load(checkpoint, weights_only=True)["backbone"])
    last = fit(sets[1].image(len(sets[1]) - 1), SIZE)
    with torch.no_grad():
        expected = backbone((torch.from_numpy(last)[None, None] / 255 - 0.4) / 0.2)[0].numpy()
    assert features[-1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert metrics["features"] == features.shape[1]


# Export


def exported_alike(name, tmp_path, size, make=written):
    """Export a backbone, load it through timm as another program would, and compare."""
    path = make(tmp_path / f"{name}.pth", name, size)
    metrics = run("export", path, tmp_path / "x")
    assert metrics["max_difference"] == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
    same = timm.create_model(
        f"local-dir:{tmp_path / 'x'}", pretrained=True, in_chans=1, num_classes=0, features_only=True
    ).eval()
    backbone = build_backbone(name).eval()
    backbone.load_state_dict(torch.load(path, weights_only=True)["backbone"])
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        maps = model(image)[-1]
        assert torch.equal(maps, same(image)[-1])
        assert torch.equal(maps.mean((1, 2) if "mamba" in name else (2, 3)), backbone(image))
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, *size]
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0.4], [0.2])
    assert config["num_features"] == backbone.num_features


@pytest.mark.parametrize("name", [TINY, "test_vit"])
def test_timm_loads_the_export(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # its graphs are tried in test_export.py
    exported_alike(name, tmp_path, (160, 160) if name == "test_vit" else SIZE)


@pytest.mark.parametrize("name", released())
def test_timm_loads_the_export_of_every_release(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    exported_alike(name, tmp_path, SIZE, lively)


@pytest.mark.parametrize("damage", ["value", "key"])
def test_an_export_that_differs_is_refused(damage, checkpoint, tmp_path, capsys, monkeypatch):
    honest = export.plain_keys

    def wrong(*arguments):
        tensors = honest(*arguments)
        if damage == "value":
            tensors["layer4.0.conv1.weight"] = tensors["layer4.0.conv1.weight"] * 1.001
        else:
            del tensors["layer4.0.conv1.weight"]  # timm itself would say nothing
        return tensors

    monkeypatch.setattr(export, "plain_keys", wrong)
    said = mistake(capsys, "export", "--checkpoint", checkpoint, "--out", tmp_path / "x")
    assert TINY in said
    assert "differ" in said
    assert not (tmp_path / "x" / "config.json").exists()
    assert not (tmp_path / "x" / "metrics.json").exists()


# Weights and mistakes


def test_the_backbone_is_inferred_and_what_is_assumed_is_said(tmp_path, shards, capsys):
    path = written(tmp_path / "w.pth", "mambaout_femto")
    path.with_suffix(".json").unlink()
    metrics = run("embed", path, tmp_path / "o", "--shards", shards / "holdout", "--size", 64, 48)
    assert metrics["weights"] == {
        "backbone": "mambaout_femto",
        "size": [64, 48],
        "mean": 0.5,
        "std": 0.25,
        "assumed": ["mean", "std"],
    }
    assert "assumed: mean 0.5, std 0.25" in capsys.readouterr().out


def test_options_win_over_facts(checkpoint, shards, tmp_path):
    options = ("--shards", shards / "holdout", "--size", "96", "64", "--mean", "0.1", "--std=0.3")
    metrics = run("embed", checkpoint, tmp_path / "o", *options)
    assert metrics["weights"] == {"backbone": TINY, "size": [96, 64], "mean": 0.1, "std": 0.3, "assumed": []}


def test_mistakes_are_one_line(checkpoint, shards, tmp_path, capsys):
    def said(command, *options, at=checkpoint):
        return mistake(capsys, command, "--checkpoint", at, "--out", tmp_path / "o", *options)

    on = ("--shards", shards)
    line = said("knn", *on, "--label", "tooth_type")
    assert "'tooth_type'" in line
    assert "finding" in line
    assert "nowhere" in said("knn", "--shards", tmp_path / "nowhere", "--label", "finding")
    for command in ("knn", "linear", "finetune"):
        assert "share 16 patients" in said(command, *on, "--query", shards, "--label", "finding")
    assert "no checkpoint" in said("embed", *on, at=tmp_path / "none.pth")
    assert "does not fit" in said("embed", *on, "--backbone", "resnet18")
    assert "near_resnet" in said("embed", *on, "--backbone", "near_resnet")
    assert "--folds is 1" in said("knn", *on, "--label", "finding", "--folds", "1")
    assert "--std is 0.0" in said("embed", *on, "--std", "0")
    assert "'label'" in said("embed", *on, "--label", "finding")
    assert "label" in said("finetune", *on)
    assert "nothing to learn" in said("finetune", *on, "--label", "grade")
    for command in ("knn", "linear"):
        assert "nothing to tell apart" in said(command, *on, "--label", "finding", "grade")
    assert "knn" in mistake(capsys, "probe")
    broken = written(tmp_path / "broken.pth")
    broken.with_suffix(".json").write_text('{"backbone": "resnet18"}')
    assert "broken.json" in said("embed", *on, at=broken)
    broken.with_suffix(".json").unlink()
    assert "none of the released backbones" in said("embed", *on, at=broken)
    assert not (tmp_path / "o" / "metrics.json").exists()


def test_a_process_ends_with_one_line_and_exit_2(checkpoint, tmp_path):
    options = ("--checkpoint", checkpoint, "--shards", tmp_path, "--label", "x", "--out", tmp_path / "o")
    line = [sys.executable, "-m", "downstream", "knn", *map(str, options)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 2
    assert (len(ended.stderr.splitlines()), ended.stderr[:6]) == (1, "error:")


@pytest.mark.parametrize(
    ("gpu", "ranks", "expected"), [(False, "1", 2), (True, "1", 15), (True, "4", 3), (True, "64", 1)]
)
def test_workers_take_the_cores_that_the_backbone_does_not_need(gpu, ranks, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert CropsConfig(checkpoint="", out="", shards=["x"]).workers == expected


def documented():
    """The arguments of every `downstream` command that the README and the page for research show."""
    for page in ("README.md", "docs/research.md"):
        text = (ROOT / page).read_text().replace("\\\n", " ").replace("$W", "--checkpoint w.pth")
        for line in re.findall(r"^ {4}.*-m downstream (.*)$", text, re.MULTILINE):
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("line", list(documented()), ids=lambda line: " ".join(line[:3]))
def test_documented_commands_are_understood(line, monkeypatch):
    command, *arguments = line
    if command == "zoo":
        assert arguments[0] in ("list", "verify")
        return

    class Understood(Exception):
        pass

    def load_weights(config):
        assert isinstance(config, main_module.COMMANDS[command][0])
        raise Understood

    monkeypatch.setattr(main_module, "load_weights", load_weights)
    with pytest.raises(Understood):
        main_module.run(command, arguments)
