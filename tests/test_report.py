"""The page of a run: what its pictures are made of, and that none of them can fail it in silence."""

import json
import re

import numpy as np
import pytest
import torch
from crops_fixture import TINY, packed, written
from released import released

from augment import ViewConfig
from data_shards.shards.shard_set import ShardSet
from pretrain.__main__ import main
from pretrain.config.released_backbones import RELEASED
from pretrain.config.schema import Config, DataConfig
from pretrain.evaluation.embed import embed, unit
from pretrain.models.backbones import build_backbone
from pretrain.report import figures
from pretrain.report.curves import curves_on_page
from pretrain.report.feature_maps import activation_maps, at_size, attention_maps, feature_maps, larger, pca_colours
from pretrain.report.page import Report, summary_rows
from pretrain.report.sample_crops import examples, specimens
from pretrain.runs.run_folder import RunFolder

SMALL = (64, 48)
LINES = [
    {"step": i, "samples_seen": 16 * i, "loss": 5.0, "loss_over_ln_k": 0.9 - i / 1000, "teacher_entropy": 2.0}
    | {"teacher_mean_entropy": 4.0, "rankme": 20.0 + i, "images_per_s": 9.0, "data_wait": 0.02}
    for i in range(700)
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "shards")


@pytest.fixture(scope="module")
def crops(shards):
    """Labelled here: those of the source are no dental terms, so the pack leaves them behind."""
    found = specimens([ShardSet(shards)], "finding", SMALL)
    return found._replace(labels=np.resize(["blotches", "stripes"], len(found.images)), label="finding")


def images_of(page: str) -> int:
    return page.count("data:image/jpeg;base64,")


def test_activation_shares_out_the_distance_from_the_mean_features():
    maps = np.random.default_rng(0).normal(size=(5, 4, 3, 7))
    features = maps.mean((1, 2))
    distance = ((features - features.mean(0)) ** 2).sum(1)
    assert np.allclose(activation_maps(maps).mean((1, 2)), distance)


def test_colours_follow_what_differs():
    maps = np.zeros((2, 4, 4, 8))
    maps[:, :2, :, 3] = 5  # the upper half of both
    maps += np.random.default_rng(0).normal(size=maps.shape) * 0.01
    colours, share = pca_colours(maps)
    assert colours.shape == (2, 4, 4, 3)
    assert 0.99 < share <= 1
    red = colours[..., 0]
    assert abs(red[:, :2].mean() - red[:, 2:].mean()) > 0.9
    assert pca_colours(maps[:1, :1, :2])[0].shape == (1, 1, 2, 3)  # fewer cells than components


def test_attention_is_that_of_the_last_layer_on_patches():
    backbone = build_backbone("vit")
    images = np.random.default_rng(0).integers(0, 256, (3, *SMALL), dtype=np.uint8)
    found = attention_maps(backbone, images, 0.5, 0.25)
    assert found is not None
    assert found.shape == (3, 6, 4, 3)
    assert np.allclose(found.sum((2, 3)), 1, atol=1e-5)
    attention = [m for m in backbone.modules() if hasattr(m, "attn_drop")][-1]
    assert attention.fused_attn  # as it was
    with torch.no_grad():  # a last layer that asks nothing looks everywhere alike
        attention.qkv.weight.zero_()
    assert np.allclose(attention_maps(backbone, images, 0.5, 0.25), 1 / 12, atol=1e-5)


def test_another_size_has_its_own_batch_statistics_in_a_copy():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    network.register_parameter("weight", torch.nn.Parameter(torch.ones(1)))
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 5), dtype=np.uint8)
    other = at_size(network, images, 0.4, 0.2)
    threes = ((images / 255 - 0.4) / 0.2).reshape(2, -1)  # the memory holds three at a time
    assert other[0].running_mean.item() == pytest.approx(threes.mean(), abs=1e-6)
    assert other[0].running_var.item() == pytest.approx(threes.var(1, ddof=1).mean(), rel=1e-5)
    assert (network[0].running_mean.item(), network[0].running_var.item()) == (0, 1)


