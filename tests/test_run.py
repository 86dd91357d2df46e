"""The command as its user runs it: real processes, real kills, the files they leave."""

import dataclasses
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import yaml
from accelerate.state import AcceleratorState
from processes import (
    FORKED,
    LAUNCHED,
    PYTHON,
    assert_same_run,
    complete_lines,
    corrupted,
    kill,
    logged,
    run,
    smoke,
    standing,
    start,
    wait_for,
)

from data_shards.pack.pipeline import PackConfig, pack
from data_shards.shards.shard_set import ShardSet
from pretrain.__main__ import RECIPES, VIEWS, main, read_command_line
from pretrain.checkpoints.combined import load_combined
from pretrain.models.backbones import build_backbone
from pretrain.models.projection_head import proj_head
from pretrain.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """One uninterrupted smoke run, with all it printed."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, smoke(out, None, command=PYTHON)


@pytest.fixture(scope="module")
def shards(finished) -> Path:
    return next((finished[0] / "phantom").glob("seed-*/"))


def test_a_run_leaves_what_the_readme_says(finished):
    out, printed = finished
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "state.json",
        "report.html",
        "views.png",
        "smoke.pth",
        "smoke.json",
    }
    assert [p.name for p in out.glob("*.pth")] == ["smoke.pth"]
    assert standing(out) == {"state": "finished", "step": 20}
    lines = logged(out)
    assert [line["step"] for line in lines] == list(range(20))
    assert lines[-1]["samples_seen"] == 20 * 16
    for words in ("loss / ln K", "teacher entropy", "feature rank", "k-NN tooth_type", "raw pixels", "20/20"):
        assert words in printed
    facts = json.loads((out / "smoke.json").read_text())
    assert facts["input"]["size"] == [64, 48]
    assert facts["scores"]["knn"].keys() >= {"label", "before", "after", "pixels", "size"}
    assert facts["data"][0]["crops"] > 40
    page = (out / "report.html").read_text()
    assert "Not drawn" not in page
    assert "not on the page" not in printed
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_no_place_on_disk_is_in_the_files_that_travel_with_the_weights(finished):
    out, _ = finished
    for path in (out / "smoke.json", out / "report.html", out / "smoke.pth", out / "metrics.jsonl"):
        assert str(out.parent).encode() not in path.read_bytes()


def test_the_weights_load_strictly(finished):
    out, _ = finished
    backbone = build_backbone("test_mambaout")
    load_combined(out / "smoke.pth", backbone, proj_head(backbone.num_features))


def test_a_released_backbone_trains_and_its_weights_load_strictly(shards, tmp_path):
    printed = smoke(tmp_path / "r", shards, "--steps", 2, "--backbone", "mambaout_femto")
    assert "k-NN tooth_type" in printed
    backbone = build_backbone("mambaout_femto")
    load_combined(tmp_path / "r" / "r.pth", backbone, proj_head(backbone.num_features))


def test_a_finished_run_says_so_and_its_configuration_feeds_back(finished, tmp_path):
    out, _ = finished
    before = (out / "smoke.pth").read_bytes()
    assert "is finished" in run("--config", out / "config.yaml")
    assert (out / "smoke.pth").read_bytes() == before
    printed = run("--config", out / "config.yaml", "--print_config")
    assert yaml.safe_load(printed)["views"]["global_size"] == [64, 48]


def test_stopped_by_its_file_then_continued_with_other_workers_is_the_same_run(finished, shards, tmp_path):
    out = tmp_path / "smoke"
    process = start(FORKED, "--recipe", "smoke", "--out", out)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(logged(out)) >= 3, process)
    (out / "stop").touch()
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "stopped after step" in printed
    assert json.loads((out / "state.json").read_text())["state"] == "stopped"
    assert not (out / "stop").exists()
    assert "continuing from step" in smoke(out, None, "--data.workers", 0)
    assert_same_run(out, finished[0])


def test_killed_as_the_last_checkpoint_appears_it_is_finished_and_leaves_no_half_written_file(finished, tmp_path):
    out = tmp_path / "smoke"
    process = start(FORKED, "--recipe", "smoke", "--out", out)
    wait_for((out / "checkpoints" / "step-00000020.pth").exists, process)
    process.kill()  # alone: its data workers live on for seconds, and must not hold the folder
    process.communicate()
    RunFolder(out).lock()
    (out / ".smoke-12345678").mkdir()
    (out / ".git").mkdir()
    for torn in (".smoke-12345678/smoke.pth", ".state.json.4711", "checkpoints/.step-00000020.pth.4711"):
        (out / torn).write_bytes(b"torn")
    assert "k-NN tooth_type" in smoke(out, None)
    assert_same_run(out, finished[0])
    assert sorted(p.name for p in out.rglob(".*")) == [".git", ".lock"]  # what others put there stays


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, shards, tmp_path):
    out = tmp_path / "smoke"
    process = start(FORKED, "--recipe", "smoke", "--out", out)
    wait_for(lambda: len(list((out / "checkpoints").glob("step-*"))) >= 2, process)
    kill(process)
    newest = max((out / "checkpoints").glob("step-*"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    printed = smoke(out, None)
    assert "falling back to the one before" in printed
    assert_same_run(out, finished[0])


def test_never_moves_the_old_folder_aside(finished, shards, tmp_path):
    out = tmp_path / "again"
    smoke(out, shards, "--steps", 2)
    printed = smoke(out, shards, "--steps", 3, "--resume", "never")
    assert "moved the old run to" in printed
    assert len(logged(out)) == 3
    assert len(logged(tmp_path / "again.old-1")) == 2


def test_an_earlier_checkpoint_given_by_name_replaces_what_came_after_it(finished, tmp_path):
    out = tmp_path / "smoke"
    shutil.copytree(finished[0], out)
    checkpoints = out / "checkpoints"
    printed = smoke(out, None, "--resume", checkpoints / "step-00000010.pth")
    assert "moved the checkpoints of later steps to" in printed
    assert len((out / "aside-1" / "metrics.jsonl").read_text().splitlines()) == 20
    assert (out / "aside-1" / "step-00000020.pth").exists()
    assert "continuing from step 10" in printed
    assert_same_run(out, finished[0])
    (out / "metrics.jsonl").write_text("")
    assert "lacks 10 of 10 earlier steps" in smoke(out, None, "--resume", checkpoints / "step-00000010.pth")


@pytest.mark.slow
def test_two_processes_train_on_the_same_batches_and_continue(shards, tmp_path):
    """Started by accelerate launch; killed whole, continued by the same command; equal to an undisturbed run."""
    whole, killed = tmp_path / "whole" / "two", tmp_path / "killed" / "two"
    assert "on 2 x cpu" in smoke(whole, shards, "--steps", 12, command=LAUNCHED)
    process = start(LAUNCHED, "--recipe", "smoke", "--out", killed, "--data.shards", shards, "--steps", 12)
    wait_for(lambda: (killed / "metrics.jsonl").exists() and len(complete_lines(killed)) > 5, process)
    kill(process)
    assert len(complete_lines(killed)) < 12
    printed = smoke(killed, shards, "--steps", 12, "--data.workers", 1, command=LAUNCHED)
    assert re.search(r"continuing from step (5|10)\n", printed)
    assert_same_run(killed, whole)
    assert logged(whole)[-1]["samples_seen"] == 12 * 16


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.extended)])
def test_a_run_whose_launcher_was_killed_stops_and_saves(processes, shards, tmp_path):
    out = tmp_path / "orphan"
    command = LAUNCHED if processes == 2 else [*LAUNCHED[:3], "--config_file", "launch/cpu.yaml", "pretrain.py"]
    process = start(command, "--recipe", "smoke", "--out", out, "--data.shards", shards, "--steps", 5000)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(complete_lines(out)) > 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert json.loads((out / "state.json").read_text())["state"] == "stopped"
    assert (out / "checkpoints" / f"step-{len(logged(out)):08d}.pth").exists()


@pytest.mark.slow
def test_a_backbone_with_parameters_of_no_use_trains_in_two_processes(shards, tmp_path):
    model = ["--backbone", "hrnet_w18_small", "--views.local_size", "[64,64]", "--views.global_size", "[64,64]"]
    printed = smoke(tmp_path / "r", shards, "--steps", 3, *model, command=LAUNCHED)
    assert "k-NN tooth_type" in printed


@pytest.mark.slow
def test_a_run_of_two_processes_continues_as_one_and_says_what_may_differ(shards, tmp_path):
    out = tmp_path / "elastic"
    process = start(LAUNCHED, "--recipe", "smoke", "--out", out, "--data.shards", shards)
    wait_for(lambda: list((out / "checkpoints").glob("step-*")), process)
    kill(process)
    printed = smoke(out, shards)
    assert "the last bits of losses may not be (processes was 2, now 1)" in printed
    assert [line["samples_seen"] for line in logged(out)] == [16 * (step + 1) for step in range(20)]


def test_killed_while_the_phantom_is_drawn_or_corrected_after_a_mistake_the_same_folder_serves(tmp_path):
    out = tmp_path / "run"
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.phantom_patients", 400)
    wait_for(lambda: (out / "phantom").exists(), process)
    kill(process)
    assert "cannot take views" in smoke(out, None, "--backbone", "convnextv2", "--views.local_size", "[16,16]", code=2)
    assert "k-NN tooth_type" in smoke(out, None, "--steps", 2)


def test_a_holdout_of_one_patient_is_told_and_costs_no_run(shards, tmp_path):
    lonely = tmp_path / "one"
    shutil.copytree(shards, lonely)
    holdout = ShardSet(lonely / "holdout")
    first = holdout.meta(0)["patient"]
    members = [(holdout.key(i), holdout.image(i), holdout.meta(i)) for i in range(len(holdout))]
    shutil.rmtree(lonely / "holdout")
    (lonely / "holdout").mkdir()
    with tarfile.open(lonely / "holdout" / "shard-000000.tar", "w") as tar:
        for key, image, meta in members:
            if meta["patient"] == first:
                add(tar, f"{key}.png", cv2.imencode(".png", image)[1].tobytes())
                add(tar, f"{key}.json", json.dumps(meta).encode())
    printed = smoke(tmp_path / "run", lonely, "--steps", 2)
    assert "no k-NN at the end: patient-disjoint scores need crops of at least two patients" in printed
    assert "loss / ln K" in printed
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "finished"


def test_named_views_come_after_the_recipe_and_before_single_settings():
    recipe, _ = read_command_line(["--recipe", "small-cnn"])
    expected = yaml.safe_load((VIEWS["periapical"]).read_text())["views"]
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in expected.items()}
    for arguments in (
        ["--recipe", "small-cnn", "--views", "periapical", "--views.text_probability", "0.5"],
        ["--views.text_probability=0.5", "--views=periapical", "--config", str(RECIPES / "small-cnn.yaml")],
    ):
        named, _ = read_command_line(arguments)
        assert named.views == dataclasses.replace(recipe.views, **expected | {"text_probability": 0.5})
        assert named == dataclasses.replace(recipe, views=named.views)
    single, _ = read_command_line(["--recipe", "small-cnn", "--views", '{"shear": 0.3}', "--views", "periapical"])
    assert (single.views.shear, single.views.rotation_degrees) == (0.3, 15.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--log_with", "wandb", "--log_with", "[tensorboard]"], ["wandb", "tensorboard"]),
        (["--log_with=[wandb, 'a b']", "--seed", "1", "--log-with", "c", "2"], ["wandb", "a b", "c", "2"]),
        (["--log_with", "[wandb]", "--log_with=[tensorboard]", "--log_with", "[]"], ["wandb", "tensorboard"]),
        (["--log_with", "a", "b", "--log_with=c"], ["a", "b", "c"]),
    ],
)
def test_a_list_given_several_times_is_one_list_however_each_is_written(arguments, expected):
    config, _ = read_command_line(arguments)
    assert config.log_with == expected


def test_help_shows_the_values_of_the_views(capsys):
    with pytest.raises(SystemExit):
        read_command_line(["--recipe", "smoke", "--views", "periapical", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--views.rotation_degrees ROTATION_DEGREES .*?default: 15\.0\)", told)
    assert re.search(r"--views.local_count LOCAL_COUNT .*?default: 2\)", told)


def test_a_batch_of_more_crops_than_there_are_is_told(shards, tmp_path):
    common = [
        "--backbone",
        "test_resnet",
        "--steps",
        1,
        "--data.workers",
        0,
        "--eval.label",
        "finding",
        "--pictures",
        "false",
    ]
    crops = len(ShardSet(shards))
    told = [smoke(tmp_path / f"b{n}", shards, *common, "--data.batch_size", n) for n in (crops, crops + 1)]
    assert ["warning: a batch holds crops more than once" in printed for printed in told] == [False, True]


MISTAKES = {
    "no shards there": (["--data.shards", "nowhere"], r"no shards at nowhere"),
    "no shards given": (["--data.phantom_patients", 0], r"no shards given"),
    "empty folder": (["--data.shards", "{empty}"], r"no \.tar shard in"),
    "cut shard": (["--data.shards", "{cut}"], r"cut short"),
    "size too small": (["--backbone", "convnextv2", "--views.local_size", "[16,16]"], r"cannot take views of 16x16"),
    "odd size for the vit": (["--backbone", "vit", "--views.local_size", "[40,40]"], r"cannot take views of 40x40"),
    "one crop a process": (["--data.batch_size", 1], r"at least 2 for each; use --data\.batch_size 2 or 3"),
    "unknown field": (["--data.bach", 3], r"no field 'data\.bach'.*valid here: .*data\.batch_size"),
    "ill-typed field": (["--optim.lr", "fast"], r"'optim\.lr' does not fit: Expected.*float.*--help"),
    "endless": (["--epochs", ".inf"], r"epochs is inf.*finite"),
    "one of two values": (["--views.global_size", 64], r"several values are written \[64,48\]"),
    "misspelt group": (["--optm.lr", 3], r"no field 'optm\.lr' \(did you mean 'optim\.lr'\?\); `--help`"),
    "field without its group": (["--batch_size", 3], r"no field 'batch_size' \(did you mean 'data\.batch_size'"),
    "field of a later group": (["--lr", 3], r"no field 'lr' \(did you mean 'optim\.lr'\?\)"),
    "recipe in a file": (
        ["--config", "{stranger}/r.yaml"],
        r"r\.yaml has a line `recipe:`, .* or give --recipe instead",
    ),
    "shortened field": (["--step", 3], r"no field 'step'.*did you mean 'steps'"),
    "one item after =": (["--data.shards=nowhere"], r"no shards at nowhere"),
    "unknown recipe": (["--recipe", "huge"], r"no recipe 'huge'; valid: convnextv2, demo"),
    "unknown views": (["--views", "bitewing"], r"no views 'bitewing'; valid: panoramic, periapical"),
    "views twice": (
        ["--views", "panoramic", "--views=periapical"],
        r"--views is given 2 times \(panoramic, periapical\)",
    ),
    "an extra transform for colours": (["--views.extra", "[{{name: HueSaturationValue}}]"], r"views\.extra\[0\]: Hue"),
    "unknown label": (["--eval.shards", "{shards}", "--eval.label", "age"], r"no crop carries the label 'age'"),
    "half weighted": (["--data.shards", "a=1", "b"], r"PATH=WEIGHT for all or none"),
    "impossible value": (["--method.ema_start", 7], r"method\.ema_start is 7.*from 0 to 1"),
    "no pairs": (["--views.global_count", 1, "--views.local_count", 0], r"no other to predict"),
    "not a run folder": (["--out", "{empty}/.."], r"is not a run folder"),
    "never moves a stranger": (
        ["--out", "{stranger}", "--resume", "never"],
        r"stranger exists and is not a run folder",
    ),
    "phantom without that label": (["--data.phantom_patients", 12, "--eval.label", "wisdom"], r"label 'wisdom'"),
    "hidden stranger": (["--out", "{hidden}"], r"hidden exists and is not a run folder"),
    "named state": (["--out", "{empty}/state"], r"cannot be named 'state'"),
    "a path for a backbone": (["--backbone", "local-dir:/data/clinic"], r"is a place, not a name"),
    "a path for a recipe": (["--recipe", "../recipes/smoke"], r"no recipe"),
    "unwritable": (["--out", "/proc/run"], r"/proc/run"),
    "no such backbone": (["--data.phantom_patients", 12, "--backbone", "resnet5000"], r"'resnet5000' is neither"),
    "diverging": (["--optim.lr", "1e30", "--steps", 6, "--optim.clip", "1e30"], r"the loss is nan .*Lower --optim\.lr"),
    "corrupt crop": (["--data.shards", "{corrupt}"], r"sample \w+ in .* is corrupt"),
    "no length": (["--steps", "null"], r"either --steps N or --epochs N"),
}


@pytest.mark.parametrize("given", ["--steps=1e2", "--steps 1e2", "--steps 1.0e+2"])
def test_whole_numbers_may_be_written_with_an_exponent(given):
    config, _ = read_command_line(
        ["--recipe", "smoke", *given.split(), "--data.batch_size", "2e1", "--optim.lr", "1e-3"]
    )
    assert (config.steps, config.data.batch_size, config.optim.lr) == (100, 20, 1e-3)


@pytest.fixture
def no_accelerator_left():
    """A run in this process sets what every later Accelerator takes up, such as its precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_accelerator_left")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(name, shards, tmp_path, monkeypatch, capsys):
    arguments, message = MISTAKES[name]
    empty, cut = tmp_path / "empty", tmp_path / "cut"
    empty.mkdir()
    cut.mkdir()
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "scan.jpg").touch()
    (tmp_path / "stranger" / "r.yaml").write_text("recipe: smoke\nsteps: 3\n")
    for path in shards.glob("*.*"):
        content = path.read_bytes()
        (cut / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".tar" else content)
    corrupt = corrupted(shards, tmp_path / "corrupt")
    (tmp_path / "hidden" / ".ssh").mkdir(parents=True)
    places = {
        "hidden": tmp_path / "hidden",
        "empty": empty,
        "cut": cut,
        "corrupt": corrupt,
        "shards": shards,
        "stranger": tmp_path / "stranger",
    }
    arguments = [str(a).format(**places) for a in arguments]
    given = (
        []
        if any(a.startswith(("--data.shards", "--data.phantom_patients")) for a in arguments)
        else ["--data.shards", shards]
    )
    recipe = [] if {"--recipe", "--config"} & {*arguments} else ["--recipe", "smoke"]
    out = [] if "--out" in arguments else ["--out", tmp_path / "run"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in (*recipe, *out, *given, *arguments)])
    printed, errors = capsys.readouterr()
    assert ended.value.code == 2, errors
    assert "Traceback" not in errors
    assert "rendering" not in printed or "wisdom" in errors  # a label of the phantom is known when it is packed
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line


