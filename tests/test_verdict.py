"""The verdict on lines made up, with every K and batch; on runs that are made to collapse; and what a run does then."""

import json
import math
import random
import re
import time
from operator import attrgetter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import FORKED, LAUNCHED, logged, run

from data_shards.shards.stream import ShardSet, Stream
from pretrain.__main__ import read_command_line
from pretrain.config.schema import Config
from pretrain.data.shard_sets import phantom_shards
from pretrain.method.diagnostics import MONITOR_EVERY
from pretrain.method.trainer import Trainer
from pretrain.monitoring.diagnosis import Watch, judge, told
from pretrain.monitoring.rules import STILL
from pretrain.monitoring.run_statistics import fitted

TOTAL = 2000


def lines(steps: int, k: int = 256, seed: int = 0, noise: float = 0.01, **curves):
    """Made-up lines of a run that learns; `curves` are functions of the step, from 0 to 1 over TOTAL / 20 steps."""
    rng, ln_k = random.Random(seed), math.log(k)
    sound = {
        "loss": lambda t: ln_k * (1.01 - 0.04 * t),
        "target_entropy": lambda t: 0.6 * ln_k,
        "target_mean_entropy": lambda t: ln_k,
        "rankme": lambda t: 40 + t,
        "weight_norm": lambda t: 50 + t,
        "update_ratio": lambda t: 1e-3,
        "gradient_norm": lambda t: 1.0,
        "ema_momentum": lambda t: 0.99,
        "teacher_temperature": lambda t: 0.02,
        "lr": lambda t: 1e-5 + 1e-3 * t,
        "images_per_s": lambda t: 100.0,
        "data_wait": lambda t: 0.02,
    }
    for step in range(steps):
        t = step / (TOTAL / 20)
        line = {"step": step} | {name: curve(t) for name, curve in (sound | curves).items()}
        line["loss"] += rng.gauss(0, noise * ln_k)
        line["loss_over_ln_k"] = line["loss"] / ln_k
        if step % MONITOR_EVERY:
            del line["rankme"], line["weight_norm"], line["update_ratio"]
        yield line


def verdicts(made, total=TOTAL):
    """The verdicts on these lines, each with its step, as a run comes to them."""
    watch = Watch(total)
    return [(line["step"], watch.verdict) for line in made if "verdict" in watch.take(line)]


SPOILT = {
    "uniform collapse": lambda ln_k: {
        "target_entropy": lambda t: 0.99 * ln_k,
        "loss": lambda t: ln_k * (1.02 - t / 50),
    },
    "point collapse": lambda ln_k: {
        name: lambda t, share=share: share * ln_k * (1 - 0.9 * t)
        for name, share in (("target_mean_entropy", 1), ("target_entropy", 0.5), ("loss", 1))
    },
    "rank collapse": lambda ln_k: {"rankme": lambda t: 40 - 38 * t},
    "diverging": lambda ln_k: {"weight_norm": lambda t: 50 * math.exp(t)},
    "not learning": lambda ln_k: {"loss": lambda t: 1.01 * ln_k},
    "starved": lambda ln_k: {"data_wait": lambda t: 0.6},
    "learning": lambda ln_k: {},
}


