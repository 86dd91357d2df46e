"""Fine-tuning: who trains, who tests, that it learns, that it repeats, in one process and in two; and its metrics."""

import copy
import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from crops_fixture import SIZE, TINY, mistake, run, written
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from two_finetune import report

from augment import MultiCrop, fit
from data_shards.shards.shard_set import ShardSet
from downstream.config import DownstreamError, FinetuneConfig
from downstream.data.crops import Crops, find_crops
from downstream.data.folds import doubts, set_apart, split
from downstream.data.labelled_views import mild_views, shuffled
from downstream.features.weights import load_weights
from downstream.reports import metrics, page
from downstream.tasks import classifier, finetune
from downstream.tasks.classifier import plan, predict, train_classifier
from downstream.tasks.tuner import Classifier, Tuner, by_depth, class_weights
from pretrain import build_backbone
from pretrain.evaluation.embed import pooled_maps

ROOT = Path(__file__).parent.parent
OPTIONS = ("--epochs", 3, "--batch_size", 8, "--lr", 1e-3, "--clip", 5, "--folds", 2, "--min_steps", 0, "--draws", 50)


def config_of(**settings):
    given = {"checkpoint": "x.pth", "out": "", "shards": ["s"], "label": "finding", "workers": 0}
    return FinetuneConfig(**(given | settings))


def timeless(folds):
    return [{name: value for name, value in fold.items() if name != "seconds"} for fold in folds]


