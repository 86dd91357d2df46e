"""The exported folder: its ONNX graph against torch, and its card, whose code is run as it stands."""

import copy
import dataclasses
import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from crops_fixture import SIZE, TINY, lively, mistake, run, written
from hypothesis import given, settings
from hypothesis import strategies as st
from released import released

from augment import fit
from data_shards.phantom.render import render_crop
from data_shards.shards.stream import ShardSet
from downstream.config import WeightsConfig
from downstream.exporters import onnx as onnx_export
from downstream.exporters.model_card import model_card
from downstream.features.weights import load_weights
from pretrain import build_backbone
from pretrain.checkpoints.metadata import weights_facts
from pretrain.config.schema import Config, DataConfig
from pretrain.models.batchnorm import calibrate_batchnorm

VIEWS = [(2, 320, 240), (1, 400, 304), (5, 64, 48)]  # batch, height and width; patches of 16 divide the sides
ODD = [(3, 70, 54), (1, 65, 33)]


def as_torch(name, tmp_path, views, size=SIZE):
    """Export a backbone of random weights; its graph, loaded as another program would, gives torch's features."""
    path = lively(tmp_path / f"{name}.pth", name, size)
    facts = run("export", path, tmp_path / "x")["onnx"]
    backbone = build_backbone(name).eval()
    backbone.load_state_dict(torch.load(path, weights_only=True)["backbone"])
    graph = tmp_path / "x" / "model.onnx"
    onnx.checker.check_model(str(graph))
    assert facts["megabytes"] == round(graph.stat().st_size / 1e6, 2)
    session = onnxruntime.InferenceSession(graph)
    (image,), (features,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 1, "height", "width"])
    assert (features.name, features.shape) == ("features", ["batch", backbone.num_features])
    for batch, *sides in views:
        teeth = [fit(render_crop(9, patient)[0], (sides[0], sides[1])) for patient in range(batch)]
        images = (torch.from_numpy(np.stack(teeth))[:, None] / 255 - 0.4) / 0.2
        with torch.no_grad():
            expected = backbone(images).numpy()
        found = session.run(None, {"image": images.numpy()})[0]
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        difference, largest = np.abs(found - expected).max(), np.abs(expected).max()
        print(f"{name:<18}{batch}x{sides[0]}x{sides[1]:<5}{difference:.1e} of {largest:.3g}, {facts['megabytes']} MB")
        assert difference <= 1e-4 * max(1, largest)
        assert largest > 1e-3  # zeros are alike too
    return facts, graph


def test_a_graph_takes_any_batch_and_size_and_gives_torchs_features(tmp_path, capfd):
    name = TINY
    facts, graph = as_torch(name, tmp_path, VIEWS + ODD)
    assert [one["size"] for one in facts["checked"]] == [[64, 48], [112, 48], [71, 59]]
    assert len({one["batch"] for one in facts["checked"]}) == 3
    assert facts["max_difference"] == max(one["max_difference"] for one in facts["checked"]) < 1e-4
    said, errors = capfd.readouterr()
    assert "model.onnx gives them to within" in said
    assert len([line for line in said.splitlines() if not line.startswith(name)]) == 3  # nothing of the exporter's
    assert not errors
    assert not re.search(rb"site-packages|" + os.fsencode(tmp_path), graph.read_bytes())


def test_weights_are_not_refused_for_what_they_make_of_noise(tmp_path):
    size = (128, 96)
    torch.manual_seed(3)
    backbone = build_backbone("starnet_s4").eval()
    teeth = np.stack([fit(render_crop(5, patient)[0], size) for patient in range(16)])
    calibrate_batchnorm(backbone, teeth, 0.4, 0.2, 16)
    weights = SimpleNamespace(backbone="starnet_s4", size=size, mean=0.4, std=0.2)
    facts = onnx_export.write_onnx(backbone, weights, tmp_path / "model.onnx")
    assert facts["max_difference"] < 1e-5
    session, noise = onnxruntime.InferenceSession(tmp_path / "model.onnx"), torch.randn(2, 1, 224, 96)
    with torch.no_grad():
        expected = backbone(noise).numpy()
    difference = np.abs(session.run(None, {"image": noise.numpy()})[0] - expected).max()
    assert difference > 1e-4 * np.abs(expected).max()  # what a check on noise would stumble over


