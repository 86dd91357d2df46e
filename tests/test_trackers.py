"""What `--log_with` hands to TensorBoard, read back with TensorBoard's own reader, and what trackers may cost a run."""

import importlib.util
import json
import re
import resource
import shutil
from collections import Counter
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from processes import FORKED, LAUNCHED, complete_lines, kill, smoke, start, wait_for
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from pretrain.checkpoints.metadata import shareable
from pretrain.config.schema import Config
from pretrain.config.tracker_names import TrackerError, check_trackers
from pretrain.monitoring.trackers import PROJECT, Trackers
from pretrain.runs.resume_check import HARMLESS

ABSENT = next(name for name in LOGGER_TYPE_TO_CLASS if importlib.util.find_spec(name) is None)
TENSORBOARD = ("--log-with", "tensorboard")


def event_files(out: Path) -> list[Path]:
    return sorted((out / "trackers" / PROJECT).glob("events.*"))


def tensors(out: Path, plugin: str) -> dict[str, list]:
    """What TensorBoard's dashboard shows of a kind, all of it; its older reader does not purge texts."""
    sizes = {"scalars": 0, "text": 0}
    events = EventAccumulator(str(out / "trackers" / PROJECT), tensor_size_guidance=sizes).Reload()
    of_kind = [t for t in events.Tags()["tensors"] if events.SummaryMetadata(t).plugin_data.plugin_name == plugin]
    return {tag.removesuffix("/text_summary"): events.Tensors(tag) for tag in of_kind}


def shown(out: Path) -> dict[str, list[tuple[int, float]]]:
    return {k: [(e.step, e.tensor_proto.float_val[0]) for e in found] for k, found in tensors(out, "scalars").items()}


def texts(out: Path) -> dict[str, list[tuple[int, str]]]:
    found = tensors(out, "text")
    return {k: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found[k]] for k in found}


def told(out: Path) -> Counter[int]:
    """How often each step's loss was written, purged or not."""
    events = (event for file in event_files(out) for event in EventFileLoader(str(file)).Load())
    return Counter(event.step for event in events for value in event.summary.value if value.tag == "loss")


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def of_type(kinds: type | UnionType, lines: list[dict]) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) of what metrics.jsonl has of a type, by name."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, kinds) and name != "step":
                found.setdefault(name, []).append((line["step"], value))
    return found


