"""k-NN, folds and baselines against independent computations; the configuration's own checks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pretrain.__main__ import read_command_line
from pretrain.config.schema import Config, ConfigError, DataConfig
from pretrain.data.shard_sets import parsed_shards
from pretrain.evaluation.embed import embed, embed_maps, pixel_features, size_features, unit
from pretrain.evaluation.knn import balanced_accuracy, knn_over_folds, knn_predict, patient_folds
from pretrain.models.backbones import build_backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from pretrain.runtime.precision import resolve_precision


def test_nearest_neighbours_are_those_of_scipy_by_cosine():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(300, 16)), rng.normal(size=(80, 16))
    labels = rng.integers(0, 5, 300).astype(str)
    nearest = np.argsort(cdist(queries, bank, "cosine"), axis=1)[:, :9]
    predicted = knn_predict(unit(bank), labels, unit(queries), 9)
    for row, label in zip(nearest, predicted, strict=True):
        names, counts = np.unique(labels[row], return_counts=True)
        assert label in names[counts == counts.max()]


@pytest.mark.parametrize("distances", [1, 299, 300, 2100, 10**6])
def test_many_queries_are_taken_some_at_a_time(distances, monkeypatch):
    rng = np.random.default_rng(0)
    bank, queries, labels = rng.normal(size=(300, 16)), rng.normal(size=(80, 16)), rng.integers(0, 5, 300)
    whole = knn_predict(bank, labels, queries, 9)
    monkeypatch.setattr("pretrain.evaluation.knn.DISTANCES", distances)
    assert np.array_equal(knn_predict(bank, labels, queries, 9), whole)
    assert not len(knn_predict(bank, labels, queries[:0], 9))


def test_of_equal_votes_the_nearer_win():
    bank = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert knn_predict(bank, np.array(["near", "a far one"]), np.zeros((1, 2)), 2).tolist() == ["near"]


def test_balanced_accuracy_weighs_classes_alike():
    truth = np.array(["a"] * 90 + ["b"] * 10)
    assert balanced_accuracy(truth, np.full(100, "a")) == 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(2, 8))
def test_no_patient_is_in_two_folds(patients, folds):
    patients = np.array(patients).astype(str)
    if len(set(patients)) < 2:
        with pytest.raises(ValueError, match="two patients"):
            patient_folds(patients, folds)
        return
    fold = patient_folds(patients, folds)
    assert all(len(set(fold[patients == p])) == 1 for p in set(patients))
    assert len(set(fold)) == min(folds, len(set(patients)))


def test_a_feature_that_only_names_the_patient_scores_chance():
    """Were a patient's other crops among the neighbours, this would score 1."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(100), 6)
    labels = np.repeat(rng.integers(0, 4, 100), 6).astype(str)
    one_hot = np.eye(100)[patients] + rng.normal(0, 1e-3, (600, 100))
    assert knn_over_folds(one_hot, labels, patients.astype(str)) < 0.45


def test_unscored_crops_are_neighbours_but_not_classified():
    features = np.array([[0.0], [10.0], [0.1], [10.1]])
    labels, patients = np.array(["a", "b", "a", "b"]), np.array(["p", "q", "r", "s"])
    scored = np.array([False, False, True, True])
    assert knn_over_folds(features, labels, patients, 1, 2, scored) == 1
    assert knn_over_folds(features[scored], labels[scored], patients[scored], 1, 2) == 0