def test_a_transformers_graph_takes_any_whole_number_of_patches(tmp_path):
    facts, _ = as_torch("test_vit", tmp_path, VIEWS[1:], (160, 160))
    assert [one["size"] for one in facts["checked"]] == [[160, 160], [320, 160]]


@pytest.mark.parametrize("name", released(slow=("vit",)))
def test_the_graph_of_every_release(name, tmp_path):
    facts, _ = as_torch(name, tmp_path, VIEWS if name == "vit" else VIEWS + ODD)
    assert facts["shape"] == ["batch", 1, "height", "width"]


# What is refused and what is left out


@pytest.fixture(scope="module")
def honest_graph(checkpoint):
    weights = load_weights(WeightsConfig(checkpoint=str(checkpoint), out=""))
    return onnx_export.make_graph(copy.deepcopy(weights.model).cpu(), weights.size)


@pytest.mark.parametrize("damage", ["value", "nan", "size", "export"])
def test_a_graph_that_is_not_the_backbone_is_refused(damage, honest_graph, checkpoint, tmp_path, capsys, monkeypatch):
    def wrong(model, size):
        if damage == "export":
            raise NotImplementedError("no such operator\nhere")  # as torch's exporter does of what ONNX lacks
        graph = copy.deepcopy(honest_graph)
        if damage == "size":  # as a tracer that settles on the size it was shown
            for place in (2, 3):
                graph.graph.input[0].type.tensor_type.shape.dim[place].dim_value = size[place - 2]
            return graph
        factor = np.float32(1.01 if damage == "value" else np.nan)
        for tensor in graph.graph.initializer:
            if (array := onnx.numpy_helper.to_array(tensor)).dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * factor, tensor.name))
        return graph

    monkeypatch.setattr(onnx_export, "make_graph", wrong)
    out = tmp_path / "x"
    out.mkdir()
    for name, text in (("model.onnx", "of other weights"), ("README.md", "---\nlibrary_name: timm\n---\n")):
        (out / name).write_text(text)
    said = mistake(capsys, "export", "--checkpoint", checkpoint, "--out", out)
    assert TINY in said
    assert ("features other than torch's" if damage in ("value", "nan") else "cannot be made an ONNX graph") in said
    assert "pip install" in said
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


def test_a_readme_of_somebody_else_is_not_replaced(checkpoint, tmp_path, capsys):
    (tmp_path / "README.md").write_text("my notes")
    said = mistake(capsys, "export", "--checkpoint", checkpoint, "--out", tmp_path)
    assert "is not of an export" in said
    assert (tmp_path / "README.md").read_text() == "my notes"


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_the_folder_is_for_timm_alone_and_says_so(name, checkpoint, tmp_path, capsys, monkeypatch):
    (tmp_path / "model.onnx").write_text("of other weights")
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    metrics = run("export", checkpoint, tmp_path)
    assert metrics["onnx"] == {"file": None, "missing": [name], "remedy": 'pip install -e ".[onnx]"'}
    said = capsys.readouterr().out
    assert f"model.onnx is not written, as {name} cannot be imported: pip install -e" in said
    assert not (tmp_path / "model.onnx").exists()
    assert "onnx" not in (tmp_path / "README.md").read_text()
    assert (tmp_path / "model.safetensors").exists()


# The card


def run_facts(shards):
    """Facts as a run writes them."""
    config = Config(backbone=TINY, steps=30, data=DataConfig(shards=[str(shards)], batch_size=24), mean=0.4, std=0.2)
    knn = {"label": "finding", "before": 0.5123, "after": 0.7344, "pixels": 0.6456, "size": 0.2567}
    scores = {"knn": knn | {"classes": 2, "crops": 84, "patients": 14, "neighbours": 7}}
    monitors = {"loss": 4.321}
    return weights_facts(config, [ShardSet(shards)], [1.0], 96, "bf16", 29, 30, scores, monitors)


@pytest.fixture(scope="module")
def carded(shards, tmp_path_factory):
    """Weights with full facts, exported from and to telling names."""
    folder = tmp_path_factory.mktemp("doctor_smith")
    path, facts = written(folder / "clinic_miller.pth"), run_facts(shards)
    facts["input"]["size"] = list(SIZE)
    path.with_suffix(".json").write_text(json.dumps(facts))
    run("export", path, folder / "clinic_jones")
    return path, facts, folder / "clinic_jones"