@pytest.mark.parametrize("name", released(fast=("mambaout_femto",)))
def test_maps_of_every_released_backbone(name, crops):
    torch.manual_seed(0)
    backbone = build_backbone(name)
    maps = feature_maps(backbone, crops.inputs[:2], 0.5, 0.25)
    assert maps.shape[1:] == (*maps.shape[1:3], RELEASED[name].channels)
    assert backbone.training
    page = figures.maps(crops, backbone, Config(backbone=name, views=ViewConfig(global_size=SMALL)))
    columns = 5 + (8 if name == "vit" else 0)
    assert images_of(page) == columns * figures.MAPPED
    height, width = larger(backbone, SMALL)
    assert f"{height} × {width} px" in page
    assert min(height, width) / backbone.m.feature_info.reduction()[-1] >= 6


def test_neighbours_are_of_other_patients(crops):
    features = unit(np.random.default_rng(0).normal(size=(len(crops.labels), 5)))
    nearest = figures._nearest(features, crops.patients)
    assert nearest.shape == (len(crops.labels), figures.NEIGHBOURS)
    assert not (crops.patients[nearest] == crops.patients[:, None]).any()
    closest = features @ features[0]
    closest[crops.patients == crops.patients[0]] = -1
    assert nearest[0].tolist() == np.argsort(-closest)[: figures.NEIGHBOURS].tolist()
    alone = crops._replace(patients=np.full(len(crops.labels), "p"))
    assert "one patient" in figures.neighbours(alone, features)


def test_examples_take_labels_and_patients_in_turn(crops):
    chosen = examples(crops, 6)
    assert [crops.labels[i] for i in chosen] == ["blotches", "stripes"] * 3
    assert len(set(crops.patients[chosen])) == 6
    assert len(set(examples(crops, 10_000))) == len(crops.labels)


def test_curves_hold_every_step_and_their_extremes():
    spiked = [line | {"gradient_norm": 1.0 if i != 333 else 50.0} for i, line in enumerate(LINES)]
    page = curves_on_page(spiked)
    assert page.count("<svg") == 5
    assert "NaN" not in page
    assert "nan" not in page
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", page.split("<b>gradient norm</b>")[1])]
    assert min(heights) < 20  # the spike of one step is in the band
    broken = curves_on_page([*spiked, {"step": 700, "loss_over_ln_k": float("nan")}])
    assert "nan" not in broken.lower().replace("last nan", "")
    scored = [line | ({"knn": 0.5, "knn_pixels": 0.6} if line["step"] % 100 == 0 else {}) for line in LINES]
    assert "raw pixels 0.600" in curves_on_page(scored)


def report_in(folder, shards, **given):
    config = Config(out=str(folder), backbone=TINY, steps=700, data=DataConfig(shards=[str(shards)]))
    folder.mkdir()
    rows = [("verdict", "learning: <b>so</b>"), ("steps", "700")]
    facts = {"settings": {"seed": 0}, "environment": {"python": "3"}}
    asked = {"backbone": lambda: build_backbone(TINY), "sets": lambda: [ShardSet(shards)]} | given
    return Report(config, LINES, rows, facts, asked["backbone"], asked["sets"])


def test_what_cannot_be_drawn_is_said_and_the_rest_is_drawn(shards, tmp_path):
    def lost():
        raise ValueError(f"cannot read {shards}/x.tar of /home/anna")

    report = report_in(tmp_path / "run", shards, sets=lost)
    report.write()
    page = report.folder.report.read_text()
    assert page.count("Not drawn: cannot read … of ….") == 3
    assert str(tmp_path) not in page
    assert [missing.partition(":")[0] for missing in report.missing][:2] == ["Nearest neighbours", "Feature maps"]
    assert "&lt;b&gt;so&lt;/b&gt;" in page
    assert 'class="verdict learning"' in page
    assert page.count("<svg") == 4