def test_a_batch_that_does_not_divide_is_refused(shards, tmp_path):
    process = start(
        LAUNCHED, "--recipe", "smoke", "--out", tmp_path / "r", "--data.shards", shards, "--data.batch_size", 15
    )
    _, errors = process.communicate(timeout=400)
    assert "a global batch of 15 crops does not divide over 2 processes" in errors
    assert "use --data.batch_size 14 or 16" in errors


def test_a_corrupt_crop_is_told_by_the_process_that_read_it(shards, tmp_path):
    corrupt = corrupted(shards, tmp_path / "corrupt")
    process = start(LAUNCHED, "--recipe", "smoke", "--out", tmp_path / "r", "--data.shards", corrupt)
    _, errors = process.communicate(timeout=400)
    assert process.returncode != 0
    assert re.search(r"error: sample \w+ in .* is corrupt", errors)
    assert "[rank" not in errors  # no traceback of the other process's own


def test_a_folder_in_which_a_run_trains_is_left_alone(shards, tmp_path):
    out = tmp_path / "run"
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.shards", shards, "--steps", 200)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(complete_lines(out)) > 2, process)
    for resume in ("auto", "never"):
        assert "another process is training" in smoke(out, shards, "--steps", 200, "--resume", resume, code=2)
    kill(process)


