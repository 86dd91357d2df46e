"""The ablation of the views and the measurement of exposure: real processes, real kills, known figures."""

import importlib
import io
import json
import signal
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.stats
from processes import FORKED, ROOT, Forked, complete_lines, ended, kill, smoke, start, wait_for

sys.path.append(str(ROOT / "benchmarks"))
ablation, exposure = importlib.import_module("ablation"), importlib.import_module("exposure")
ABLATION = [sys.executable, "benchmarks/ablation.py"]
SHORT = [
    "--recipe",
    "smoke",
    "--backbone",
    "mambaout_femto",
    "--steps",
    8,
    "--threads",
    1,
    "--data.workers",
    0,
    "--only",
    "without mirror",
]
SHORT += ["--optim.lr", "auto"]  # as in the small-cnn recipe: decided by the data


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "smoke"
    smoke(out, None, "--steps", 1)
    return next((out / "phantom").glob("seed-*/"))


def arguments(shards: Path, out: Path, *more: object) -> list[str]:
    return [str(one) for one in ("--shards", shards, "--out", out, "--seeds", 0, *SHORT, *more)]


def steps_of(run: Path) -> int:
    return len(complete_lines(run)) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.extended
def test_killed_and_started_again_it_skips_what_is_finished_and_resumes_the_rest(shards, tmp_path):
    out = tmp_path / "ablation"
    process = start(ABLATION, *arguments(shards, out))
    wait_for((out / "without-mirror-0" / "checkpoints" / "step-00000005.pth").exists, process)
    process.kill()  # alone; its run is asked to stop, and the next ablation waits for it
    process.communicate()
    before = (out / "base-0" / "base-0.pth").stat().st_mtime_ns
    printed = ended(start(ABLATION, *arguments(shards, out)))
    assert "2 runs, 1 of them finished" in printed
    assert (out / "base-0" / "base-0.pth").stat().st_mtime_ns == before
    assert (out / "base-0.log").read_text().count("$ ") == 1
    log = (out / "without-mirror-0.log").read_text()
    assert "stopped after step" in log
    assert "continuing from step" in log
    assert (out / "ablation.md").read_text().strip() in printed


@pytest.mark.extended
def test_it_skips_finished_runs_resumes_the_killed_one_and_refuses_other_settings(
    shards, tmp_path, monkeypatch, capsys
):
    out, started = tmp_path / "ablation", []

    def forked(folder: Path, command: list[str]) -> Forked:
        """As ablation.start, without the seconds of importing; the first run of the variant is killed midway."""
        with Path(f"{folder}.log").open("a") as log:
            log.write("$ command\ncode 1\n")
        started.append(start(FORKED, *command[2:]))
        if folder.name == "without-mirror-0" and len(started) == 2:
            wait_for((folder / "checkpoints" / "step-00000005.pth").exists, started[-1])
            kill(started[-1])
        return started[-1]

    out.mkdir()
    monkeypatch.setattr(importlib.import_module("runs"), "start", forked)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of the tests stay
    assert call(monkeypatch, *arguments(shards, out)) == 1
    assert "not counted: without mirror, seed 0: code 1" in capsys.readouterr().out
    before = (out / "base-0" / "base-0.pth").stat().st_mtime_ns
    assert call(monkeypatch, *arguments(shards, out)) == 0
    assert "2 runs, 1 of them finished" in capsys.readouterr().out
    assert (out / "base-0" / "base-0.pth").stat().st_mtime_ns == before
    assert len(started) == 3
    assert "continuing from step 5" in started[-1].communicate()[0]
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert list(rows) == ["base", "without mirror"]
    assert rows["without mirror"]["difference"] == rows["without mirror"]["mean"] - rows["base"]["mean"]

    for change, told in {
        ("--optim.lr", "0.1"): "optim.lr was 0.0005, now 0.1",
        ("--steps", "40"): "steps was 8, now 40",
        ("--shards", str(shards / "holdout"), "--eval-shards", str(shards)): "data was ",
        ("--label", "position"): "eval.label was tooth_type, now position",
    }.items():
        line = refused(monkeypatch, capsys, *arguments(shards, out, *change))
        assert "base-0 was made with other settings" in line
        assert told in line
    assert len(started) == 3