def test_the_card_holds_the_facts_and_no_place(carded, shards):
    _, facts, out = carded
    card = (out / "README.md").read_text()
    for said in (
        *(TINY, "features: 96", "64 x 48", "(pixel / 255 - 0.4) / 0.2", facts["input"]["resize_rule"]),
        *(facts["input"]["polarity"], ShardSet(shards).checksum, f"| {len(ShardSet(shards))} | 16 | 1 |"),
        *("steps: 29 of 30", "seen, repeats counted: 696", "batch: 24", "seed: 0", "precision: bf16", "4.321"),
        *("7 nearest neighbours", "`finding` of 2 classes, on 84 crops of 14 patients"),
        *("these weights | 0.734", "began with | 0.512", "raw pixels | 0.646", "crop size | 0.257"),
        *("Not a medical device", "model.onnx", "model.safetensors"),
    ):
        assert said in card, said
    names = ("smith", "miller", "jones", str(shards))
    for name in (*names, shards.name + "/", "assumed", "unknown"):
        assert name not in card, name
    for file in ("metrics.json", "config.json"):
        assert not any(name in (out / file).read_text() for name in names)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "timm"
    assert "license" not in front


@pytest.mark.parametrize("name", [TINY, "mambaout_femto"])
def test_the_cards_code_runs_as_it_stands_and_gives_torchs_features(name, carded, tmp_path, monkeypatch):
    path, _, out = carded
    if name != TINY:  # its feature maps have the channels last, which concerns timm alone
        path, out = written(tmp_path / "w.pth", name), tmp_path / "x"
        monkeypatch.setitem(sys.modules, "onnx", None)
        run("export", path, out)
    monkeypatch.chdir(out)
    found = []
    for code in re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL):
        np.random.seed(1)  # noqa: NPY002 -- what the card draws its stand-in for a crop from
        names: dict = {}
        exec(code, names)
        found.append((names["crop"], np.asarray(names["features"])))
    (crop, by_timm), (same, by_onnx) = found[0], found[-1]
    assert len(found) == (2 if name == TINY else 1)
    backbone = build_backbone(name).eval()
    backbone.load_state_dict(torch.load(path, weights_only=True)["backbone"])
    with torch.no_grad():
        expected = backbone((torch.from_numpy(crop)[None, None] / 255 - 0.4) / 0.2).numpy()
    assert (crop == same).all()
    assert by_timm == pytest.approx(expected, abs=1e-5)
    assert by_onnx == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_card_without_facts_says_what_is_unknown_and_invents_nothing(tmp_path):
    path = written(tmp_path / "w.pth", TINY)
    path.with_suffix(".json").unlink()
    config = WeightsConfig(checkpoint=str(path), out=str(tmp_path), backbone=TINY, size=SIZE, std=0.3)
    card = model_card(load_weights(config), None)
    for said in (
        *("How these weights were trained is unknown", "(pixel / 255 - 0.5) / 0.3, float32 - mean assumed"),
        *("polarity: unknown", "resize: unknown", "Unknown: nothing beside the checkpoint says on what"),
        "None: nothing beside the checkpoint states a score",
    ):
        assert said in card, said
    assert "teacher" not in card
    assert "SHA" not in card
    assert "size assumed" not in card


@pytest.fixture(scope="module")
def carded_weights(carded):
    return load_weights(WeightsConfig(checkpoint=str(carded[0]), out=""))


def leaves(value, path=()):
    """Where everything in the facts is."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


ODDITIES = st.sampled_from(
    [None, True, "", "/smith/x", "C:\\smith", "a\n# smith", "|smith|", -1, 10**400, float("nan"), float("inf")]
) | st.recursive(st.just({}) | st.just([]), lambda inner: st.lists(inner, max_size=2), max_leaves=3)


@settings(max_examples=50)
@given(st.data())
def test_odd_facts_are_left_out(carded_weights, data):
    weights = carded_weights
    facts = weights.facts
    for _ in range(data.draw(st.integers(1, 4))):
        facts = copy.deepcopy(facts)
        *way, last = data.draw(st.sampled_from([where for where in leaves(facts) if where]))
        inner = facts
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[last]
        else:
            inner[last] = data.draw(ODDITIES)
    card = model_card(dataclasses.replace(weights, facts=facts), None)
    assert "smith" not in card
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL).replace("None: nothing beside", "")
    assert not re.search(r"\b(None|True|nan|inf)\b", prose)
    assert card.count("\n## ") == 6