def test_nothing_starts_over_when_every_checkpoint_is_damaged(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 2)
    for path in (out / "checkpoints").glob("*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    before = (out / "run.pth").read_bytes()
    assert "every checkpoint in" in smoke(out, shards, "--steps", 2, code=2)
    assert (out / "run.pth").read_bytes() == before


def test_shards_packed_anew_are_another_run(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 2)
    assert re.search(
        r"^  data +\['\w+'\] +\['\w+'\]$", smoke(out, shards / "holdout", "--steps", 2, code=2), re.MULTILINE
    )


def test_sets_named_one_by_one_are_all_used_and_unlabelled_holdouts_do_not_stop_a_run(shards, tmp_path):
    out = tmp_path / "both"
    shards = Path(shutil.copytree(shards, tmp_path / "clinic-xyz"))
    two = ["--data.shards", shards, "--data.shards", shards / "holdout", "--eval.shards", shards]
    smoke(out, None, "--steps", 1, *two, "--data.cache", tmp_path / "clinic-xyz" / "cache")
    assert len(json.loads((out / "both.json").read_text())["data"]) == 2
    for travels in ("both.json", "both.pth", "report.html", "metrics.jsonl", "state.json"):
        assert b"clinic-xyz" not in (out / travels).read_bytes()
    printed = smoke(tmp_path / "other", None, "--steps", 1, *two[:4], "--eval.label", "tooth_typ", code=2)
    assert "no crop carries the label 'tooth_typ'" in printed
    (tmp_path / "scans").mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (60, 48), dtype=np.uint8)
        (tmp_path / "scans" / f"{i}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    pack(PackConfig([tmp_path / "scans"], tmp_path / "bare", key=b"a public key", quiet=True, holdout=0.4))
    assert "no k-NN at the end" in smoke(tmp_path / "third", tmp_path / "bare", "--steps", 1)


def test_weighted_sets_train(shards, tmp_path):
    out = tmp_path / "mix"
    smoke(out, None, "--steps", 2, "--data.shards", f"{shards}=1", f"{shards / 'holdout'}=3")
    assert [d["weight"] for d in json.loads((out / "mix.json").read_text())["data"]] == [1, 3]
    counts = [line["source_counts"] for line in logged(out)]
    assert all(sum(step) == 16 and abs(step[1] - 12) <= 1 for step in counts)


def test_help_explains_every_field():
    printed = run("--help")
    for words in (
        "--data.batch_size",
        "--views.global_scale",
        "Crops in a global batch",
        "EMA momentum at the first step",
    ):
        assert words in printed
    assert "--recipe" in printed
    assert {p.stem for p in RECIPES.glob("*.yaml")} >= {"demo", "smoke"}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
