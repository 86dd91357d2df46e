"""Folders of classes, tables and archives of them in the place of shards, from the command line to the score."""

import io
import json
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import py7zr
import pytest
import torch
from PIL import Image

from augment import fit
from data_shards.decode.radiograph import decode
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.shards.shard_set import ShardSet
from downstream.__main__ import main
from downstream.config import DownstreamError, KnnConfig
from downstream.data.sources import as_shards, is_shards, packed
from pretrain import build_backbone, proj_head, save_combined
from pretrain.models.batchnorm import calibrate_batchnorm

TINY = "test_resnet"
CLASSES = ("stripes", "blotches")
NAME = "Zebulon"  # in every path that is the user's own


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    """Always the same, as the folds follow from the patients' ids; not the user's, whose table of ids would grow."""
    key = tmp_path / "config" / "tooth-foundations" / "key"
    key.parent.mkdir(parents=True)
    key.write_text("a public key for tests")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def drawn(rng, striped):
    noise = rng.normal(size=(64, 48))
    if striped:
        texture = 2 * np.sin(np.arange(64) * np.pi / 2 + rng.uniform(0, 7))[:, None] + 0.3 * noise
    else:
        texture = np.kron(rng.normal(size=(8, 6)), np.ones((8, 8)))
    return np.clip(128 + 40 * texture, 0, 255).astype(np.uint8)