@pytest.fixture(scope="session")
def tuned(shards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return out, run("finetune", checkpoint, out, "--shards", shards, "--label", "finding", *OPTIONS)


@pytest.fixture
def ready(shards, checkpoint):
    """Weights, crops and classes, for what needs no command."""
    crops = find_crops([str(shards)], ["finding"])
    weights = load_weights(config_of(checkpoint=str(checkpoint)))
    return weights, crops, np.unique(crops.labels["finding"], return_inverse=True)[1]


def predictions(out):
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The command


def test_finetuning_learns_a_planted_signal(tuned, shards):
    out, found = tuned
    scores = found["scores"]
    assert list(scores) == list(metrics.SCORES)
    for score in scores.values():
        assert 0.9 < score["value"] <= 1
        assert score["low"] <= score["value"] <= score["high"] <= 1
    assert (found["classes"], found["chance"]) == (["blotches", "stripes"], 0.5)
    assert len(found["folds"]) == 2
    for fold in found["folds"]:
        assert fold["curve"][-1]["loss"] < fold["curve"][0]["loss"]
        accuracies = [line["balanced_accuracy"] for line in fold["curve"]]
        assert fold["best_epoch"] == 1 + int(np.argmax(accuracies))
        assert sum(fold[side]["crops"] for side in ("train", "validation", "test")) == len(ShardSet(shards))
    lines = predictions(out)
    truth = np.array([line["truth"] for line in lines])
    guess = np.array([line["predicted"] for line in lines])
    recalls = [np.mean(guess[truth == name] == name) for name in found["classes"]]
    assert scores["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls), abs=1e-4)
    table = [[int(((truth == a) & (guess == b)).sum()) for b in found["classes"]] for a in found["classes"]]
    assert found["confusion"] == table
    assert [c["recall"] for c in found["by_class"].values()] == pytest.approx(recalls, abs=1e-4)


def test_every_crop_is_tested_once_and_no_patient_in_two_folds(tuned, shards):
    out, _ = tuned
    lines, samples = predictions(out), ShardSet(shards)
    metas = {samples.key(i): samples.meta(i) for i in range(len(samples))}
    assert sorted(line["key"] for line in lines) == sorted(metas)
    for line in lines:
        meta = metas[line["key"]]
        assert (line["patient"], line["truth"]) == (meta["patient"], meta["finding"])
        chances = {name: float(line[f"p({name})"]) for name in ("blotches", "stripes")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert line["predicted"] == max(chances, key=chances.get)
    assert len({(line["patient"], line["fold"]) for line in lines}) == len({line["patient"] for line in lines})


def test_the_kept_weights_are_those_that_were_tested(tuned, shards):
    out, _ = tuned
    backbone = build_backbone(TINY)
    state = torch.load(out / "fold-2.pth", weights_only=True)
    weight, bias = state.pop("1.weight"), state.pop("1.bias")
    backbone.load_state_dict({key.removeprefix("0."): value for key, value in state.items()}, strict=True)
    samples = ShardSet(shards)
    tested = {line["key"]: float(line["p(stripes)"]) for line in predictions(out) if line["fold"] == "2"}
    images = [fit(samples.image(i), SIZE) for i in range(len(samples)) if samples.key(i) in tested]
    expected = [tested[samples.key(i)] for i in range(len(samples)) if samples.key(i) in tested]
    with torch.no_grad():
        inputs = (torch.from_numpy(np.stack(images))[:, None] / 255 - 0.4) / 0.2
        logits = pooled_maps(backbone.eval(), inputs) @ weight.T + bias
    assert logits.softmax(1)[:, 1].numpy() == pytest.approx(expected, abs=0.05)  # bf16, where the device has it


def test_finetuning_repeats_and_does_not_depend_on_workers(tuned, shards, checkpoint, tmp_path):
    options = ("--shards", shards, "--label", "finding", *OPTIONS, "--workers", 0)
    again = run("finetune", checkpoint, tmp_path / "o", *options)
    assert timeless(again["folds"]) == timeless(tuned[1]["folds"])
    assert (tmp_path / "o" / "predictions.csv").read_text() == (tuned[0] / "predictions.csv").read_text()


def test_finetuning_tests_on_the_query(shards, checkpoint, tmp_path):
    options = ("--query", shards / "holdout", "--label", "finding", "--epochs", 1, "--min_steps", 1, "--workers", 0)
    found = run("finetune", checkpoint, tmp_path / "o", "--shards", shards, *options)
    assert found["protocol"] == "query"
    (fold,) = found["folds"]
    assert fold["train"]["crops"] + fold["validation"]["crops"] == len(ShardSet(shards))
    assert (
        fold["test"]["crops"] == found["crops"] == len(predictions(tmp_path / "o")) == len(ShardSet(shards / "holdout"))
    )


def test_a_killed_command_continues_with_the_next_fold(tuned, shards, checkpoint, tmp_path, monkeypatch, capsys):
    honest, calls = train_classifier, []

    def killed_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(finetune, "train_classifier", killed_at_the_second)
    options = ("--shards", shards, "--label", "finding", *OPTIONS, "--workers", 0)
    with pytest.raises(SystemExit) as stopped:
        run("finetune", checkpoint, tmp_path, *options)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("stopped: the same command goes on from what is done\n")
    assert not (tmp_path / "metrics.json").exists()
    found = run("finetune", checkpoint, tmp_path, *options)
    assert len(calls) == 3
    assert "fold 1 is done already" in capsys.readouterr().out
    assert timeless(found["folds"]) == timeless(tuned[1]["folds"])
    assert sorted(p.name for p in tmp_path.glob("fold-*.json")) == [f"fold-{n}.json" for n in (1, 2)]
    run("finetune", checkpoint, tmp_path, *options)
    assert len(calls) == 3  # a finished command trains nothing anew
    (tmp_path / "fold-3.pth").write_bytes(b"of an earlier command with three folds")
    run("finetune", checkpoint, tmp_path, *options)
    assert not (tmp_path / "fold-3.pth").exists()


def test_a_fold_of_another_command_is_trained_anew(tuned, ready, tmp_path):
    weights, crops, codes = ready
    config = config_of(out=str(tmp_path))
    fold = split(config, crops, codes, np.array(["blotches", "stripes"]))[0]
    same = finetune._identity(fold, config, weights, crops, codes, 1)
    assert same == finetune._identity(fold, replace(config, draws=5, workers=4), weights, crops, codes, 1)
    others = [
        finetune._identity(fold, replace(config, seed=1), weights, crops, codes, 1),
        finetune._identity(fold, config, weights, crops, 1 - codes, 1),
        finetune._identity(replace(fold, test=fold.test[1:]), config, weights, crops, codes, 1),
        finetune._identity(fold, config, weights, crops, codes, 2),
    ]
    elsewhere = [SimpleNamespace(checksum="of other pixels")]
    others.append(finetune._identity(fold, config, weights, replace(crops, sets=elsewhere), codes, 1))
    with torch.no_grad():
        next(weights.model.parameters()).mul_(1.001)
    others.append(finetune._identity(fold, config, weights, crops, codes, 1))
    assert len({same, *others}) == 7
    path = tmp_path / "fold-1.pth"
    assert finetune._earlier(path, same) is None
    path.with_suffix(".json").write_text(json.dumps({"identity": same, "curve": []}))
    assert finetune._earlier(path, same) is None  # without its weights it is not done
    path.write_bytes(b"weights")
    assert finetune._earlier(path, same) == {"curve": []}
    assert finetune._earlier(path, others[0]) is None
    path.with_suffix(".json").write_text('{"identity": "')
    assert finetune._earlier(path, same) is None


def test_what_is_written_names_no_place_and_asks_for_nothing(tuned, shards, checkpoint):
    out, found = tuned
    names = {path.name for path in out.iterdir()}
    folds = {f"fold-{n}.{kind}" for n in (1, 2) for kind in ("pth", "json")}
    assert names == {"metrics.json", "predictions.csv", "mistakes.png", "report.html", *folds}
    for name in ("metrics.json", "predictions.csv", "report.html"):
        text = (out / name).read_text()
        assert not any(str(place) in text for place in (out, shards, checkpoint, checkpoint.stem + ".pth"))
    text = (out / "report.html").read_text()
    assert "http" not in text
    assert text.count("data:image/png;base64,") == 3
    assert f"{found['scores']['auroc']['value']:.3f}" in text
    assert 'name="viewport"' in text


def test_mistakes_are_one_line(shards, checkpoint, tmp_path, capsys):
    def said(*options):
        on = ("--checkpoint", checkpoint, "--shards", shards, "--out", tmp_path / "o", "--workers", 0)
        return mistake(capsys, "finetune", *on, "--label", "finding", *options)

    assert "--folds 60" in said("--folds", 60)
    assert "--validation 0.99" in said("--validation", 0.99)
    assert "--patience is 0" in said("--patience", 0)
    assert "--lr is (0.0,)" in said("--lr", 0)
    assert "holdout" in said("--holdout", 0.3)
    assert "lower --lr" in said("--lr", 1e30, "--folds", 2, "--epochs", 1, "--min_steps", 5, "--clip", 1e30)
    assert not (tmp_path / "o" / "metrics.json").exists()


def test_the_rate_is_chosen_on_patients_set_apart(ready):
    weights, crops, codes = ready
    config = config_of(epochs=2, min_steps=0, batch_size=8, lr=(1e30, 1e-9, 1e-3), clip=1e30)
    train, validation = np.arange(40), np.arange(40, 60)

    def trained(config, validation=validation):
        known = codes.copy()
        known[60:] = -99  # what is tested is neither here nor there
        return train_classifier(weights.model, weights, crops, known, 2, train, validation, config, Accelerator())

    chosen = trained(config)
    alone = {rate: trained(replace(config, lr=(rate,))) for rate in (1e-9, 1e-3)}
    assert chosen.tried == {"1e+30": None, "1e-09": alone[1e-9].reached, "0.001": alone[1e-3].reached}
    assert chosen.lr == max(alone, key=lambda rate: alone[rate].reached)
    assert chosen.losses == alone[chosen.lr].losses
    assert alone[1e-3].tried == {}
    with pytest.raises(DownstreamError, match="lower --lr"):
        trained(replace(config, lr=(1e30, 1e31)))
    with pytest.raises(DownstreamError, match="no patients are set apart"):
        trained(config, np.array([], int))


# Who trains, who chooses the epoch, who tests


def crops_of(patients, codes):
    patients = np.array([f"p{p}" for p in patients])
    names = [str(i) for i in range(len(patients))]
    return Crops([], [(0, i) for i in range(len(patients))], names, patients, np.zeros(len(patients), bool), {})


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=8, max_size=60), st.integers(2, 5), st.data()
)
def test_no_patient_is_on_two_sides(samples, folds, data):
    patients, codes = map(np.array, zip(*samples, strict=True))
    crops = crops_of(patients, codes)
    config = config_of(
        folds=folds, seed=data.draw(st.integers(0, 9)), validation=data.draw(st.sampled_from([0, 0.15, 0.5]))
    )
    try:
        found = split(config, crops, codes, np.arange(3))
    except DownstreamError:
        return
    assert sorted(np.concatenate([fold.test for fold in found])) == list(range(len(codes)))
    for fold in found:
        sides = [set(patients[indices]) for indices in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(set(patients))
        assert sides[0]
        assert sides[2]
        assert bool(sides[1]) == bool(config.validation)


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_stratified(seed):
    patients = np.repeat(np.arange(100), 8)
    rare = np.isin(patients, np.random.default_rng(seed).permutation(100)[:15])  # carried by whole patients
    folds = split(config_of(folds=5, seed=seed), crops_of(patients, rare), rare.astype(int), np.arange(2))
    for fold in folds:
        assert rare[fold.test].mean() == pytest.approx(0.15, abs=0.01)
        assert rare[fold.validation].mean() == pytest.approx(0.15, abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=40), st.floats(0, 0.95))
def test_patients_set_apart(samples, share):
    patients, codes = map(np.array, zip(*samples, strict=True))
    unique = len(np.unique(patients))
    wanted = max(1, round(share * unique)) if share else 0
    if wanted >= unique:
        with pytest.raises(DownstreamError, match="leaves none"):
            set_apart(codes, patients, share, 0)
        return
    held = set_apart(codes, patients, share, 0)
    assert not set(patients[held]) & set(patients[~held])
    assert len(np.unique(patients[held])) == wanted


def test_a_class_keeps_someone_to_train_on():
    patients, codes = np.arange(12), np.array([0] * 10 + [1] * 2)
    for seed in range(20):
        held = set_apart(codes, patients, 0.5, seed)
        assert set(codes[~held]) == {0, 1}
        assert codes[held].sum() == 1  # half of the two
        held = set_apart(np.array([0] * 5 + [1]), np.arange(6), 0.5, seed)
        assert held[:5].sum() == 3  # the only patient of a class is trained on


def test_doubtful_classes_are_named():
    patients, codes = np.repeat(np.arange(12), 5), np.tile([0, 1, 0, 1, 0], 12)
    codes[patients == 7] = 2  # one patient's own class
    crops, classes = crops_of(patients, codes), np.array(["a", "b", "odd"])
    config = config_of(folds=3, validation=0)
    few, rare, unlearnt, last = doubts(config, crops, codes, classes, split(config, crops, codes, classes))
    assert few.startswith("so few patients carry odd (1) that draws of patients miss them")
    assert rare.startswith("fewer patients than the 3 folds carry odd (1):")
    assert unlearnt.startswith("odd: tested where no crop of the class was trained on")
    assert "the last epoch counts" in last
    config = config_of(folds=3)
    assert doubts(config, crops, codes % 2, classes[:2], split(config, crops, codes % 2, classes[:2])) == []


def test_without_patients_set_apart_the_last_epoch_counts(ready):
    weights, crops, codes = ready
    config = config_of(epochs=5, min_steps=0, batch_size=8, patience=1)
    none = np.array([], int)
    trained = train_classifier(weights.model, weights, crops, codes, 2, np.arange(8), none, config, Accelerator())
    assert (trained.best_epoch, len(trained.curve), len(trained.losses)) == (5, 5, 5)
    assert all("balanced_accuracy" not in line for line in trained.curve)


def test_tested_crops_are_neither_seen_nor_known(ready, monkeypatch):
    weights, crops, codes = ready
    config = config_of(epochs=1, min_steps=3, batch_size=8)
    train, validation = np.arange(20), np.arange(20, 30)

    def outcome(codes):
        trained = train_classifier(weights.model, weights, crops, codes, 2, train, validation, config, Accelerator())
        return trained.losses, trained.curve

    expected = outcome(codes)
    honest = Crops.image

    def only_the_given(self, i):
        assert i < 30
        return honest(self, i)

    monkeypatch.setattr(Crops, "image", only_the_given)
    assert outcome(np.where(np.arange(len(codes)) < 30, codes, -99)) == expected


# Training


def test_training_stops_when_validation_no_longer_gains_and_keeps_the_best(ready, monkeypatch):
    weights, crops, codes = ready
    states, right = [], iter([0.5, 0.9, 0.9, 0.4, 1.0, 1.0])

    def scripted(model, _weights, _crops, indices, *_others):
        states.append({key: tensor.clone() for key, tensor in model.state_dict().items()})
        share = next(right)
        good = np.arange(len(indices)) % 10 < 10 * share
        return np.eye(2)[np.where(good, codes[indices], 1 - codes[indices])]

    monkeypatch.setattr(classifier, "predict", scripted)
    zeros, ones = np.flatnonzero(codes == 0)[:10], np.flatnonzero(codes == 1)[:10]
    config = config_of(epochs=6, min_steps=0, batch_size=8, patience=2)
    before = copy.deepcopy(weights.model.state_dict())
    train = np.setdiff1d(np.arange(len(codes)), [*zeros, *ones])[:16]
    trained = train_classifier(
        weights.model, weights, crops, codes, 2, train, np.concatenate([zeros, ones]), config, Accelerator()
    )
    assert [line["balanced_accuracy"] for line in trained.curve] == [0.5, 0.9, 0.9, 0.4]
    assert (trained.best_epoch, len(trained.losses)) == (2, 8)
    assert not trained.model.training
    kept = trained.model.state_dict()
    assert all(torch.equal(kept[key], states[1][key]) for key in kept if key.startswith("0."))
    assert any(not torch.equal(tensor, states[3][key]) for key, tensor in kept.items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights.model.state_dict().items())


@given(st.integers(2, 500), st.integers(1, 40), st.integers(0, 300), st.integers(1, 20), st.integers(1, 4))
def test_the_plan_of_steps(crops, share, least, epochs, processes):
    config = config_of(batch_size=max(2, share * processes) * processes, min_steps=least, epochs=epochs)
    if crops < 2 * processes:
        with pytest.raises(DownstreamError, match="too few"):
            plan(crops, config, processes)
        return
    found = plan(crops, config, processes)
    assert 0 < found.batch <= min(crops, config.batch_size)
    assert found.batch % processes == 0
    steps = crops // found.batch
    assert found.total == steps * found.passes * epochs >= least
    assert found.passes == 1 or steps * (found.passes - 1) * epochs < least
    accelerators = [SimpleNamespace(num_processes=processes, process_index=rank) for rank in range(processes)]
    slices = [shuffled(np.arange(crops), 3, found.batch, 0, a) for a in accelerators]
    whole = shuffled(np.arange(crops), 3, found.batch, 0, SimpleNamespace(num_processes=1, process_index=0))
    assert [[*chain(*parts)] for parts in zip(*slices, strict=True)] == whole
    assert len(whole) == steps
    assert len(set(chain(*whole))) == steps * found.batch


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(DownstreamError, match="--batch_size 9 cannot be shared by 2 processes"):
        plan(100, config_of(batch_size=9), 2)


def test_backbone_and_classifier_have_their_own_rates_and_gradients_are_clipped(ready):
    weights, _, _ = ready
    config = config_of(classifier_lr=1e-2, warmup=0.5, clip=1e-3)
    accelerator = Accelerator()
    tuner = Tuner(weights.model, weights, torch.ones(2), 8, config, 1e-4, accelerator)
    seen, taken = [], tuner.optimizer.step

    def step():
        seen.append(float(torch.cat([p.grad.flatten() for p in tuner.model.parameters() if p.grad is not None]).norm()))
        taken()

    tuner.optimizer.step = step

    rates = []
    rng = np.random.default_rng(0)
    for _ in range(8):
        tuner.step(torch.from_numpy(rng.integers(0, 255, (4, *SIZE)).astype(np.uint8)), torch.tensor([0, 1, 0, 1]))
        rates.append([group["lr"] for group in tuner.optimizer.param_groups])
    *backbone, head = np.array(rates).T
    for block in backbone:
        assert block * 100 == pytest.approx(head)
    assert head[:4] == pytest.approx(1e-2 * np.arange(1, 5) / 4)  # the warm-up
    assert (np.diff(head[4:]) < 0).all()
    assert {group["weight_decay"] for group in tuner.optimizer.param_groups[:-1]} == {0.05}
    assert tuner.optimizer.param_groups[-1]["weight_decay"] == 0
    assert seen == pytest.approx([1e-3] * 8, rel=0.01)
    accelerator.free_memory()


def test_deeper_blocks_learn_faster_and_every_parameter_is_in_one_block():
    backbone = build_backbone("test_resnet")
    groups = by_depth(backbone, 0.5)
    factors = [factor for _, factor in groups]
    assert factors == [0.5**k for k in reversed(range(len(groups)))]
    assert len(groups) > 4
    inside = [id(p) for parameters, _ in groups for p in parameters]
    assert sorted(inside) == sorted(map(id, backbone.parameters()))


@pytest.mark.parametrize(
    ("pretrained", "freeze", "kept"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_statistics_are_kept_unless_there_are_none_to_keep(pretrained, freeze, kept, ready):
    weights, _, _ = ready
    config = config_of(freeze_batchnorm=freeze)
    tuner = Tuner(weights.model, weights, torch.ones(2), 2, config, 1e-3, Accelerator(), pretrained)
    rng = np.random.default_rng(0)
    tuner.step(torch.from_numpy(rng.integers(0, 255, (4, *SIZE)).astype(np.uint8)), torch.tensor([0, 1, 0, 1]))
    before = {k: v for k, v in weights.model.state_dict().items() if "running" in k}
    after = tuner.model[0].state_dict()
    assert before
    assert all(torch.equal(value, after[key]) for key, value in before.items()) == kept


def test_what_is_tested_is_the_average_of_the_steps(ready):
    weights, _, _ = ready
    tuner = Tuner(weights.model, weights, torch.ones(2), 4, config_of(ema=0.5), 1e-3, Accelerator())
    expected = tuner.model[1].weight.detach().clone()
    rng = np.random.default_rng(0)
    for done in range(4):
        tuner.step(torch.from_numpy(rng.integers(0, 255, (4, *SIZE)).astype(np.uint8)), torch.tensor([0, 1, 0, 1]))
        momentum = min(0.5, (1 + done) / (10 + done))
        expected = momentum * expected + (1 - momentum) * tuner.model[1].weight.detach()
    assert torch.allclose(tuner.averaged[1].weight, expected)
    assert not torch.allclose(tuner.averaged[1].weight, tuner.model[1].weight)


def test_the_classifier_starts_as_the_probe(ready):
    weights, _, _ = ready
    rng = np.random.default_rng(0)
    config = config_of(features="pooled")
    features = rng.normal(2, 3, (60, weights.model.num_features)).astype(np.float32)
    codes = (features[:, 0] > 2).astype(int)
    tuner = Tuner(weights.model, weights, torch.ones(2), 4, config, 1e-3, Accelerator())
    tuner.start_classifier(features, codes)
    # Two classes have one weight vector there, whose half either of ours is: the penalty is half as strong.
    wanted = LogisticRegression(C=2 / (1e-2 * 60), max_iter=5000).fit(
        (features - features.mean(0)) / features.std(0), codes
    )
    model = tuner.averaged
    logits = [model[1]((torch.from_numpy(features) - model.mean) / model.std)]
    model.fold_standardization()
    logits.append(model[1](torch.from_numpy(features)))
    assert torch.allclose(*logits, atol=1e-4)
    found = logits[0].detach().softmax(1)[:, 1].numpy()
    assert found == pytest.approx(wanted.predict_proba((features - features.mean(0)) / features.std(0))[:, 1], abs=5e-3)


def test_the_loss_weighs_classes_alike(ready):
    weights, _, _ = ready
    balance = torch.tensor([0.25, 4.0])
    tuner = Tuner(weights.model, weights, balance, 1, config_of(), 1e-4, Accelerator())
    with torch.no_grad():
        tuner.model[1].weight.zero_()
        tuner.model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    loss = tuner.step(torch.zeros(4, *SIZE, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]))
    of_zero, of_one = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
    assert loss == pytest.approx((3 * 0.25 * of_zero + 4 * of_one) / 4, rel=1e-2)


def test_classes_weigh_the_same():
    codes = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(codes, 4).numpy()
    assert weights[:3] * np.bincount(codes) == pytest.approx(10 / 4)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(("mirror", "sides"), [(False, {True}), (True, {True, False})])
def test_views_are_mirrored_only_when_asked(mirror, sides):
    image = np.full((64, 48), 40, np.uint8)
    image[:, :24] = 200
    make = MultiCrop(mild_views(SIZE, mirror))
    views = [make(image, (0, 0, i)) for i in range(40)]
    assert all(len(v) == 1 and v[0].shape == SIZE for v in views)
    assert {bool(v[0][:, :12].mean() > v[0][:, -12:].mean()) for v in views} == sides


def test_probabilities_do_not_depend_on_the_batch(ready):
    weights, crops, _ = ready
    torch.manual_seed(0)
    model = Classifier(copy.deepcopy(weights.model), 3, True, SIZE)
    chosen = np.array([5, 1, 30])
    one = predict(model, weights, crops, chosen, config_of(batch_size=2), Accelerator())
    other = predict(model, weights, crops, chosen[::-1], config_of(batch_size=64), Accelerator())
    assert (one.shape, one.dtype) == ((3, 3), np.float64)
    assert one.sum(1) == pytest.approx(1)
    assert one == pytest.approx(other[::-1], abs=5e-3)  # bf16, where the device has it
    assert predict(model, weights, crops, chosen[:0], config_of(), Accelerator()).shape == (0, 3)


# Two processes


def launched(*arguments):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu-2.yaml"]
    command = [*launch, *map(str, arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(shards, checkpoint, tmp_path):
    vit = written(tmp_path / "vit.pth", "test_vit", (160, 160))  # without BatchNorm, which sees half a batch
    launched("tests/two_finetune.py", tmp_path, shards, vit, checkpoint)
    found = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in (0, 1)]
    for first, second in zip(*found, strict=True):
        for kind in ("losses", "weights", "probabilities"):
            assert first[kind] == second[kind]
    first, second = (reports[0] for reports in found)
    with finetune.processes() as accelerator:
        alone = report(accelerator, shards, vit)
    assert [a + b for a, b in zip(first["batches"], second["batches"], strict=True)] == alone["batches"]
    assert len(alone["losses"]) == 4
    assert first["losses"][0] == pytest.approx(alone["losses"][0], abs=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], abs=2e-3)
    assert np.array(first["probabilities"]) == pytest.approx(np.array(alone["probabilities"]), abs=5e-3)


@pytest.mark.slow
def test_the_command_in_two_processes(shards, checkpoint, tmp_path):
    options = ("--shards", shards, "--label", "finding", *OPTIONS, "--checkpoint", checkpoint, "--out", tmp_path)
    said = launched("-m", "downstream", "finetune", *options)
    assert said.count("fold 2/2") == said.count("report.html") == 1
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["processes"] == 2
    assert found["scores"]["balanced_accuracy"]["value"] > 0.9
    embedded = ("embed", "--shards", shards, "--checkpoint", checkpoint, "--out")
    said = launched("-m", "downstream", *embedded, tmp_path / "two")
    assert said.count("metrics.json") == 1
    alone = run("embed", checkpoint, tmp_path / "one", "--shards", shards)
    assert alone["processes"] == 1
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["processes"] == 2
    one, two = (np.load(tmp_path / name / "features.npy") for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    assert (tmp_path / "two" / "keys.txt").read_text() == (tmp_path / "one" / "keys.txt").read_text()


# Metrics


@st.composite
def predicted(draw):
    n, classes = draw(st.integers(1, 24)), draw(st.integers(2, 4))
    truth = draw(arrays(int, n, elements=st.integers(0, classes - 1)))
    scores = draw(arrays(int, (n, classes), elements=st.integers(1, 4)))  # few values, so many ties
    patients = draw(arrays(int, n, elements=st.integers(0, 6)))
    return truth, scores / scores.sum(1, keepdims=True), patients


def by_hand(truth, probabilities):
    """The four scores by their definitions, pair by pair and threshold by threshold."""
    guess = [max(range(len(row)), key=lambda k: row[k]) for row in probabilities.tolist()]
    recalls, ones, areas, precisions = [], [], [], []
    for k in range(probabilities.shape[1]):
        mine = [i for i in range(len(truth)) if truth[i] == k]
        named = [i for i in range(len(truth)) if guess[i] == k]
        hits = len(set(mine) & set(named))
        if mine:
            recalls.append(hits / len(mine))
        if mine or named:
            ones.append(2 * hits / (len(mine) + len(named)))
        others = [i for i in range(len(truth)) if truth[i] != k]
        if mine and others:
            p = probabilities[:, k]
            areas.append(np.mean([(p[i] > p[j]) + (p[i] == p[j]) / 2 for i in mine for j in others]))
            # Each crop of the class sees the precision at its own probability.
            precisions.append(np.mean([np.mean([truth[j] == k for j in np.flatnonzero(p >= p[i])]) for i in mine]))
    found = (recalls, ones, areas, precisions)
    return dict(zip(metrics.SCORES, (np.mean(f) if f else np.nan for f in found), strict=True))


@settings(max_examples=150)
@given(predicted())
def test_scores_are_their_definitions(sample):
    truth, probabilities, patients = sample
    expected = by_hand(truth, probabilities)
    found = metrics.scores(truth, probabilities)
    assert found == pytest.approx(expected, nan_ok=True)
    rows = metrics.by_class(truth, probabilities, patients)
    assert sum(row["crops"] for row in rows) == len(truth)
    recalls = [row["recall"] for row in rows if row["recall"] is not None]
    assert np.mean(recalls) == pytest.approx(expected["balanced_accuracy"])
    assert np.mean([row["f1"] for row in rows if row["f1"] is not None]) == pytest.approx(expected["macro_f1"])


@settings(max_examples=40)
@given(predicted(), st.integers(0, 5))
def test_intervals_are_those_of_crops_repeated_one_by_one(sample, seed):
    truth, probabilities, patients = sample
    unique, numbers = np.unique(patients, return_inverse=True)
    rows = []
    for times in metrics.bootstrap(len(unique), 12, seed):
        assert times.sum() == len(unique)
        drawn = np.repeat(np.arange(len(truth)), times[numbers])
        rows.append(by_hand(truth[drawn], probabilities[drawn]))
    found = metrics.intervals(truth, probabilities, patients, 12, seed)
    for name in metrics.SCORES:
        values = [row[name] for row in rows if np.isfinite(row[name])]
        expected = np.percentile(values, [2.5, 97.5]) if values else [np.nan, np.nan]
        assert found[name] == pytest.approx(tuple(expected), nan_ok=True)


def test_more_crops_of_the_same_patients_do_not_narrow_an_interval():
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40)
    patients = rng.integers(0, 20, 40)
    once = metrics.intervals(truth, probabilities, patients, 200)
    thrice = metrics.intervals(np.tile(truth, 3), np.tile(probabilities, (3, 1)), np.tile(patients, 3), 200)
    for name, interval in once.items():
        assert thrice[name] == pytest.approx(interval)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = []
    for trial in range(150):
        truth = rng.integers(0, 2, 120)
        right = rng.random(120) < 0.8
        probabilities = np.eye(2)[np.where(right, truth, 1 - truth)]
        low, high = metrics.intervals(truth, probabilities, np.arange(120), 200, trial)["balanced_accuracy"]
        held.append(low <= 0.8 <= high)
    assert 0.88 < np.mean(held) <= 1


# The page


def test_the_worst_mistakes_are_the_surest(ready):
    _, crops, _ = ready
    rng = np.random.default_rng(0)
    tested = rng.permutation(len(crops))
    truth, probabilities = rng.integers(0, 3, len(tested)), rng.dirichlet(np.ones(3), len(tested))
    found = page.worst(crops, tested, np.array(["a", "b", "c"]), truth, probabilities)
    wrong = probabilities.argmax(1) != truth
    assert len(found) == 24 < wrong.sum()
    assert [m.probability for m in found] == sorted(probabilities.max(1)[wrong])[::-1][:24]
    for shown in found:
        i = crops.keys.index(shown.key)
        place = int(np.flatnonzero(tested == i)[0])
        assert (shown.truth, shown.predicted) == ("abc"[truth[place]], "abc"[probabilities[place].argmax()])
        assert np.array_equal(shown.image, crops.image(i))


@pytest.mark.parametrize("number", [0, 1, 7])
def test_pictures_are_drawn_whatever_there_is_to_show(number):
    image = np.full((30, 20), 40000, np.uint16)
    shown = [page.Mistake(image, "0123456789abcdef", "$a_", "a very long name of a class", 0.5)] * number
    pictures = [
        page.draw_mistakes(shown),
        page.draw_confusion(np.eye(30, dtype=int), [str(k) for k in range(30)]),
        page.draw_curves([{"fold": 1, "best_epoch": 1, "curve": [{"epoch": 1, "loss": 0.5}]}]),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