def figures(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The numbers of metrics.jsonl as float32, which is what TensorBoard keeps."""
    numbers = of_type(int | float, metrics(out))
    return {name: [(step, float(np.float32(value))) for step, value in numbers[name]] for name in numbers}


@pytest.fixture(scope="module")
def clinic(shards, tmp_path_factory) -> Path:
    """Shards in a folder with a telling name."""
    return Path(shutil.copytree(shards, tmp_path_factory.mktemp("data") / "clinic-xyz"))


@pytest.fixture(scope="module")
def tracked(clinic, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("of-clinic-xyz") / "clinic-xyz"
    places = ["--eval.shards", clinic, "--data.cache", clinic.parent / "clinic-xyz-cache"]
    smoke(out, clinic, *places, "--eval.label", "finding", "--eval.every", 10, *TENSORBOARD)
    return out


def test_tensorboard_shows_every_figure_of_metrics_jsonl_under_its_name_and_step(tracked):
    expected = figures(tracked)
    assert expected.keys() >= {"loss", "lr", "rankme", "rankme_trend", "knn", "images_per_s", "samples_seen"}
    assert [step for step, _ in expected["loss"]] == list(range(20))
    assert shown(tracked) == expected
    assert texts(tracked) == of_type(str, metrics(tracked))


def test_settings_are_handed_over_without_any_place(tracked):
    (settings,) = (tracked / "trackers").rglob("hparams.yml")
    content = yaml.safe_load(settings.read_text())
    assert content["optim.lr"] == yaml.safe_load((tracked / "config.yaml").read_text())["optim"]["lr"]
    assert content["precision"] in ("fp32", "bf16")
    assert not content.keys() & {"out", "init", "data.shards", "data.cache", "eval.shards"}
    files = [path for path in (tracked / "trackers").rglob("*") if path.is_file()]
    assert len(files) == 3  # figures, and settings twice
    for path in files:
        assert b"clinic" not in path.read_bytes()
        assert "clinic" not in str(path.relative_to(tracked))


def test_killed_and_continued_a_run_shows_every_step_once(shards, tmp_path):
    out, every = tmp_path / "run", 8
    blunt = ("--method.teacher_temperature", 0.1, "--method.teacher_temperature_start", 0.1)  # for a verdict to show
    given = ("--steps", 32, "--checkpoint_every", every, *blunt)
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.shards", shards, *given, *TENSORBOARD)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(complete_lines(out)) > every + 2, process)
    psutil.Process(process.pid).suspend()
    before = len(complete_lines(out))
    saved = max(int(path.stem[-8:]) for path in (out / "checkpoints").glob("step-*"))
    kill(process)  # SIGKILL, which a suspended process obeys
    assert f"continuing from step {saved}\n" in smoke(out, shards, *given, *TENSORBOARD)
    again = told(out) - Counter(range(32))
    assert set(range(saved, before - 1)) <= again.keys() <= set(range(saved, before + 1))  # the last may be in between
    assert len(event_files(out)) == 2
    assert shown(out) == figures(out)
    assert texts(out) == of_type(str, metrics(out))
    assert "verdict" in texts(out)


@pytest.mark.slow
def test_a_tracker_may_come_while_a_run_is_continued(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 2)
    assert not (out / "trackers").exists()
    assert "continuing from step 2" in smoke(out, shards, "--steps", 4, *TENSORBOARD)
    assert [step for step, _ in shown(out)["loss"]] == [2, 3]
    assert "log_with" in HARMLESS


@pytest.mark.slow
def test_of_two_processes_one_tells_trackers(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 6, *TENSORBOARD, command=LAUNCHED)
    assert len(event_files(out)) == 1
    assert told(out) == Counter(range(6))
    assert shown(out) == figures(out)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], r"log_with: there is no tracker 'tensorbord'; valid: aim, .*tensorboard, .*wandb"),
        (["all"], r"log_with: there is no tracker 'all'"),
        (["tensorboard", ABSENT], rf"log_with: {ABSENT} is not installed; `pip install {ABSENT}`"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_one_line_before_anything_is_done(names, message, shards, tmp_path):
    said = smoke(tmp_path / "run", shards, "--log_with", *names, code=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_is_one_line_before_training(shards, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.yaml").touch()
    (out / "trackers").touch()  # a file where TensorBoard needs a folder
    said = smoke(out, shards, *TENSORBOARD, code=2)
    assert re.search(r"^error: a tracker of --log_with does not start \(\w+: .*\); mend it or", said, re.MULTILINE)
    assert "Traceback" not in said
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_full_disk_costs_tensorboard_its_figures_but_not_the_run(shards, tmp_path):
    """No file may become longer than that of TensorBoard is, and metrics.jsonl is some lines shorter."""
    out, unlimited = tmp_path / "run", (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    given = ("--data.shards", shards, "--steps", 30, "--checkpoint_every", 100, *TENSORBOARD)
    process = start(FORKED, "--recipe", "smoke", "--out", out, *given)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(complete_lines(out)) > 13, process)
    limit = event_files(out)[0].stat().st_size + 100
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    reached = len(complete_lines(out))
    wait_for(lambda: len(complete_lines(out)) > reached + 2, process)
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, unlimited)
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert len(re.findall(r"warning: tensorboard failed at step \d+ \(OSError: .*\) and gets no more", printed)) == 1
    assert [line["step"] for line in metrics(out)] == list(range(30))
    assert reached <= len(told(out)) < 30


class Listening(GeneralTracker):
    """A tracker as Accelerate's documentation writes one; it keeps what it is told and may fail at a step."""

    requires_logging_directory = False

    def __init__(self, name: str, fails_at: int | None = None) -> None:
        self.name, self.fails_at = name, fails_at
        self.told: list[tuple[int | None, dict]] = []
        self.settings: dict = {}
        self.finished = 0
        super().__init__()

    @property
    def tracker(self) -> list:
        return self.told

    def store_init_configuration(self, values: dict) -> None:
        self.settings = values

    def log(self, values: dict, step: int | None = None, **_) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route\nto host")
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1
        if self.fails_at == -1:
            raise ConnectionError("no answer")


def test_several_trackers_hear_the_same_and_one_that_fails_is_given_up_alone(capsys):
    broken, sound, late = Listening("broken", fails_at=1), Listening("comet_ml"), Listening("late", fails_at=-1)
    trackers = Trackers(Accelerator(cpu=True, log_with=[broken, late, sound]), {"views.size": (64, 48), "a": None}, 0)
    for step in range(3):
        trackers.log({"step": step, "loss": step / 2, "source_counts": [3, 4], "verdict": "learning"})
    trackers.close()
    assert broken.told == [(0, {"loss": 0.0})]
    assert late.told == [(step, {"loss": step / 2}) for step in range(3)]
    assert sound.told == [(step, {"loss": step / 2, "verdict": "learning"}) for step in range(3)]
    assert (broken.finished, late.finished, sound.finished) == (0, 1, 1)
    assert sound.settings == {"views.size": "(64, 48)", "a": None}
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: broken failed at step 1 (ConnectionError: no route to host) and gets no more")
    assert last.startswith("warning: late failed at end (ConnectionError: no answer)")


def test_no_place_is_among_the_settings_that_are_shared():
    places = Config(out="secret", init="secret")
    assert "secret" not in json.dumps(shareable(places))


def test_only_names_of_installed_trackers_pass():
    check_trackers(["tensorboard"])
    for name in (ABSENT, "TensorBoard", ""):
        with pytest.raises(TrackerError):
            check_trackers([name])