def call(monkeypatch, *argv: str) -> int:
    """Exit status of the command, called here."""
    monkeypatch.setattr(sys, "argv", ["ablation.py", *argv])
    with pytest.raises(SystemExit) as end:
        ablation.main()
    return int(end.value.code or 0)


def refused(monkeypatch, capsys, *argv: str) -> str:
    """The one line that a call with a mistake ends with."""
    assert call(monkeypatch, *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--optim.lrr", "1"], "did you mean 'optim.lr'"),
        (["--only", "mirrors"], "invalid choice: 'mirrors'"),
        (["--seed", "3"], "give --seeds"),
        (["--views.shear=-1", "--views.global_scale", "[2,3]"], "views."),
        (["--shards", "nowhere"], "no shards at nowhere"),
        (["--parallel", "0"], "--parallel of at least 1"),
    ],
)
def test_a_mistake_is_one_line_before_any_run(more, message, shards, tmp_path, monkeypatch, capsys):
    assert message in refused(monkeypatch, capsys, *arguments(shards, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_without_a_holdout_there_is_nothing_to_score_on(shards, tmp_path, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, *arguments(shards, tmp_path / "out", "--shards", str(shards / "holdout")))
    assert "have no holdout" in line


def test_every_variant_is_a_valid_change_of_the_small_cnn_recipe():
    options = ["--recipe", "small-cnn", "--data.shards", "somewhere"]
    configs = [ablation.read_command_line([*options, *changes])[0] for changes in ablation.VARIANTS.values()]
    assert len(set(map(repr, configs))) == len(configs)


def made_up_run(folder: Path, after: float | None) -> None:
    """The files of a run that ended with this score, or failed without one."""
    folder.mkdir(parents=True)
    log = "$ command\ncode 1\n" + ("" if after is not None else "error: no room\nwas, now\n")
    Path(f"{folder}.log").write_text(log)
    knn = {"label": "tooth_type", "after": after, "before": 0.5, "pixels": 0.7}
    settings = {"data": {"batch_size": 60}, "threads": 1}
    (folder / f"{folder.name}.json").write_text(json.dumps({"scores": {"knn": knn}, "settings": settings}))
    (folder / "metrics.jsonl").write_text('{"step": 0, "images_per_s": 0.5}\n{"step": 1, "images_per_s": 0.5}\n')
    state = {"state": "failed" if after is None else "finished", "step": 2}
    (folder / "state.json").write_text(json.dumps(state))


def test_the_table_is_paired_by_seed_and_names_what_is_missing(tmp_path, capsys):
    base, other = [0.61, 0.64, 0.60, 0.66], [0.55, 0.60, 0.53, 0.61]
    for seed in range(4):
        made_up_run(tmp_path / f"base-{seed}", base[seed])
        made_up_run(tmp_path / f"without-local-contrast-{seed}", other[seed])
    made_up_run(tmp_path / "global-0.25-1-2", 0.65)
    made_up_run(tmp_path / "without-tone-0", None)
    assert ablation.write_table(tmp_path) == ["without tone, seed 0: error: no room"]
    row = json.loads((tmp_path / "ablation.json").read_text())["rows"]["without local contrast"]
    delta = np.array(other) - base
    low, high = scipy.stats.t.interval(0.95, 3, delta.mean(), scipy.stats.sem(delta))
    expected = [4, np.mean(other), np.std(other, ddof=1), delta.mean(), scipy.stats.sem(delta), low, high, 4]
    assert list(row.values()) == pytest.approx(expected, abs=1e-4)
    printed = capsys.readouterr().out
    assert f"-0.055 | {scipy.stats.sem(delta):.3f} | {low:+.3f} to {high:+.3f} * | 4.0 |" in printed
    assert "| global 0.25-1 | 1 | 0.650 | n/a | +0.050 | n/a | n/a | 4.0 |" in printed
    assert "| base | 4 | 0.627 | 0.028 | n/a | n/a | n/a | 4.0 |" in printed
    assert "| raw pixels | 4 | 0.700 |" in printed
    assert "NaN" not in (tmp_path / "ablation.json").read_text()
    assert ablation.MIXED not in printed
    with (tmp_path / "base-0.log").open("a") as log:
        log.write("code 2\n")
    ablation.write_table(tmp_path)
    assert ablation.MIXED in capsys.readouterr().out


def test_the_quantiles_of_t_are_those_of_scipy():
    exact = scipy.stats.t.ppf(0.975, np.arange(1, len(ablation.T_975) + 1))
    assert pytest.approx(exact, abs=6e-4) == ablation.T_975


@pytest.mark.extended
def test_two_at_a_time_are_stopped_continued_and_a_failed_run_stops_no_other(shards, tmp_path):
    out = tmp_path / "ablation"
    (out / "base-1").mkdir(parents=True)
    (out / "base-1" / "scan.jpg").touch()
    call = arguments(shards, out, "--seeds", 0, 1, "--parallel", 2)
    process = start(ABLATION, *call)
    wait_for(lambda: steps_of(out / "base-0") >= 3 and "error: " in (out / "base-1.log").read_text(), process)
    process.send_signal(signal.SIGTERM)
    printed = ended(process)
    assert "stopped; this continues it: python benchmarks/ablation.py --shards" in printed
    assert json.loads((out / "base-0" / "state.json").read_text())["state"] == "stopped"
    printed = ended(start(ABLATION, *call), code=1)
    assert "not counted: base, seed 1: error: " in printed
    assert "is not a run folder" in printed
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert {name: row["seeds"] for name, row in rows.items()} == {"base": 1, "without mirror": 2}
    assert ended(start(ABLATION, "--table", "--out", out), code=1).strip() == (out / "ablation.md").read_text().strip()


def test_exposure_finds_the_shift_the_gain_and_the_gamma_that_crops_were_made_with(tmp_path, capsys):
    place = np.linspace(0, 1, 2501).reshape(61, 41)
    crops = [0.1 + 0.5 * place] * 4 + [0.4 + 0.5 * place, 0.1 + 0.25 * place, 0.1 + 0.5 * place**2]
    found = exposure.deviations(np.array([exposure.summary(crop) for crop in crops]))
    assert found[0] == pytest.approx([0, 1, 1])
    assert found[4] == pytest.approx([0.3, 1, 1])
    assert found[5] == pytest.approx([-0.125, 0.5, 1])
    squared = (0.5**2 - 0.05**2) / (0.95**2 - 0.05**2)  # the curve moves the outer percentiles as well
    assert found[6, 2] == pytest.approx(np.log(squared) / np.log(0.5))
    assert exposure.summary(np.full((8, 8), 0.3)) is None

    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(101):  # shifts of -50 to 50 grays, evenly
            gray = (50 + i + 40 * np.linspace(0, 1, 800).reshape(40, 20)).astype(np.uint8)
            add(tar, f"{i}.png", cv2.imencode(".png", gray)[1].tobytes())
            add(tar, f"{i}.json", b'{"fdi": 36}')
    exposure.report(exposure.ShardSet(folder), "fdi", 100)
    printed = capsys.readouterr().out
    shifts = [f"{value / 255:.3f}" for value in (-49, -45, -25, 25, 45, 49)]
    assert f"| shift of mean gray | {' | '.join(shifts)} |" in printed
    assert "| factor of gray SD |" + " 1.000 |" * 6 in printed
    assert "| gamma |" + " 1.000 |" * 6 in printed
    assert "| width / height of all |" + " 0.500 |" * 6 in printed
    assert "black pixels 0.00%" in printed
    with pytest.raises(exposure.UserError, match="the most are 101"):
        exposure.report(exposure.ShardSet(folder), "fdi", 102)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
