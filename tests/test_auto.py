"""The rules behind `auto`: monotone, without jumps, inside what was published, and kept by a resume."""

import dataclasses
import json
import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from processes import smoke

from pretrain.__main__ import RECIPES, read_command_line
from pretrain.config import auto
from pretrain.config.released_backbones import RELEASED
from pretrain.config.schema import Config, DataConfig, MethodConfig, OptimConfig
from pretrain.models.backbones import BackboneError, build_backbone, check_view_size

CROPS = st.integers(1, 100_000_000)
STEPS = st.integers(1, 10_000_000)
BATCH = st.integers(2, 16_384)


@pytest.mark.parametrize(
    ("rule", "low", "high", "at"),
    [
        (auto.teacher_temperature, 0.02, 0.07, {100: 0.02, 20_000: 0.02, 510_000: 0.045, 1_000_000: 0.07}),
        (auto.teacher_temperature_start, 0.02, 0.04, {100: 0.02, 20_000: 0.02, 510_000: 0.03, 1_000_000: 0.04}),
        (lambda crops: auto.prototypes(crops, 2048), 256, 65536, {10: 256, 20_000: 1024, 10**6: 32768, 2**20: 65536}),
        (lambda crops: auto.run_steps(crops, 64), 1, 2_000_000, {1000: 1563, 8335: 13_024, 4_000_000: 2_000_000}),
    ],
)  # fmt: skip
@given(crops=st.tuples(CROPS, CROPS))
def test_rules_of_the_crops_rise_within_what_was_published(rule, low, high, at, crops):
    few, many = sorted(crops)
    assert low <= rule(few) <= rule(many) <= high
    assert {n: rule(n) for n in at} == at


@given(steps=st.tuples(STEPS, STEPS))
def test_rules_of_the_steps(steps):
    few, many = sorted(steps)
    assert 0.8 <= auto.ema_start(few) <= auto.ema_start(many) <= 0.996
    for share, most, wanted in (
        (auto.warmup, 0.1, 12_500),
        (auto.freeze_last_layer, 0.05, 1_250),
        (auto.teacher_temperature_warmup, 0.3, 37_500),
    ):
        assert most >= share(few) >= share(many) > 0
        assert share(few) * few <= share(many) * many + 1e-6 <= wanted + 1e-5  # in steps it rises, up to DINO's


def test_the_ema_rule_goes_through_the_values_it_is_made_from():
    assert [auto.ema_start(n) for n in (300, 15_625, 125_000, 10**6)] == [0.97, 0.992, 0.996, 0.996]


@given(crops=CROPS, steps=STEPS, batch=BATCH, more=st.floats(1.0, 1.01))
def test_a_little_more_changes_little(crops, steps, batch, more):
    """One per cent moves each value by as much at most, and K by one power of two."""
    for rule, n in (
        (auto.teacher_temperature, crops),
        (auto.teacher_temperature_start, crops),
        (auto.warmup, steps),
        (auto.freeze_last_layer, steps),
        (auto.teacher_temperature_warmup, steps),
        (lambda steps: 1 - auto.ema_start(steps), steps),
        (lambda batch: auto.learning_rate(batch, "vit"), batch),
    ):
        more_n = math.floor(n * more)
        grows = max(more_n / n, n / more_n)
        rounding = 1.1e-3 if n is steps else 1.1e-4
        assert abs(rule(more_n) - rule(n)) <= (grows - 1) * 1.5 * rule(n) + rounding
    assert auto.prototypes(math.floor(crops * more), batch) <= 2 * auto.prototypes(crops, batch)


@given(crops=CROPS, batch=BATCH)
def test_no_batch_is_asked_for_more_prototypes_than_published(crops, batch):
    width = auto.prototypes(crops, batch)
    assert width.bit_count() == 1
    assert width == 256 or width <= min(64 * batch, crops / 16)


@given(batch=BATCH, factor=st.integers(1, 16))
def test_the_learning_rate_grows_with_the_root_of_the_batch(batch, factor):
    for name in (*RELEASED, "resnet10t"):
        assert auto.learning_rate(batch * factor**2, name) == pytest.approx(factor * auto.learning_rate(batch, name))
    assert auto.learning_rate(1024, "vit") == auto.learning_rate(1024, "ViT_backbone") == pytest.approx(2e-3)
    assert auto.learning_rate(64, "starnet_s4") == 1e-3


@pytest.mark.parametrize("name", [*RELEASED, "resnet10t", "vit_tiny_patch16_224"])
def test_vits_convnextv2_and_strangers_learn_at_half_the_rate(name):
    rate = 5e-4 if name in ("vit", "convnextv2", "resnet10t", "vit_tiny_patch16_224") else 1e-3
    release = RELEASED.get(name)
    for called in (name, *((release.class_name, release.timm_name, *release.checkpoints) if release else ())):
        assert auto.learning_rate(64, called) == rate