@settings(max_examples=40)
@given(st.sampled_from(sorted(SPOILT)), st.sampled_from([2, 16, 256, 4096, 65536]), st.integers(0, 2**31))
def test_each_is_named_by_5_percent_of_the_run_whatever_k(name, k, seed):
    found = verdicts(lines(TOTAL // 20, k, seed, **SPOILT[name](math.log(k))))
    assert found[-1][1].name == name
    assert {verdict.name for _, verdict in found} <= {name, "learning"}


def burst(at: float, otherwise: float):
    """A curve that has the value `at` in every tenth step."""
    return lambda t: at if round(t * TOTAL / 20) % 10 == 5 else otherwise


KNOWN = {"target_entropy": lambda t: 1.0}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"loss": lambda t: math.log(256) * (1 + 0.3 * t)}, "diverging"),
        ({"ema_momentum": lambda t: 1.0}, "not learning"),
        # started from weights that had learnt: only what they learn counts, whatever they predict
        (KNOWN | {"loss": lambda t: (0.5 - 0.1 * t) * math.log(256)}, "learning"),
        (KNOWN | {"loss": lambda t: (0.5 + 0.4 * t) * math.log(256)}, "not learning"),
        # few prototypes and a small batch: a loss that moves by a tenth of ln K and more from step to step
        ({"loss": lambda t: (1.12 if t > 0.1 else 1) * math.log(2), "noise": 0.2, "k": 2}, "not learning"),
        # a small batch shows few of the prototypes: the student is behind the batch's mean target, and learns
        ({"target_mean_entropy": lambda t: 0.8 * math.log(256), "target_entropy": lambda t: 1.0}, "learning"),
        # a student that turns uniform seems to gain, until it is
        ({"loss": lambda t: math.log(256) * (1.01 + 0.07 * math.exp(-6 * t))}, "not learning"),
        # the first step of a process starts its workers
        ({"data_wait": lambda t: 0.99 * (t == 0), "images_per_s": lambda t: 100 if t else 0.1}, "learning"),
        # waiting that comes in bursts: every tenth step takes eleven times as long, and all of that is waiting
        ({"data_wait": burst(0.9, 0.01), "images_per_s": burst(10.0, 110.0)}, "starved"),
        # one long wait is an accident
        ({"data_wait": lambda t: 0.99 * (t == 0.9), "images_per_s": lambda t: 1 if t == 0.9 else 100}, "learning"),
        # continued from weights, whose k-NN has fallen, and is level within its error
        ({"knn": lambda t: 0.78, "knn_start": lambda t: 0.80}, "not learning"),
        ({"knn": lambda t: 0.795, "knn_start": lambda t: 0.80}, "learning"),
    ],
)
def test_what_is_easily_mistaken(change, name):
    ln_k = math.log(change.get("k", 256))
    if "k" in change:
        change = {"target_mean_entropy": lambda t: ln_k, "target_entropy": lambda t: 0.5 * ln_k} | change
    assert verdicts(lines(TOTAL // 20, **change))[-1][1].name == name


def test_weights_of_init_that_are_destroyed_are_told_at_once_and_level_ones_are_no_alarm():
    lost = {"loss": lambda t: (0.5 + 0.6 * min(50 * t, 1)) * math.log(256)}  # within two steps, before BEGIN is over
    step, verdict = verdicts(lines(31, **KNOWN, **lost))[0]
    assert (step, verdict.name) == (10, "not learning")
    assert "weights that it began with are being lost" in verdict.evidence
    assert verdict.remedy.startswith("lower --optim.lr, or --optim.init_lr")
    flat = KNOWN | {"loss": lambda t: 0.5 * math.log(256)}
    assert verdicts(lines(100, **flat)) == verdicts(lines(100, backbone_lr=lambda t: 0.0, **flat)) == []
    assert verdicts([line | {"step": line["step"] + 5000} for line in lines(100, **flat)]) == []  # its metrics are lost


def test_a_student_that_still_gains_is_no_alarm_before_it_has_learnt_anything():
    """As a ViT's did: -0.10 nats at first, 0 at step 55 of 1,000, where 5 % of it had passed."""
    gaining = {"loss": lambda t: math.log(256) * (1.02 - 0.035 * t)}
    found = verdicts(lines(100, noise=0.002, **gaining), total=1000)
    assert {verdict.name for _, verdict in found} == {"learning"}
    level = {"loss": lambda t: math.log(256) * 1.02}
    assert verdicts(lines(100, noise=0.002, **level), total=1000)[0][1].name == "not learning"


def test_weights_that_do_not_move_are_told_at_once_in_a_run_of_any_length():
    level = {"loss": lambda t: 1.01 * math.log(256), "update_ratio": lambda t: 1e-9}
    for total in (11, 300, 100_000):
        step, verdict = verdicts(lines(11, **level), total)[0]
        assert (step, verdict.name) == (10, "not learning")
        assert f"moves the weights by {1e-9 * total:.2g} of their length" in verdict.evidence
    assert verdicts(lines(11, **level, backbone_lr=lambda t: 0.0, lr=lambda t: 0.0))[0][0] == 10
    for share, alarms in ((0.99, True), (1.01, False)):
        moving = {"update_ratio": lambda t, share=share: share * STILL / TOTAL}
        assert bool(verdicts(lines(41, **level | moving))) == alarms
    assert verdicts(lines(41, **level | {"update_ratio": lambda t: 1e-3 if t == 0 else 1e-9})) == []
    sound = lines(1000, update_ratio=lambda t: 1e-3 if 0.05 < t < 1 else 1e-9)  # as at both ends of its schedule
    assert {verdict.name for _, verdict in verdicts(sound)} == {"learning"}
    assert verdicts([line | {"step": line["step"] + 5000} for line in lines(41, **level)]) == []  # its metrics are lost


@pytest.mark.parametrize(("total", "share"), [(400, 0.05), (TOTAL, 0.05), (2010, 0.05), (1000, 0.15), (400, 0.5)])
def test_a_backbone_that_waits_for_its_head_is_told_that_it_does_not_move_when_it_should(total, share):
    """The head learns alone for 5 % of the run, or longer where it is new; only it moves then."""
    begins = round(share * total)
    waiting = {"backbone_lr": lambda t: 1e-8 * (t >= begins / 100), "loss": lambda t: 0.5 * math.log(256)}
    ratio = {"update_ratio": lambda t: 1e-9 if t >= begins / 100 else 1e-3}
    first = verdicts(lines(300, **KNOWN | waiting | ratio), total)[0]
    assert (first[0], first[1].name) == (math.ceil(begins / MONITOR_EVERY) * MONITOR_EVERY, "not learning")


@pytest.mark.parametrize("count", [2, 3, 20, 51])
def test_the_slope_is_that_of_least_squares(count):
    values = np.random.default_rng(count).normal(size=count).cumsum()
    (slope, _), covariance = np.polyfit(range(count), values, 1, cov="unscaled")
    assert fitted(values.tolist()) == pytest.approx((slope, math.sqrt(covariance[0, 0])))


def test_weights_of_init_that_have_collapsed_are_told():
    flat = {"target_mean_entropy": lambda t: 0.01, "target_entropy": lambda t: 0.005, "loss": lambda t: 0.02}
    made = [line | {"backbone_lr": 1e-4 * (line["step"] >= 20)} for line in lines(30, noise=0, **flat)]
    assert verdicts(made)[0][1].name == "point collapse"


def test_a_schedule_whose_beginning_is_lost_is_no_frozen_teacher():
    made = list(lines(1000, ema_momentum=lambda t: 1 - 1e-2 * (1 - t / 10) ** 2))
    assert "teacher takes in" not in str(verdicts(made[950:], total=1000))


def test_what_is_not_certain_is_not_said_early():
    assert verdicts(lines(TOTAL // 40, loss=lambda t: 1.01 * math.log(256))) == []
    assert told(lines(9), 9) == [("verdict", "none: too early, or too little happened, to tell in a run of 9 steps")]
    assert verdicts(lines(30, loss=lambda t: 1.01 * math.log(256)), total=30) == []  # 5 % of it is noise


@settings(max_examples=30)
@given(st.sampled_from(sorted(SPOILT)), st.integers(0, 99))
def test_a_resumed_run_comes_to_the_verdicts_of_an_undisturbed_one(name, at):
    made = list(lines(100, **SPOILT[name](math.log(256))))
    undisturbed = Watch(TOTAL)
    whole = [line | undisturbed.take(line) for line in made]
    resumed = Watch(TOTAL, whole[:at])
    assert [line | resumed.take(line) for line in made[at:]] == whole[at:]


def test_lines_of_older_versions_and_lost_ones_are_passed_over():
    watch = Watch(TOTAL, [{"step": i, "loss": 1.0} for i in range(13)])
    late = [line | {"step": line["step"] + 13} for line in lines(100)]
    assert verdicts([*late[4:]])  # whose first line has no rank
    for line in late:
        watch.take(line)
    assert watch.verdict.name == "learning"


def test_every_remedy_names_settings_that_there_are():
    for name, spoil in SPOILT.items():
        for change in (spoil(math.log(256)), {"ema_momentum": lambda t: 1.0}):
            verdict = verdicts(lines(100, **change))[-1][1]
            assert re.search(r"\d", verdict.evidence)
            options = re.findall(r"--([a-z_.]+[a-z])", verdict.remedy)
            assert bool(options) == (verdict.name != "learning"), name
            for option in options:
                attrgetter(option)(Config())


def test_a_summary_tells_when_a_verdict_came():
    later = ({**line, "step": line["step"] + 90} for line in lines(60, target_entropy=lambda t: 5.5))
    made = [*lines(90), *later]
    (_, last), (_, steps) = told(made, TOTAL)
    assert last.startswith("uniform collapse: ")
    assert re.fullmatch(r"learning from step \d0, uniform collapse from step \d+0", steps)
    assert judge(made[:5], made[39:90], TOTAL).name == "learning"


UNIFORM = ["--method.teacher_temperature", 0.1, "--method.teacher_temperature_start", 0.1]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    config, _ = read_command_line(["--recipe", "smoke", "--data.phantom_patients", "150"])
    return phantom_shards(config, tmp_path_factory.mktemp("phantom"), lambda _: None)


@pytest.mark.parametrize(
    ("command", "code"),  # 1 is the launcher's
    [pytest.param(FORKED, 2, marks=pytest.mark.slow), pytest.param(LAUNCHED, 1, marks=pytest.mark.extended)],
)
def test_a_collapse_ends_a_run_that_asks_for_it_and_continues_one_that_does_not(command, code, shards, tmp_path):
    out = tmp_path / "run"
    data = ["--data.shards", shards, "--data.workers", 0, "--backbone", "test_resnet", "--precision", "fp32"]
    arguments = ["--recipe", "smoke", "--out", out, *data, *UNIFORM]
    printed = run(*arguments, "--on_collapse", "stop", command=command, code=code)
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "uniform collapse" in error
    assert "--method.teacher_temperature" in error
    assert "--on_collapse warn" in error
    state = json.loads((out / "state.json").read_text())
    assert (state["state"], state["step"]) == ("failed", 11)
    assert state["verdict"].startswith("uniform collapse: the targets tell images apart by 0.")
    assert (out / "checkpoints" / "step-00000011.pth").exists()
    assert len(logged(out)) == 11
    printed = run(*arguments, "--eval.label", "finding")
    assert "continuing from step 11" in printed
    assert "uniform collapse" in printed
    assert json.loads((out / "state.json").read_text())["state"] == "finished"
    assert "uniform collapse from step 10" in (out / "report.html").read_text()


def trained(shards, steps, *options):
    """Verdicts and their steps, in order of change, of the first `steps` of a run of TOTAL; and all of its lines."""
    small = ["--views.global_size", "[32,24]", "--views.local_size", "[16,12]", "--backbone", "test_resnet"]
    data = ["--data.shards", str(shards), "--data.batch_size", "32", "--data.workers", "1"]
    fixed = ["--recipe", "smoke", "--precision", "fp32", "--optim.lr", "1e-3", "--steps", str(TOTAL)]
    config, _ = read_command_line([*fixed, *small, *data, *map(str, options)])
    torch.set_num_threads(1)
    stream = Stream([ShardSet(shards)], None, config.seed, config.data.shard_group)
    trainer = Trainer(config, Accelerator(cpu=True), stream)
    watch = Watch(trainer.total)
    named: dict[str, int] = {}

    def log(line):
        if found := watch.take(line).get("verdict"):
            named.setdefault(found, line["step"])
            print(line["step"], watch.verdict)

    trainer.run(log, lambda: None, lambda: trainer.step >= steps)
    return named


VIT = ["--backbone", "test_vit", "--views.global_size", "[32,32]", "--views.local_size", "[16,16]"]
CONVNEXT = ["--backbone", "test_convnext2", "--views.global_size", "[64,32]", "--views.local_size", "[32,32]"]
MEAN = ["--method.centering", "mean"]
NO_CENTERING = [*MEAN, "--method.center_momentum", 1, "--method.ema_start", 0.95, "--optim.lr", 3e-3]
HESITANT = [*VIT, "--data.batch_size", 16, "--optim.lr", 2.5e-4, "--steps", 1000]  # the rate that auto gives it
FEW = ["--method.prototypes", 2, "--method.koleo", 0, "--method.ema_start", 0.9, "--optim.lr", 1e-2]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("uniform collapse", 11, [*UNIFORM, *MEAN]),
        ("rank collapse", 100, [*VIT, *FEW]),
        ("diverging", 41, ["--optim.lr", 0.1]),
        ("diverging", 41, [*VIT, "--optim.lr", 0.1]),
        ("not learning", 11, ["--method.ema_start", 1]),
        ("not learning", 11, ["--optim.lr", 1e-7]),
        ("not learning", 91, [*VIT, "--optim.lr", 1e-5]),
    ],
)
def test_other_runs_that_are_spoilt_are_told_what_spoils_them_in_their_first_5_percent(name, steps, options, phantom):
    assert_told(name, steps, options, phantom)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "options"), [("point collapse", 70, NO_CENTERING), ("uniform collapse", 11, UNIFORM)]
)
def test_a_run_that_collapses_is_told_so_in_its_first_5_percent(name, steps, options, phantom):
    assert_told(name, steps, options, phantom)


