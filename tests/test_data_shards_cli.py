"""The commands of `python -m data_shards`, as a user runs them."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_shards.__main__ import main
from data_shards.progress import progress

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_configuration(tmp_path, monkeypatch):
    """Keys and tables of the tests stay out of the user's configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for i in range(8):
            pixels = rng.integers(0, 255, (60, 80), dtype=np.uint8)
            archive.writestr(f"images/p{i // 2}_{i}.png", cv2.imencode(".png", pixels)[1].tobytes())
            archive.writestr(f"labels/p{i // 2}_{i}.txt", "3 0.5 0.5 0.4 0.8\n1 0.2 0.5 0.3 0.8\n")
        archive.writestr("data.yaml", "names: ['11', '22', '33', '46']")
    return "scans.zip"


def shell(*arguments):
    command = [sys.executable, "-m", "data_shards", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["data_shards describe out", "downstream zoo list"])
def test_a_reader_that_has_seen_enough_is_no_error(command, scans):
    main(["pack", "scans.zip", "--out", "out"])
    line = f"set -o pipefail; {sys.executable} -m {command} | true"  # which ends long before the first word
    done = subprocess.run(["bash", "-c", line], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 141
    assert b"rror" not in done.stderr


def test_from_an_archive_to_a_verified_folder(scans, tmp_path):
    """The whole way in real processes, with the outside names of every option."""
    (tmp_path / "fixed.key").write_text("who is held out follows from the key: this one parts the four patients")
    options = ["--patient", "p(\\d)_", "--pixel-aspect", "1.5", "--workers", 2, "--boxes", "auto"]
    held = shell("pack", scans, "--out", "held", *options, "--holdout", "0.5", "--key", tmp_path / "fixed.key")
    assert held.returncode == 0, held.stderr
    done = shell("pack", scans, "--out", "shards", *options)
    assert done.returncode == 0, done.stderr
    assert "boxes: yolo (8 YOLO files and their class names)" in done.stdout
    assert re.search(r"boxes +16 +16 +0", done.stdout)
    assert "packing" in done.stderr  # the progress bar
    key = tmp_path / "config" / "tooth-foundations" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "every checksum" in shell("verify", "shards").stdout
    rejected = shell("pack", scans, "--out", "again", "--against", "shards")
    assert rejected.returncode == 2
    assert "nothing new: 8 radiographs are in earlier packs" in rejected.stderr


def run(capsys, *arguments):
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def test_describe_preview_locate(scans, tmp_path, capsys):
    told = run(capsys, "pack", scans, "--out", "shards")
    assert "no --patient given, so each radiograph counts as one patient" in told
    told = run(capsys, "describe", "shards", "--html", "deep/page.html")
    for words in (
        "16 crops, ",
        "in 1 shard\n",
        "8 radiographs of 8 patients",
        "tooth_type: 2 values",
        "\n  22         8    50.0%",
    ):
        assert words in told
    assert "</html>" in (tmp_path / "deep" / "page.html").read_text()
    sample = json.loads((tmp_path / "shards" / "manifest.json").read_text())["shards"][0]["name"]
    assert sample == "shard-000000.tar"
    assert "16 of 16 crops" in run(capsys, "preview", "shards")
    assert cv2.imread("sheet.png") is not None
    assert "6 of 8 radiographs" in run(capsys, "preview", scans, "--out", "deep/source.png", "--pixel_aspect", "1.5")
    assert cv2.imread("deep/source.png").shape[1] == 1800
    table = (tmp_path / "config" / "tooth-foundations" / "key.ids.jsonl").read_text().splitlines()
    entry = json.loads(table[0])
    assert f"{entry['kind']}\t{entry['path']}\n" in run(capsys, "locate", entry["id"])
    assert str(tmp_path / "scans.zip") in entry["path"]


def test_phantoms_pack_by_the_same_way(tmp_path, capsys):
    run(capsys, "phantom", "--out", "phantom.zip", "--patients", 2, "--seed", 3)
    told = run(capsys, "pack", "phantom.zip", "--out", "shards", "--patient", r"p(\d+)-")
    assert "boxes: csv" in told
    assert "of 2 patients" in told
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert {"fdi", "finding", "position", "tooth_type"} <= manifest["statistics"]["labels"].keys()
    for ledger in manifest["ledgers"].values():
        assert ledger["seen"] == ledger["used"] + ledger["rejected"]


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["pack", "--help"])
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "--pixel_aspect",
        "Displayed width of a stored pixel",
        "--against",
        "--holdout",
        "periodontal ligament",
    ):
        assert words in told
    assert "locate" in run(capsys, "--help")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pakc"], "no command 'pakc': use one of pack"),
        (["pack", "nowhere.zip", "--out", "x"], "there is nothing at nowhere.zip: check the path"),
        (["pack", "scans.zip", "--out", "x", "--pixel-aspcet", "2"], "did you mean 'pixel_aspect'?"),
        (["pack", "scans.zip", "--out", "x", "--workers", "many"], "workers"),
        (["pack", "scans.zip", "--out", "x", "--holdout", "2"], "holdout 2.0: give the share"),
        (["pack", "scans.zip", "--out", "x", "--patient", "["], "no regular expression"),
        (["pack", "scans.zip", "--out", "x", "--boxes", "no.csv"], "no boxes at no.csv: give auto, none"),
        (["pack", "scans.zip", "--out", "scans.zip"], "not an empty folder"),
        (["pack", "scans.zip"], "out"),
        (["pack"], "sources"),
        (["locate"], "id"),
        (["pack", "", "--out", "x"], "a source is empty: name a path"),
        (["pack", "scans.zip", "--out", "x", "--boxes", ""], "--boxes is empty: name a path"),
        (["pack", "text.txt", "--out", "x"], "no file of 1 could be used (1 x not a radiograph or an annotation)"),
        (["verify", "nowhere"], "no shards at nowhere: make them with"),
        (["describe", "hollow"], "no .tar shard in hollow"),
        (["describe", "scans.zip"], "is no shard"),
        (["preview", "nowhere"], "there is nothing at nowhere"),
        (["preview", "scans.zip", "--out", "text.txt/x.png"], "cannot write text.txt/x.png"),
        (["locate", "0123456789abcdef"], "no table of ids at"),
        (["phantom", "--out", "x.zip", "--patients", "0"], "patients is 0"),
        (["phantom", "--out", "nowhere/x.zip", "--patients", "1"], "nowhere/x.zip"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(scans, tmp_path, capsys, arguments, words):
    (tmp_path / "text.txt").write_text("I am prose")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert words in error[0]
    assert not (tmp_path / "x").exists()


def test_damage_is_told_in_one_line(scans, tmp_path, capsys):
    run(capsys, "pack", scans, "--out", "shards", "--quiet", "true")
    shard = tmp_path / "shards" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-600])
    done = shell("verify", "shards")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: shards has 1 problem(s)")
    assert "shard-000000.tar" in done.stdout