def test_a_page_on_request_is_of_the_run_as_it_stands(shards, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    folder = RunFolder(out)
    folder.write_config(Config(out="elsewhere", backbone=TINY, steps=900, data=DataConfig(shards=[str(shards)])))
    with pytest.raises(SystemExit):
        main(["report", str(out)])
    assert "has no step yet" in capsys.readouterr().err
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    folder.write_state("running", 600)
    main(["report", str(out)])
    printed, page = capsys.readouterr().out, folder.report.read_text()
    assert "warning: not on the page: Feature maps: there are no weights before the first checkpoint" in printed
    assert "running at step 700 of 900" in page
    written(folder.weights, TINY, SMALL)
    folder.facts.unlink(missing_ok=True)
    main(["report", str(out)])
    page = folder.report.read_text()
    assert images_of(page) >= 6 * 11 + 6 * 5
    assert str(tmp_path) not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "is no run folder" in capsys.readouterr().err


@pytest.fixture
def stopped(shards, tmp_path):
    """The folder of a run of 700 steps, with what a page needs but the weights."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(Config(out="run", backbone=TINY, steps=700, data=DataConfig(shards=[str(shards)])))
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    folder.write_state("stopped", 700)
    return folder


def mistake_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


KNN = {"label": "fdi", "after": 0.5, "before": 0.3, "pixels": 0.6, "size": 0.1, "classes": 4, "crops": 9, "patients": 2}
DAMAGED = {
    "empty": ("", "Expecting value"),
    "cut": ('{"training": {"st', "Unterminated string"),
    "a list": ("[]", "it holds no JSON object"),
    "no text": (b"\xff\xfe\x00", "can't decode"),
    "no steps": ('{"training": {}}', "training has no number for step, steps"),
    "no scores": ('{"scores": {"knn": {}}}', "scores.knn has no number for after, before"),
    "a score of words": ({"scores": {"knn": KNN | {"start": "high"}}}, "scores.knn has no number for start"),
    "no label": ({"scores": {"knn": {k: v for k, v in KNN.items() if k != "label"}}}, "no label"),
    "no classes": ({"scores": {"knn": KNN | {"classes": 0}}}, "no classes"),
    "nulls": ('{"training": null, "scores": null, "environment": null}', "training is no object"),
    "null": ('{"environment": null}', "environment is no object"),
    "k-NN in a word": ('{"scores": {"knn": "start"}}', "scores.knn is no object"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_facts_are_one_line_with_their_place_and_a_remedy(name, stopped, capsys):
    content, words = DAMAGED[name]
    content = json.dumps(content) if isinstance(content, dict) else content
    stopped.facts.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = mistake_of(capsys, stopped.path)
    assert f"the facts in {stopped.facts} are damaged" in said
    assert words in said
    assert "remove the file" in said


def test_facts_that_are_whole_or_say_little_are_shown(stopped):
    for facts in ({}, {"scores": {"knn": KNN | {"start": 0.4}}, "training": {"step": 600, "steps": 900}}):
        stopped.facts.write_text(json.dumps(facts))
        main(["report", str(stopped.path)])
    page = stopped.report.read_text()
    assert "0.400 at the start" in page
    assert "at step 700 of 900" in page


def test_damaged_lines_are_told_and_left_out(stopped, capsys):
    lines = [json.dumps(line) for line in LINES[:8]]
    stopped.metrics.write_text("\n".join(['{"step": 0}', *lines[1:5], '{"step": 5, "loss": null}', *lines[6:], ""]))
    main(["report", str(stopped.path)])
    assert f"warning: not on the page: 2 damaged lines of {stopped.metrics}" in capsys.readouterr().out
    assert "the first that is left: 0.899" in stopped.report.read_text()
    stopped.metrics.write_text('{"step": 0}\n')
    assert f"no line of {stopped.metrics} is whole" in mistake_of(capsys, stopped.path)
    bare = [{k: v for k, v in line.items() if k != "rankme"} for line in LINES[1:4]]
    stopped.metrics.write_text("".join(json.dumps(line) + "\n" for line in bare))
    main(["report", str(stopped.path)])
    assert "feature rank</th>" not in stopped.report.read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{[", "cannot be read"),
        ("backbne: vit\n", "Option 'backbne' is not accepted"),
        ("steps: 700\nmethod:\n  prototypes: 0\n", "method.prototypes is 0"),
        ("steps: 700\nmethod:\n  prototypes: auto\n", "does not say method.prototypes"),
    ],
)
def test_damaged_settings_are_told_with_their_file(content, words, stopped, capsys):
    stopped.config.write_text(content)
    said = mistake_of(capsys, stopped.path)
    assert str(stopped.config) in said
    assert words in said


@pytest.mark.parametrize("threads", [-3, 0])
def test_impossible_threads_are_refused(threads, stopped, capsys):
    assert f"--threads is {threads}; give it a value from 1" in mistake_of(capsys, stopped.path, "--threads", threads)


def test_the_best_is_among_scores_that_compare_with_the_last_and_is_kept_only_if_its_file_is_there():
    scores = [("tooth", 0.447), ("tooth", 0.4), ("position", 0.2), ("position", 0.1)]
    lines = [line | {"knn": s, "knn_of": of} for line, (of, s) in zip(LINES, scores, strict=False)]
    said = {kept: dict(summary_rows(lines, {}, 64, kept))["k-NN on the way"] for kept in (None, 3, 4, 0)}
    best = "0.200 at its best, after step 3"
    assert said[None] == said[3] == f"{best}, whose weights are kept (-best.pth)"
    assert said[4] == f"{best}; the weights that are kept (-best.pth) are of step 4"
    assert said[0] == best
    from_weights = [line | {"knn_start": 0.2} for line in lines]
    rows = dict(summary_rows(from_weights, {}, 64, 0))
    assert (
        rows["k-NN on the way"] == f"{best}, no more than the 0.200 of the weights of --init: none are kept as the best"
    )
    rows = dict(summary_rows(from_weights, {}, 64, 4))  # of another label
    assert rows["k-NN on the way"].endswith("of --init; the weights that are kept (-best.pth) are of step 4")


@pytest.mark.parametrize(("step", "moved"), [(2, True), (4, True), (5, False), (8, False)])
def test_a_best_of_later_steps_is_moved_aside_with_them(step, moved, stopped):
    stopped.checkpoints.mkdir()
    for later in (2, 4, 8, 10):
        stopped.resume_file(later, False).touch()
    stopped.best_weights.touch()
    stopped.best_facts.write_text('{"training": {"step": 5}}')
    aside = stopped.set_aside(step)
    assert {(aside / path.name).exists() for path in (stopped.best_weights, stopped.best_facts)} == {moved}
    assert {path.exists() for path in (stopped.best_weights, stopped.best_facts)} == {not moved}
    assert stopped.best_step() == (0 if moved else 5)


@pytest.mark.parametrize(("after", "remark"), [(0.5, True), (0.6, True), (0.61, False)])
def test_k_nn_that_raw_pixels_have_too_is_remarked(after, remark):
    rows = summary_rows(LINES, {"knn": KNN | {"after": after}}, 64)
    assert any("raw pixels tell no less" in words for _, words in rows) == remark


@pytest.mark.parametrize(("after", "remark"), [(0.69, True), (0.7, True), (0.701, False)])
def test_k_nn_that_the_weights_of_init_have_too_is_remarked(after, remark):
    rows = summary_rows(LINES, {"knn": KNN | {"after": after, "start": 0.7}}, 64)
    assert any("the weights of --init tell no less" in words for _, words in rows) == remark


def test_a_map_of_crops_is_the_same_each_time_and_needs_no_label(crops):
    features = unit(embed(build_backbone(TINY), crops.inputs, 0.5, 0.25))
    one = figures.embedding(crops, features)
    assert one == figures.embedding(crops, features)
    assert one.count("<circle") == 2 * len(crops.labels)
    bare = crops._replace(labels=np.full(len(crops.labels), ""), label="")
    assert "carry no label" in figures.embedding(bare, features)