def assert_told(name, steps, options, phantom) -> None:
    *before, last = trained(phantom, steps, *options)
    assert last == name
    assert set(before) <= {"learning"}


@pytest.mark.slow
def test_a_run_whose_data_come_slowly_is_starved(phantom, monkeypatch):
    read = Stream.read
    monkeypatch.setattr(Stream, "read", lambda *arguments: time.sleep(0.03) or read(*arguments))
    assert list(trained(phantom, 21)) == ["starved"]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        pytest.param(100, [], marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.extended)
            for case in (
                (100, VIT),
                (180, HESITANT),
                (100, CONVNEXT),
                (100, [*MEAN, "--method.teacher_temperature", 0.04, "--method.teacher_temperature_start", 0.04]),
            )
        ),
    ],
)
def test_a_sound_run_raises_no_alarm(steps, options, phantom):
    assert list(trained(phantom, steps, *options)) == ["learning"]


def test_lines_that_lack_what_a_verdict_reads_are_passed_over():
    made = list(lines(100))
    nulls = made[20] | {"rankme": None, "weight_norm": None}
    damaged = [nulls, {"step": 3}, made[3] | {"loss": None}, {"step": 20, "rankme": 3.0, "weight_norm": 50.0}]
    assert told([*made[:4], *damaged, *made[4:]], TOTAL) == told(made, TOTAL)
