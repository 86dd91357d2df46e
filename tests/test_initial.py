"""Runs that start from weights (`--init`): what is loaded, what is refused, and that it is not destroyed."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from processes import logged, smoke
from safetensors.torch import save_file

from augment.config import ViewConfig
from pretrain.checkpoints.combined import save_combined
from pretrain.checkpoints.init_weights import read_initial, start_from, starting_backbone
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.schema import ChangedError, Config, ConfigError, DataConfig, MethodConfig, OptimConfig
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import Trainer
from pretrain.models.student_teacher import build_networks
from pretrain.runs.resume_check import refuse_another_run

TINY = "test_resnet"  # of timm's own test models


def configuration(**more) -> Config:
    views = ViewConfig(global_size=(64, 48), local_size=(32, 32), local_count=2)
    return Config(backbone=TINY, steps=20, data=DataConfig(batch_size=8, workers=0), views=views, **more)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Weights as of a run, with their facts beside them."""
    path = tmp_path_factory.mktemp("begun") / "begun.pth"
    student, _ = build_networks(configuration(seed=5))
    save_combined(path, student.backbone, student.proj_head)
    facts = {"backbone": TINY, "input": {"size": [64, 48], "mean": 0.5, "std": 0.25}}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


@pytest.mark.parametrize("form", ["nested", "flat", "wrapped", "state_dict", "safetensors", "resume"])
def test_both_networks_start_from_any_form_with_its_head(form, begun, tmp_path):
    nested = torch.load(begun, weights_only=True)
    stored = {f"{part}.{key}": value for part, state in nested.items() for key, value in state.items()}
    path = tmp_path / "start.pth"
    if form == "nested":
        shutil.copy(begun, path)
    elif form == "safetensors":
        save_file(stored, path := tmp_path / "start.safetensors")
    elif form == "resume":
        torch.save({"step": 3, "teacher": stored, "student": {}}, path)
    else:
        flat = {("module." if form == "wrapped" else "") + key: value for key, value in stored.items()}
        torch.save({"state_dict": flat} if form == "state_dict" else flat, path)
    student, teacher = build_networks(configuration())
    start_from(read_initial(str(path)), configuration(init=str(path)), student, teacher)
    for network in (student, teacher):
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, stored[name]), name