def encoded(gray, kind):
    """A file of one of the kinds that people have: 8 and 16-bit PNG, colour JPEG."""
    buffer = io.BytesIO()
    if kind == "jpg":
        Image.fromarray(np.stack([gray, gray // 2, gray], -1)).save(buffer, "jpeg", quality=95)
    else:
        Image.fromarray(gray.astype(np.uint16) * 16 if kind == "deep" else gray).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images():
    """By class and file name: 20 patients with a crop of each class."""
    rng = np.random.default_rng(0)
    found = {}
    for patient in range(20):
        for striped, name in enumerate(reversed(CLASSES)):
            kind = ("png", "deep", "jpg")[patient % 3]
            file = f"{NAME}{patient:02}-{striped}.{'jpg' if kind == 'jpg' else 'png'}"
            found[name, file] = encoded(drawn(rng, bool(striped)), kind)
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.manual_seed(3)
    backbone = build_backbone(TINY)
    rng = np.random.default_rng(3)
    calibrate_batchnorm(backbone, np.stack([fit(drawn(rng, i % 2 == 0), (64, 48)) for i in range(16)]), 0.4, 0.2, 16)
    save_combined(path, backbone, proj_head(backbone.num_features, 16))
    path.with_suffix(".json").write_text(
        json.dumps({"backbone": TINY, "input": {"size": [64, 48], "mean": 0.4, "std": 0.2}})
    )
    return path


def as_classes(images):
    return {f"winter/{name}/{file}": raw for (name, file), raw in images.items()}


def as_table(images):
    rows = ["Filename,finding,age,surname"]
    rows += [f"{file},{name},{40 + i % 2},{NAME}" for i, (name, file) in enumerate(images)]
    return {file: raw for (_, file), raw in images.items()} | {"labels.csv": "\n".join(rows).encode()}


def laid(place, members, kind="folder"):
    """`members` in a folder or an archive called after someone; its path."""
    place = place / f"{NAME}s crops"
    if kind == "folder":
        for name, raw in members.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(raw)
        return place
    place = place.with_name(f"{place.name}.{kind}")
    if kind == "7z":
        with py7zr.SevenZipFile(place, "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 1}]) as archive:
            for name, raw in members.items():
                archive.writestr(raw, name)
    elif kind == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, raw in members.items():
                archive.writestr(name, raw)
    else:
        with tarfile.open(place, "w") as archive:
            for name, raw in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
    return place


def knn(checkpoint, out, *options):
    main(
        [
            "knn",
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(out),
            "--workers",
            "0",
            "--neighbours",
            "3",
            *map(str, options),
        ]
    )
    return json.loads((Path(out) / "metrics.json").read_text())["labels"]


def mistake(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in said
    return next(line for line in said.splitlines() if line.startswith("error: "))


def packs(out):
    return sorted((out / "packed").iterdir())


def names_in(out):
    everything = b"\0".join(
        str(p.relative_to(out)).encode() + (p.read_bytes() if p.is_file() else b"") for p in out.rglob("*")
    )
    return [word for word in (NAME, "winter", "labels.csv", "pytest-of") if word.lower().encode() in everything.lower()]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "7z"])
@pytest.mark.parametrize("layout", ["classes", "table"])
def test_the_planted_signal_is_found_whatever_it_lies_in(layout, kind, images, checkpoint, tmp_path, capsys):
    members, label = (as_classes(images), "class") if layout == "classes" else (as_table(images), "finding")
    source = laid(tmp_path, members, kind)
    out = tmp_path / "out"
    score = knn(checkpoint, out, "--shards", source, "--label", label, "--patient", rf"{NAME}(\d+)-")[label]
    assert score["classes"] == sorted(CLASSES)
    assert (score["crops"], score["patients"]) == (40, 20)
    assert score["trained"] > 0.85
    shown = capsys.readouterr().out
    assert ("boxes: folders" if layout == "classes" else "boxes: csv of whole images") in shown
    assert "patients: 20 of 40 radiographs, by --patient" in shown
    assert re.search(r"files +40 ", shown) if layout == "classes" else "surname" in shown  # said to be left out
    assert names_in(out) == []

    (folder,) = packs(out)
    samples = ShardSet(folder)
    wanted = {decode(raw).pixels.tobytes(): name for (name, _), raw in images.items()}
    assert {samples.image(i).tobytes(): samples.meta(i)[label] for i in range(len(samples))} == wanted


def test_a_second_command_does_not_pack_again(images, checkpoint, tmp_path, monkeypatch, capsys):
    source, out = laid(tmp_path, as_classes(images)), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    first = knn(checkpoint, out, "--shards", source.name, "--label", "class")
    assert "without --patient every image is a patient" in capsys.readouterr().out
    (folder,) = packs(out)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert knn(checkpoint, out, "--shards", source, "--label", "class") == first
    assert "packed before" in (shown := capsys.readouterr().out)
    assert "without --patient" in shown
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    os.utime(next(source.rglob("*.png")))
    knn(checkpoint, out, "--shards", source, "--label", "class")
    assert len(packs(out)) == 2


def test_a_table_names_images_beside_it_and_columns_are_asked_for_by_label(images, checkpoint, tmp_path):
    source = laid(tmp_path, as_table(images))
    score = knn(checkpoint, source / "out", "--shards", source / "labels.csv", "--label", "age")["age"]  # OUT within
    assert score["classes"] == ["40", "41"]
    again = knn(checkpoint, source / "out", "--shards", source / "labels.csv", "--label", "age")["age"]
    assert (again, len(packs(source / "out"))) == (score, 1)
    apart = tmp_path / "labels.csv"
    (source / "labels.csv").rename(apart)
    assert knn(checkpoint, tmp_path / "out", "--shards", source, apart, "--label", "age")["age"]["crops"] == 40


def test_patients_on_both_sides_are_found(images, checkpoint, tmp_path, capsys):
    sides = []
    for side, place in ((0, "left"), (1, "right")):
        members = {name: raw for name, raw in as_classes(images).items() if int(name.split(NAME)[1][:2]) % 2 == side}
        (tmp_path / place).mkdir()
        sides.append(laid(tmp_path / place, members, "zip"))
    arguments = ["knn", "--checkpoint", checkpoint, "--label", "class", "--shards", sides[0]]
    said = mistake(capsys, *arguments, "--query", sides[1], "--out", tmp_path / "a", "--workers", 0)
    assert "have one name" in said
    assert "give --patient" in said
    patient = ("--patient", rf"{NAME}(\d+)-")
    score = knn(checkpoint, tmp_path / "b", *arguments[3:], "--query", sides[1], *patient)["class"]
    assert (score["crops"], score["patients"]) == (20, 10)
    both = laid(tmp_path, as_classes(images))
    said = mistake(capsys, *arguments, "--query", both, "--out", tmp_path / "c", "--workers", 0, *patient)
    assert "share 10 patients" in said


def test_shards_stay_as_they_are(images, tmp_path):
    folder = tmp_path / "shards"
    source = laid(tmp_path, as_classes(images))
    pack(PackConfig([source], folder, key=b"0" * 32, boxes="folders", quiet=True))
    tar = str(folder / "shard-000000.tar")
    given = [str(folder), tar, "https://example.org/shards"]
    assert as_shards(given, tmp_path / "out", None) == given
    assert not (tmp_path / "out").exists()
    assert not is_shards(str(laid(tmp_path, as_classes(images), "tar")))
    config = KnnConfig(checkpoint="c", out=str(tmp_path), shards=[tar], label=["class"])
    assert packed(config) is config
    with pytest.raises(DownstreamError, match="shards say whose"):
        packed(KnnConfig(checkpoint="c", out=str(tmp_path), shards=[tar], label=["class"], patient="x"))


def test_other_processes_wait_for_the_first(images, tmp_path, capsys):
    source, out = str(laid(tmp_path, as_classes(images))), tmp_path / "out"
    found = as_shards([source], out, None)
    capsys.readouterr()
    assert as_shards([source], out, None, first=False) == found
    assert capsys.readouterr().out == ""


def test_mistakes_are_one_line(images, checkpoint, tmp_path, monkeypatch, capsys):
    flat = laid(tmp_path, {file: raw for (_, file), raw in images.items()})
    seven = laid(tmp_path, as_classes(images), "7z")
    arguments = ["knn", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--workers", 0, "--label"]
    assert "no class: it lies in no folder" in mistake(capsys, *arguments, "class", "--shards", flat)
    assert "nothing to read at" in mistake(capsys, *arguments, "class", "--shards", tmp_path / "nowhere")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert "nothing to read at" in mistake(capsys, *arguments, "class", "--shards", tmp_path / "empty")
    assert "no label grade: there are class" in mistake(capsys, *arguments, "grade", "--shards", seven)
    said = mistake(capsys, *arguments, "class", "--shards", seven, "--patient", "(")
    assert "no regular expression" in said
    monkeypatch.setitem(sys.modules, "py7zr", None)
    os.utime(seven)
    said = mistake(capsys, *arguments, "class", "--shards", seven)
    assert 'pip install "tooth-foundations[7z]"' in said


def test_images_without_labels_can_be_embedded(images, checkpoint, tmp_path):
    flat = laid(tmp_path, {file: raw for (_, file), raw in images.items()})
    out = tmp_path / "out"
    main(["embed", "--checkpoint", str(checkpoint), "--out", str(out), "--shards", str(flat), "--workers", "0"])
    assert len(np.load(out / "features.npy")) == 40
    assert names_in(out) == []