def test_a_bar_in_a_log_is_a_line_now_and_then(capfd):
    for _ in progress(range(2000), desc="packing"):
        time.sleep(0.0002)
    assert 1 <= capfd.readouterr().err.count("packing") <= 2


def test_a_switch_needs_no_value(scans):
    main(["pack", "scans.zip", "--drop-near", "--out", "a"])
    main(["pack", "scans.zip", "--out", "b", "--quiet", "--drop-near"])
    main(["pack", "--drop-near", "false", "scans.zip", "--out", "c"])
    dropped = [json.loads(Path(out, "manifest.json").read_text())["settings"]["drop_near"] for out in "abc"]
    assert dropped == [True, True, False]


def test_what_cannot_become_a_pack_or_be_compared_is_told_first(scans, capsys):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    for arguments, words in (
        (["--out", "link"], "is a link or a mount point"),
        (["--out", "a", "--against", "nowhere"], "no pack at nowhere"),
    ):
        with pytest.raises(SystemExit):
            main(["pack", "scans.zip", *arguments])
        told = capsys.readouterr()
        assert words in told.err
        assert "listing" not in told.err


def test_a_folder_of_archives_is_previewed_as_what_pack_takes(scans):
    Path("folder").mkdir()
    with zipfile.ZipFile("scans.zip") as archive, tarfile.open("folder/scans.tar", "w") as tar:
        for name in archive.namelist():
            info = tarfile.TarInfo(name)
            info.size = archive.getinfo(name).file_size
            tar.addfile(info, archive.open(name))
    main(["preview", "folder", "--out", "sheet.png"])
    assert Path("sheet.png").stat().st_size > 1000