def test_the_head_learns_alone_at_first_and_all_of_it_slower(begun):
    config = configuration(init="somewhere", optim=OptimConfig(lr=1e-3, init_lr=0.1, init_freeze=0.2, warmup=0.1))
    rates, usual = ([rates_at(c, step, 20) for step in range(20)] for c in (config, replace(config, init=None)))
    assert [r.backbone_lr for r in rates][:6] == pytest.approx([0, 0, 0, 0, 5e-5, 1e-4])  # and warms up then
    assert rates[-1].backbone_lr == rates[-1].lr == config.optim.lr_end
    assert all(r.backbone_lr == r.lr for r in usual)
    late = replace(config, optim=replace(config.optim, init_freeze=0.8, warmup=0.5))
    assert [rates_at(late, step, 20).backbone_lr for step in range(15, 20)] == pytest.approx(
        [0, 5e-5, 1e-4, 1e-4, 1e-6]
    )
    assert max(r.lr for r in rates) == pytest.approx(0.1 * max(r.lr for r in usual)) == pytest.approx(1e-4)

    trainer = Trainer(config, Accelerator(cpu=True), range(100))
    start_from(read_initial(str(begun)), config, trainer.student, trainer.teacher)
    trainer.trained = trainer.student
    at = [copy.deepcopy(trainer.student.state_dict())]
    for rate in rates[:6]:
        views = [torch.randint(0, 256, (16, 1, *size), dtype=torch.uint8) for size in ((64, 48), (32, 32))]
        trainer.train_step(views, rate)
        at.append(copy.deepcopy(trainer.student.state_dict()))
    for name in (name for name, p in trainer.student.named_parameters() if p.requires_grad):
        assert torch.equal(at[0][name], at[4][name]) == name.startswith("backbone."), name
        assert not torch.equal(at[4][name], at[6][name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": "resnet10t"}, "has backbone test_resnet, the run resnet10t: give --backbone test_resnet"),
        ({"method": MethodConfig(prototypes=64)}, "has method.prototypes 256, the run 64: give --method.proto"),
        ({"mean": 0.4}, "has mean 0.5, the run 0.4: give --mean 0.5"),
        ({"std": 1.0}, "has std 0.25, the run 1: give --std 0.25"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_option_that_would(change, said, begun):
    config = replace(configuration(), **change)
    with pytest.raises(ConfigError) as raised:
        start_from(read_initial(str(begun)), config, *build_networks(config))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_nobody_describes_is_assumed_to_be_as_the_release(begun, tmp_path):
    path = tmp_path / "bare.pth"
    shutil.copy(begun, path)
    config = configuration(mean=0.4)  # nobody knows that this is wrong, so it is told and not refused
    initial = read_initial(str(path))
    start_from(initial, config, *build_networks(config))
    said = initial.said(config)
    scaling = r"\(pixel / white - 0.5\) / 0.25 and now with 0.4 and 0.25: nothing beside it"
    assert re.search(f"made for crops of 320x240 px, and now sees 64x48, {scaling}", said)


def test_the_start_is_scored_as_an_export_also_from_a_resume_checkpoint(begun, tmp_path):
    """A teacher's own BatchNorm buffers lag behind; those of weights for users stay as they are."""
    nested = torch.load(begun, weights_only=True)
    stored = {f"{part}.{key}": value for part, state in nested.items() for key, value in state.items()}
    path = tmp_path / "step-00000003.pth"
    settings = {"backbone": TINY, "views.global_size": [64, 48], "mean": 0.5, "std": 0.25}
    torch.save({"step": 3, "teacher": stored, "student": {}, "identity": json.dumps(settings)}, path)
    images = np.random.default_rng(0).integers(0, 255, (70, 64, 48), dtype=np.uint8)
    asked = []
    crops = lambda: (asked.append(1), images)[1]  # noqa: E731
    for file, calibrated in ((begun, False), (path, True)):
        found = starting_backbone(configuration(init=str(file)), read_initial(str(file)).checksum, crops)
        assert len(asked) == calibrated
        changed = [k for k, v in found.state_dict().items() if not torch.equal(v, nested["backbone"][k])]
        assert any("running_mean" in key for key in changed) == calibrated
    assert starting_backbone(configuration(init=str(path)), "of another file", crops) is None


def test_how_weights_are_started_from_makes_no_other_run_of_one_that_starts_from_none():
    old, new = ({"optim.init_lr": rate, "optim.lr": 1e-3, "total steps": 9} for rate in (0.1, 0.3))
    refuse_another_run(Path("x"), old, new | {"init": None})
    with pytest.raises(ChangedError, match=r"optim\.init_lr +0\.1 +0\.3"):
        refuse_another_run(Path("x"), old | {"init": "abc"}, new | {"init": "abc"})
    with pytest.raises(ChangedError, match=r"optim\.lr +0\.001 +0\.002"):
        refuse_another_run(Path("x"), old, new | {"init": None, "optim.lr": 2e-3})


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(CheckpointError, match=r"^no checkpoint at nowhere.pth; check the path$"):
        read_initial("nowhere.pth")


@pytest.mark.parametrize("last", [None, torch.ones(())])
def test_a_head_of_another_form_is_one_line(last, begun, tmp_path):
    stored = torch.load(begun, weights_only=True)
    del stored["proj_head"]["last_layer.weight_v"]
    if last is not None:
        stored["proj_head"]["last_layer.weight_v"] = last
    torch.save(stored, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd.pth: its head has no last_layer\.weight_v"):
        read_initial(str(tmp_path / "odd.pth"))


def test_weights_in_eight_bits_are_read_and_no_name_is_an_error(begun, tmp_path):
    stored = torch.load(begun, weights_only=True)
    key = next(key for key, tensor in stored["backbone"].items() if tensor.ndim == 4)
    stored["backbone"][key] = stored["backbone"][key].to(torch.float8_e4m3fn)
    torch.save(stored, tmp_path / "short.pth")
    student, teacher = build_networks(configuration())
    start_from(read_initial(str(tmp_path / "short.pth")), configuration(), student, teacher)
    assert torch.equal(student.backbone.state_dict()[key], stored["backbone"][key].float())
    with pytest.raises(ConfigError, match="--init is empty"):
        configuration(init="").check(1)


@pytest.mark.slow  # whose keys they are is found by building all that were released
def test_keys_tell_whose_they_are_where_nobody_does(begun, tmp_path):
    path = tmp_path / "bare.pth"
    shutil.copy(begun, path)
    config = replace(configuration(), backbone="mambaout_femto")
    with pytest.raises(ConfigError, match=r"does not fit: .* keys do; .*missing"):
        start_from(read_initial(str(path)), config, *build_networks(config))
    student, _ = build_networks(config)
    save_combined(path, student.backbone, student.proj_head)
    with pytest.raises(ConfigError, match="has backbone mambaout_femto, the run test_resnet"):
        start_from(read_initial(str(path)), configuration(), *build_networks(configuration()))


@pytest.mark.slow
def test_a_run_from_weights_keeps_what_they_know_and_continues_without_them(tmp_path):
    """k-NN stays at the start, to the noise of so few crops; the file may move or vanish, but not become another."""
    begun, out = tmp_path / "begun", tmp_path / "run"
    common = ["--backbone", TINY, "--data.batch_size", 8, "--data.workers", 0, "--optim.lr", 2e-3]
    smoke(begun, None, *common, "--steps", 30)
    shards, start = next((begun / "phantom").glob("seed-*/")), tmp_path / "start" / "begun.pth"
    start.parent.mkdir()
    for name in ("begun.pth", "begun.json"):
        shutil.copy(begun / name, start.parent)
    common += ["--method.prototypes", "auto"]
    printed = smoke(out, shards, *common, "--init", start, "--steps", 10, "--eval.every", 5)
    assert "starting from begun.pth" in printed
    assert "64x48 px, (pixel / white - 0.5) / 0.25: stated in" in printed
    facts = json.loads((out / "run.json").read_text())
    knn = facts["scores"]["knn"]
    assert knn["start"] == json.loads((begun / "begun.json").read_text())["scores"]["knn"]["after"]
    assert knn["after"] >= knn["start"] - 0.05  # one crop in twenty
    assert ("the weights of --init tell no less" in printed) == (knn["after"] <= knn["start"])
    scored = [line for line in logged(out) if "knn" in line]
    (on_the_way,) = {line["knn_start"] for line in scored}
    assert (out / "run-best.pth").exists() == (max(line["knn"] for line in scored) > on_the_way)
    assert str(tmp_path) not in json.dumps(facts)
    assert yaml.safe_load((out / "config.yaml").read_text())["init"] == str(start)

    refused = smoke(out, shards, *common, "--steps", 12, code=2)
    assert re.search(rf"init +{facts['init']} +None", refused)
    moved = start.rename(tmp_path / "elsewhere.pth")
    assert "is finished" in smoke(out, shards, *common, "--init", moved, "--steps", 10)
    moved.write_bytes(moved.read_bytes() + b" ")
    assert "run with other settings" in smoke(out, shards, *common, "--init", moved, "--steps", 12, code=2)
    moved.unlink()
    assert "continuing from step 10" in smoke(out, shards, *common, "--init", moved, "--steps", 12)
    begun_anew = tmp_path / "anew"
    smoke(begun_anew, shards, *common, "--steps", 10)
    assert "began from random weights" in smoke(begun_anew, shards, *common, "--init", moved, "--steps", 12, code=2)
    assert "start" not in json.loads((out / "run.json").read_text())["scores"]["knn"]