@given(processes=st.integers(1, 300))
def test_any_number_of_processes_gets_a_batch_that_divides(processes):
    for device in ("cpu", "cuda"):
        batch = auto.global_batch(device, processes)
        Config(data=DataConfig(batch_size=batch)).check(processes)
        assert batch == 64 * processes if device == "cuda" else batch >= 64 or processes > 32


def test_every_setting_that_takes_auto_has_a_rule():
    """All of them on auto at once: none is left, none but them moves, and the result is a run."""
    everything = Config(
        epochs="auto",
        data=DataConfig(batch_size="auto"),
        method=MethodConfig("auto", 0.1, "auto", "auto", "auto", "auto", freeze_last_layer="auto"),
        optim=OptimConfig(lr="auto", init_freeze="auto", warmup="auto"),
    )
    takes = [
        field.name
        for group in (Config, DataConfig, MethodConfig, OptimConfig)
        for field in dataclasses.fields(group)
        if "auto" in str(field.type) and field.name not in ("precision", "batchnorm")
    ]
    assert sorted(name.rpartition(".")[2] for name in auto.on_auto(everything)) == sorted(takes)
    config, said = auto.resolved(everything, 8335, "cuda", 2)
    config.check(2)
    assert auto.on_auto(config) == []
    assert (config.steps, config.epochs, config.data.batch_size, config.method.prototypes) == (6512, None, 128, 512)
    assert said.startswith("auto: data.batch_size 128, steps 6512, method.prototypes 512, ")
    assert said.endswith(" (8,335 crops in batches of 128 over 6,512 steps)")
    assert auto.resolved(config, 10**6, "cpu", 1) == (config, "")  # numbers stay


def test_numbers_that_are_given_stay_and_the_rules_follow_them():
    base = Config(epochs=2, data=DataConfig(batch_size=32), method=MethodConfig(prototypes="auto", ema_start="auto"))
    config, _ = auto.resolved(base, 10_000, "cuda", 4)
    assert (config.epochs, config.data.batch_size) == (2, 32)
    assert config.optim == dataclasses.replace(base.optim, init_freeze=0.05)
    assert (config.method.prototypes, config.method.ema_start) == (512, auto.ema_start(625))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes(recipe):
    """Short, with reasons, every name right, and its backbone takes its views."""
    text = (RECIPES / f"{recipe}.yaml").read_text()
    assert len(text.splitlines()) < 30
    without = [line for line in text.splitlines() if re.search(r"(?<![\w/])\d", line) and "#" not in line]
    assert not without, "a figure has its reason beside it"
    config, _ = read_command_line(["--recipe", recipe])
    config, _ = auto.resolved(config, 10_000, "cpu", 1)
    config.check(1)
    backbone = build_backbone(config.backbone)
    for size in (config.views.global_size, config.views.local_size):
        check_view_size(backbone, config.backbone, size)


@pytest.mark.parametrize("backbone", sorted(RELEASED.keys() - {"vit", "convnextv2"}))
def test_small_cnn_is_for_the_ten_convolutional_backbones(backbone):
    """As it is, or with the views that its first lines name for three of them."""
    exceptions = re.search(
        r"of which\n# (.*) want --views.local_size \[32,32\]", (RECIPES / "small-cnn.yaml").read_text()
    )
    config, _ = read_command_line(["--recipe", "small-cnn", "--backbone", backbone])
    built, named = build_backbone(backbone), backbone in exceptions[1]
    check_view_size(built, backbone, config.views.global_size)
    check_view_size(built, backbone, (32, 32) if named else config.views.local_size)
    if named:
        with pytest.raises(BackboneError, match=r"views of 32x24 px .* use larger views \(.*--views.local_size\)"):
            check_view_size(built, backbone, config.views.local_size)


def test_small_cnn_trains_with_what_its_figures_were_measured_with():
    config, _ = read_command_line(["--recipe", "small-cnn"])
    config, _ = auto.resolved(config, 8335, "cpu", 1)
    assert (config.optim.lr, config.method.ema_start, config.method.prototypes) == (1e-3, 0.97, 256)


def test_a_resume_keeps_what_the_rules_chose(tmp_path):
    """More steps would change three of these; the run keeps its own, in its files too."""
    names = ("method.prototypes", "method.ema_start", "optim.lr", "optim.warmup")
    options = ["--data.phantom_patients", "10", *(part for name in names for part in (f"--{name}", "auto"))]
    out = tmp_path / "run"
    printed = smoke(out, None, *options, "--steps", 2)
    assert "auto: method.prototypes 256, method.ema_start 0.841, optim.lr 0.00025, optim.warmup 0.1" in printed
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert "auto" not in {settings["method"]["prototypes"], settings["optim"]["lr"], settings["method"]["ema_start"]}
    assert json.loads((out / "run.json").read_text())["settings"]["method"]["ema_start"] == 0.841
    printed = smoke(out, None, *options, "--steps", 4)
    assert "method.ema_start 0.841" in printed
    assert "(as this run began)" in printed
    assert yaml.safe_load((out / "config.yaml").read_text())["method"]["ema_start"] == 0.841