def test_pixels_ignore_exposure_and_sizes_are_standardised():
    pixels = np.random.default_rng(0).uniform(0, 100, (5, 50))
    np.testing.assert_allclose(pixel_features(pixels), pixel_features(pixels * 2 + 7), atol=1e-5)
    sizes = size_features(np.array([[10, 20], [30, 40], [50, 90]]))
    np.testing.assert_allclose(sizes.std(0), 1)


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_vit"])
def test_maps_are_read_as_averages_of_their_cells(name):
    """Convolutions, maps with channels last, and a transformer's tokens."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 192), dtype=np.uint8)
    with torch.no_grad():
        maps = backbone.m((torch.tensor(images)[:, None] / 255 - 0.5) / 0.25)[-2:]
    if name == "test_mambaout":
        maps = [one.permute(0, 3, 1, 2) for one in maps]
    expected = []
    for one, (rows, columns) in zip(maps[::-1], ((2, 2), (4, 3)), strict=True):
        height, width = one.shape[2] // rows, one.shape[3] // columns  # which divide, at this size
        cells = one.unfold(2, height, height).unfold(3, width, width).mean((4, 5))
        assert cells.shape[2:] == (rows, columns)
        expected.append(cells.flatten(1))
    found = embed_maps(backbone, images, 0.5, 0.25, 2)
    np.testing.assert_allclose(found, torch.cat(expected, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_calibrated_buffers_make_eval_equal_to_the_batch_statistics():
    torch.manual_seed(0)
    backbone = build_backbone("resnet10t")
    images = np.random.default_rng(0).integers(0, 256, (32, 64, 48), dtype=np.uint8)
    before = embed(backbone, images, 0.5, 0.25)
    calibrate_batchnorm(backbone, images, 0.5, 0.25)
    after = embed(backbone, images, 0.5, 0.25)
    with torch.no_grad():
        batch = backbone.train()((torch.tensor(images)[:, None] / 255 - 0.5) / 0.25).numpy()

    def cosine(a, b):
        return np.mean(np.sum(unit(a) * unit(b), axis=1))

    assert cosine(after, batch) > 0.999
    assert cosine(before, batch) < cosine(after, batch)
    assert backbone.m.bn1.momentum == 0.1


def test_shards_with_and_without_weights():
    assert parsed_shards(["a", "b"]) == (["a", "b"], None)
    assert parsed_shards(["x=y=2", "b=0.5"]) == (["x=y", "b"], [2.0, 0.5])
    for bad in (["a=1", "b"], ["a=-1"], ["a=x"], ["a=nan"]):
        with pytest.raises(ConfigError):
            parsed_shards(bad)


def test_length_is_steps_or_epochs():
    assert Config(epochs=2, data=DataConfig(batch_size=64)).total_steps(100) == 4
    assert Config(steps=7).total_steps(100) == 7
    for config in (Config(), Config(steps=1, epochs=1)):
        with pytest.raises(ConfigError, match="either --steps N or --epochs N"):
            config.total_steps(100)
    for config in (
        Config(steps=1, epochs=1),
        Config(steps=10, epochs="auto"),
    ):  # auto has become steps when it is asked
        with pytest.raises(ConfigError, match="either --steps N or --epochs N"):
            config.check(1)
    for config in (Config(steps=0), Config(epochs=-1), Config(seed=-1), Config(std=0)):
        with pytest.raises(ConfigError, match=r"a value (from|of)"):
            config.check(1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--recipe", "vit", "--steps", "10"], (10, None)),
        (["--recipe", "demo", "--epochs", "auto"], (None, "auto")),
        (["--recipe", "demo", "--epochs=2"], (None, 2)),
        (["--recipe", "vit", "--steps", "10", "--epochs", "auto"], None),
        (["--recipe", "demo", "--steps=10", "--epochs=2"], None),
    ],
)
def test_one_length_replaces_the_recipes_and_two_are_refused(options, expected):
    config, _ = read_command_line(options)
    if expected:
        config.check(1)
        assert (config.steps, config.epochs) == expected
    else:
        with pytest.raises(ConfigError, match="either --steps N or --epochs N"):
            config.check(1)


def test_precision_the_launcher_wins_unless_it_says_no(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resolve_precision("bf16", cpu).mixed == "bf16"
    assert resolve_precision("fp32", cpu).mixed == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_precision("fp32", cpu) == ("bf16", "from the launcher")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="bf16 or no"):
        resolve_precision("auto", cpu)
