"""k-NN while training: it changes nothing, its best weights are what it says, and a killed run loses none of it."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from processes import FORKED, assert_same_run, complete_lines, kill, logged, smoke, start, wait_for, weights
from stand_ins import Sized

from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import ShardError, Stream
from pretrain import build_backbone, load_combined
from pretrain.__main__ import read_command_line
from pretrain.data.shard_sets import shard_cache
from pretrain.evaluation.embed import embed, unit
from pretrain.evaluation.final_knn import labelled_sets
from pretrain.evaluation.knn import knn_over_folds
from pretrain.evaluation.labelled_crops import load_labelled
from pretrain.evaluation.online_knn import PROBE, TrainingKnn
from pretrain.method.trainer import Trainer
from pretrain.models.batchnorm import calibration_crops

TINY = ["--backbone", "test_resnet", "--views.global_size", "[32,24]", "--views.local_size", "[16,12]"]
OPTIONS = [*TINY, "--precision", "fp32", "--data.workers", "0", "--eval.label", "finding", "--optim.lr", "1e-3"]


OFTEN = ["--eval.every", "null"]  # as often as the run affords; the recipe scores only at the end


class Training:
    """A trainer of a few steps on the planted shards, scored or not, and what was kept."""

    def __init__(self, shards, *options):
        self.config, _ = read_command_line(
            [
                "--recipe",
                "smoke",
                "--steps",
                "6",
                "--data.shards",
                str(shards),
                "--eval.every",
                "null",
                *OPTIONS,
                *options,
            ]
        )
        torch.set_num_threads(1)
        stream = Stream([ShardSet(shards)], None, 0, 8)
        self.trainer = Trainer(self.config, Accelerator(cpu=True), stream)
        self.labelled = [ShardSet(shards / "holdout")]
        self.kept: list[tuple[float, torch.nn.Module]] = []
        self.lines: list[dict] = []

    def knn(self, earlier=(), kept=0, start=None):
        crops = calibration_crops(self.trainer.stream, self.config.views.global_size)
        keep = lambda network, scores: self.kept.append((scores["knn"], network))  # noqa: E731
        return TrainingKnn(self.config, self.trainer, self.labelled, lambda: crops, keep, lambda: start, earlier, kept)

    def run(self, knn=None):
        def log(line):
            self.lines.append(line | (knn.take(line) if knn else {}))

        self.trainer.run(log, lambda: None, lambda: False)
        return self


def test_scores_do_not_change_the_training_and_are_those_of_the_weights_that_are_kept(shards):
    plain = Training(shards).run()
    scored = Training(shards, "--eval.every", "2")
    scored.run(scored.knn())
    assert [line["loss"] for line in scored.lines] == [line["loss"] for line in plain.lines]
    untouched = plain.trainer.student.state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in scored.trainer.student.state_dict().items())
    marked = [line for line in scored.lines if "knn" in line]
    assert [line["step"] for line in marked] == [1, 3, 5]
    assert all(line["knn_before"] == marked[0]["knn_before"] for line in marked)
    rising = np.maximum.accumulate([line["knn"] for line in marked])
    assert [scores["after"] for scores, _ in scored.kept] == sorted(set(rising))
    scores, network = scored.kept[-1]
    crops = load_labelled(scored.labelled, "finding", (32, 24))
    features = unit(embed(network.backbone, crops.images, 0.5, 0.25))
    expected = knn_over_folds(features, crops.labels, crops.patients, 10, 3)
    assert scores["after"] == pytest.approx(expected, abs=1e-4)
    assert scores.keys() >= {"label", "before", "pixels", "size", "classes", "patients"}


def test_the_best_score_and_the_baselines_outlive_the_process(shards, monkeypatch):
    first = Training(shards, "--eval.every", "3")
    first.run(first.knn())
    again = Training(shards, "--eval.every", "3")
    monkeypatch.setattr("pretrain.evaluation.online_knn.untrained_features", None)  # they need not be computed again
    better = [line | {"knn": 1.0} if "knn" in line else line for line in first.lines]
    again.run(again.knn(better, kept=3))
    assert not again.kept
    assert [line.get("knn") for line in again.lines] == [line.get("knn") for line in first.lines]
    assert again.lines[-1]["knn_pixels"] == first.lines[-1]["knn_pixels"]
    monkeypatch.undo()
    other = Training(shards, "--eval.every", "3", "--eval.folds", "2")  # not to be compared
    other.run(other.knn(better, kept=3))
    assert other.kept
    assert first.knn(better).best == first.knn(better, kept=4).best == -np.inf  # its weights are gone


def test_weights_of_init_must_be_beaten_to_be_the_best(shards, monkeypatch):
    """Scored once, as they were before the first step, also where the process dies between two scores."""
    plain = Training(shards, "--eval.every", "3")
    plain.run(plain.knn())
    *_, begun = plain.kept[-1]
    best = max(line["knn"] for line in plain.lines if "knn" in line)
    again = Training(shards, "--eval.every", "3")
    again.run(again.knn(start=begun.backbone))
    assert [line["knn_start"] for line in again.lines if "knn" in line] == [best, best]
    assert [line["loss"] for line in again.lines] == [line["loss"] for line in plain.lines]
    assert not again.kept

    continued = Training(shards, "--eval.every", "3")
    continued.run(continued.knn(again.lines))  # the file of --init is gone
    assert [line["knn_start"] for line in continued.lines if "knn" in line] == [best, best]
    assert not continued.kept
    older = Training(shards, "--eval.every", "3")  # whose lines have the other baselines and not the start
    older.run(older.knn(plain.lines, start=begun.backbone))
    assert [line["knn_start"] for line in older.lines if "knn" in line] == [best, best]
    assert not older.kept
    beaten = Training(shards, "--eval.every", "3")
    beaten.run(beaten.knn([line | {"knn_start": best - 0.001} if "knn" in line else line for line in again.lines]))
    assert beaten.kept[-1][0]["after"] == best
    assert beaten.kept[-1][0]["start"] == best - 0.001


def test_weights_of_init_that_cannot_be_read_cost_a_warning_and_not_the_run(shards, capsys):
    def lost():
        raise OSError("stale file handle")

    training = Training(shards, "--eval.every", "3")
    knn = training.knn()
    knn._start = lost
    training.run(knn)
    assert len(training.kept) > 0
    assert "the weights of --init are not scored: stale file handle" in capsys.readouterr().out


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def timed(shards, monkeypatch):
    """A run on 500 labelled and 1,024 calibration crops, on a clock: a crop takes 10 ms to score, a step 1 s."""
    training, clock = Training(shards), Clock()
    training.labelled = [Sized([500])]
    training.labelled[0].checksum = ""
    monkeypatch.setattr("pretrain.evaluation.online_knn.time", clock)
    monkeypatch.setattr(
        "pretrain.evaluation.online_knn.embed", lambda backbone, images, *_: clock.pass_(0.01 * len(images))
    )

    def knn(total):
        monkeypatch.setattr(training.trainer, "total", total)
        keep = lambda *_: None  # noqa: E731
        crops = np.zeros((1024, 1, 1), np.uint8)
        return TrainingKnn(
            training.config, training.trainer, training.labelled, lambda: crops, keep, lambda: None, (), 0
        )

    return knn, clock


def line_of(step):
    return {"step": step, "images_per_s": 16}


def test_a_score_takes_one_percent_of_the_steps_between_two(timed):
    knn, _ = timed
    running = knn(100_000)
    found = [running.take(line_of(step)) for step in range(PROBE)]
    assert found[-1]["knn_every"] == 100 * 0.01 * (500 + 3 * 1024)  # no batch of 1 s steps: 35.72 s is 1 % of 3,572


@pytest.mark.parametrize("total", [7144, 7145, 8000, 10_000, 10_717, 20_000, 50_000])
def test_scores_and_baselines_together_take_less_than_3_percent(total, timed, monkeypatch):
    knn, clock = timed
    running = knn(total)
    score = 0.01 * (500 + 3 * 1024)
    scored = []

    def one():
        clock.pass_(score if scored else 2 * score)  # the first with the baselines
        scored.append(clock.now)
        return {"knn": 0.5}

    monkeypatch.setattr(running, "_score", one)
    for step in range(total):
        running.take(line_of(step))
    assert clock.now < 0.03 * total
    assert len(scored) == total // 3572 + bool(total % 3572)


def test_a_score_that_took_longer_makes_the_next_ones_rarer(shards, monkeypatch):
    training, clock = Training(shards, "--steps", "40"), Clock()
    monkeypatch.setattr("pretrain.evaluation.online_knn.time", clock)
    knn = training.knn([{"step": 0, "knn_every": 3}])
    monkeypatch.setattr("pretrain.evaluation.online_knn.embed", lambda *given: (clock.pass_(0.095), embed(*given))[1])
    lines = [knn.take(line_of(step)) for step in range(20)]
    assert [step for step, line in enumerate(lines) if "knn" in line] == [2, 9, 19]
    assert lines[2]["knn_every"] == knn.every == 10  # 0.095 s is 1 % of 9.5 steps of 1 s
    asked = Training(shards, "--eval.every", "3").knn()
    assert [step for step in range(7) if "knn" in asked.take(line_of(step))] == [2, 5]


def test_a_run_too_short_for_scores_may_grow(shards):
    assert Training(shards).knn([{"step": 19, "knn_every": 0}]).every is None


def test_a_run_too_short_for_two_scores_has_one_at_half_and_one_at_its_end(timed, monkeypatch, capsys):
    knn, _ = timed
    running = knn(61)  # two scores of 35.72 s at 1 % need 7,144 steps of 1 s
    monkeypatch.setattr(running, "_score", lambda: {"knn": 0.5})
    found = [running.take(line_of(step)) for step in range(61)]
    assert [step for step, line in enumerate(found) if "knn" in line] == [30, 60]
    assert capsys.readouterr().out.count("k-NN at half of the run and at its end: a score takes some 36 s") == 1


@pytest.mark.parametrize(("seconds", "every"), [(1e6, 1), (1e-9, 500)])
def test_left_out_it_scores_as_often_as_the_run_affords(seconds, every, shards):
    training = Training(shards, "--steps", "1000")
    knn = training.knn()
    lines = [{"step": step, "images_per_s": 16 / seconds} for step in range(PROBE)]
    found = [knn.take(line) for line in lines]
    assert found[:-1] == [{}] * (PROBE - 1)
    assert found[-1].get("knn_every") == knn.every == every
    assert ("knn" in found[-1]) == (every == 1)
    assert training.knn([{"step": 19, "knn_every": 7}]).every == 7


def test_patients_too_few_to_score_end_the_scores_and_not_the_run(shards, monkeypatch, capsys):
    one = load_labelled([ShardSet(shards / "holdout")], "finding", (32, 24))
    one = one._replace(patients=np.full_like(one.patients, one.patients[0]))
    monkeypatch.setattr("pretrain.evaluation.online_knn.load_labelled", lambda *_: one)
    training = Training(shards, "--eval.every", "2")
    training.run(knn := training.knn())
    assert knn.every == 0
    assert len(training.lines) == 6
    assert "no k-NN while training: patient-disjoint scores need" in capsys.readouterr().out


def test_a_lost_server_costs_a_score_and_not_the_run(shards, monkeypatch, capsys):
    lost = ["cannot reach s3://x", "cannot reach s3://x"]

    def load(*arguments):
        if lost:
            raise ShardError(lost.pop())
        return load_labelled(*arguments)

    monkeypatch.setattr("pretrain.evaluation.online_knn.load_labelled", load)
    training = Training(shards, "--eval.every", "2")
    training.run(training.knn())
    assert [line["step"] for line in training.lines if "knn" in line] == [5]
    assert len(training.lines) == 6
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert said == [f"warning: no k-NN after step {step}: cannot reach s3://x" for step in (2, 4)]


def test_crops_of_one_class_end_the_scores_and_not_the_run(shards, monkeypatch, capsys):
    one = load_labelled([ShardSet(shards / "holdout")], "finding", (32, 24))
    one = one._replace(labels=np.full_like(one.labels, one.labels[0]))
    monkeypatch.setattr("pretrain.evaluation.online_knn.load_labelled", lambda *_: one)
    training = Training(shards, "--eval.every", "2")
    training.run(training.knn())
    assert not training.kept
    assert len(training.lines) == 6
    assert f"crops to score are all '{one.labels[0]}': raise --eval.crops" in capsys.readouterr().out


def test_nothing_to_score_on_is_said(shards, capsys):
    training = Training(shards, "--eval.every", "2")
    training.labelled = []
    assert training.knn().every == 0
    assert "no labelled shards" in capsys.readouterr().out


def test_scoring_on_what_is_trained_on_is_said(shards):
    for scored, words in (
        (shards, ["note: k-NN is scored on crops that are trained on too"]),
        (shards / "holdout", []),
    ):
        config, _ = read_command_line(["--data.shards", str(shards), "--eval.shards", str(scored), *OPTIONS])
        said: list[str] = []
        assert labelled_sets(config, [ShardSet(shards)], shard_cache(config.data), said.append)[0].path == scored
        assert [line.partition(" (")[0] for line in said] == words


@pytest.mark.slow
def test_a_run_killed_between_two_scores_keeps_the_best_of_an_undisturbed_one(shards, tmp_path):
    whole, killed, plain = (tmp_path / name / "r" for name in ("whole", "killed", "plain"))
    options = [*OPTIONS, "--steps", 24, "--optim.lr", "3e-3", "--method.ema_start", 0.5]
    smoke(whole, shards, *options, "--eval.every", 3)
    smoke(plain, shards, *options)
    process = start(FORKED, "--recipe", "smoke", "--out", killed, "--data.shards", shards, *options, "--eval.every", 3)
    wait_for(lambda: (killed / "metrics.jsonl").exists() and len(complete_lines(killed)) > 12, process)
    kill(process)
    smoke(killed, shards, *options, "--eval.every", 3)
    assert_same_run(killed, whole)
    assert weights(plain).keys() == weights(whole).keys()
    assert all(torch.equal(v, weights(plain)[k]) for k, v in weights(whole).items())
    assert [line["loss"] for line in logged(plain)] == [line["loss"] for line in logged(whole)]
    best = [json.loads((out / "r-best.json").read_text()) for out in (whole, killed)]
    assert best[0] == best[1]
    scores = {line["step"] + 1: line["knn"] for line in logged(whole) if "knn" in line}
    assert best[0]["scores"]["knn"]["after"] == max(scores.values()) == scores[best[0]["training"]["step"]]
    backbone = build_backbone("test_resnet")
    load_combined(whole / "r-best.pth", backbone)
    crops = load_labelled([ShardSet(shards / "holdout")], "finding", (32, 24))
    features = unit(embed(backbone, crops.images, 0.5, 0.25))
    assert knn_over_folds(features, crops.labels, crops.patients, 10, 3) == pytest.approx(
        max(scores.values()), abs=1e-4
    )
    assert not (plain / "r-best.pth").exists()
    assert "kept (-best.pth)" in (whole / "report.html").read_text()
