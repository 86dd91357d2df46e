"""From archives to shards: ledgers, crops, ids, privacy, same bytes."""

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.annotations.formats.yolo_rows import RowError, corners_of, decide, numbers_in
from data_shards.annotations.labels import LabelList, tooth_in, tooth_labels
from data_shards.decode.radiograph import RadiographError, decode
from data_shards.errors import PackError
from data_shards.inspect.verify import verify
from data_shards.pack.crop import CropError, cut, region
from data_shards.pack.crop_job import encode_png
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key, load_key, locate, remember, table_beside
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.tar_index import index_shards

KEY = b"a public key for tests"
NAME = "Zebulon-Quasimodo"  # planted wherever a patient's name can hide


def image(seed, shape=(120, 200)):
    coarse = np.random.default_rng(seed).random((6, 10)).astype(np.float32)
    return (cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)


def saved(pixels, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


def exif(orientation=1, text=""):
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, text
    return tags


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


WARTS = {
    "set/data.yaml": f"path: /home/{NAME}\nnames: ['11', '26', tooth_36, crown]\n",
    "set/images/good.png": saved(image(1)),
    "set/labels/good.txt": "0 0.5 0.5 0.2 0.4\n"
    "1 0.3 0.5 0.2 0.4\n\n2 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4\n3 .8 .5 .2 .4 0.97\n",
    "set/images/bad rows.jpg": saved(image(2), "jpeg"),
    "set/labels/bad rows.txt": "0 0.5 0.5 0.2 0.4\n"  # used
    "0 0.5 0.5 0.2 0.4\n"  # twice
    "0 0.5 0.5 -0.2 0.4\n"  # inverted
    "0 0.5 0.5 0 0.4\n"  # empty
    "0 1.5 0.5 0.2 0.4\n"  # outside
    "0 0.5 0.5 0.01 0.4\n"  # thin
    "0 100 50 20 40\n"  # pixels
    "zero 0.5 0.5 0.2 0.4\n"  # not numbers
    "0 0.5 nan 0.2 0.4\n"  # not finite
    "0 0.5 0.5\n",  # short
    "set/images/unlabelled.png": saved(image(3)),
    "set/labels/orphan.txt": "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n",
    "set/images/cut.png": saved(image(4))[:2000],
    "set/labels/cut.txt": "0 0.5 0.5 0.2 0.4\n",
    "set/images/text.png": f"I am {NAME}, no image",
    "set/labels/text.txt": "0 0.5 0.5 0.2 0.4\n",
    "set/images/twin.bmp": saved(image(1), "bmp"),  # the pixels of good.png in another container
    "set/labels/twin.txt": "0 0.5 0.5 0.2 0.4\n",
    "set/images/blank.png": saved(image(5)),
    "set/labels/blank.txt": "\n",
    "set/README.md": f"by {NAME}",
    "set/LICENSE": "free",
    "set/empty.dat": b"",
}


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def reasons(out, ledger):
    return sorted(line["reason"] for line in rejected(out) if line["ledger"] == ledger)


def packed(source, out, **options):
    return pack(PackConfig([source], out, **{"key": KEY, "quiet": True, **options}))


@pytest.fixture
def warts(tmp_path):
    source = zipped(tmp_path / "warts.zip", WARTS)
    out = tmp_path / "out"
    return packed(source, out), out


def test_every_wart_is_in_the_books(warts):
    manifest, out = warts
    assert (
        manifest["ledgers"]
        == {
            "files": {"seen": 18, "used": 5, "rejected": 13},
            "radiographs": {"seen": 7, "used": 2, "rejected": 5},
            "boxes": {"seen": 19, "used": 5, "rejected": 14},
        }
        or (manifest["ledgers"], manifest["reasons"]) == ()
    )
    assert len(rejected(out)) == sum(ledger["rejected"] for ledger in manifest["ledgers"].values())
    assert verify(out, quiet=True) == []
    twin_of = {line["id"]: line.get("twin") for line in rejected(out) if line["ledger"] == "radiographs"}
    key = Key(KEY, None)
    pair = [key.id("radiograph", f"warts.zip/set/images/{name}") for name in ("good.png", "twin.bmp")]
    assert twin_of.get(max(pair)) == min(pair)  # the lowest id stays


def test_reasons_can_be_acted_on(warts):
    _, out = warts
    boxes = set(reasons(out, "boxes"))
    for words in (
        "twice",
        "inverted",
        "empty box",
        "outside",
        "under 8 pixels",
        "0 to 1",
        "numbers",
        "finite",
        "3 fields",
    ):
        assert any(words in reason for reason in boxes), words
    radiographs = " | ".join(reasons(out, "radiographs"))
    for words in ("no boxes for it", "damaged or cut short", "not an image", "duplicate"):
        assert words in radiographs, words
    files = " | ".join(reasons(out, "files"))
    for words in ("no radiograph for it", "it holds no boxes", "not a radiograph or an annotation", "an empty file"):
        assert words in files, words


def test_samples_say_what_they_are(warts):
    _, out = warts
    samples = ShardSet(out)
    metas = [samples.meta(i) for i in range(len(samples))]
    by_class = {m["class"]: m for m in metas}
    assert by_class["tooth_36"] | {"fdi": 36, "tooth_type": "molar", "position": 46} == by_class["tooth_36"]
    assert "fdi" not in by_class["crown"]
    for i, meta in enumerate(metas):
        assert meta["id"] == samples.key(i)
        assert samples.image(i).shape == (meta["height"], meta["width"])
        assert re.fullmatch("[0-9a-f]{16}", meta["source"])
    polygon = next(m for m in metas if m["class"] == "tooth_36")
    assert polygon["box"] == [20.0, 12.0, 60.0, 48.0]
    assert metas == sorted(metas, key=lambda m: m["radiograph"])


def test_crops_are_the_pixels_of_their_boxes(tmp_path):
    pixels = image(7)
    source = zipped(tmp_path / "a.zip", {"x.png": saved(pixels), "x.txt": "0 0.5 0.5 0.2 0.5"})
    packed(source, tmp_path / "out")
    # box 80..120 x 30..90 with 5 % on each side: 78..122 x 27..93
    assert np.array_equal(ShardSet(tmp_path / "out").image(0), pixels[27:93, 78:122])
    packed(source, tmp_path / "wide", pixel_aspect=1.767)
    wide = ShardSet(tmp_path / "wide").image(0)
    assert wide.shape == (66, round(44 * 1.767))
    back = cv2.resize(wide, (44, 66), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(back - pixels[27:93, 78:122]).mean() < 2


def test_webdataset_itself_reads_the_shards(warts):
    manifest, out = warts
    shards = [str(out / s["name"]) for s in manifest["shards"]]
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    samples = ShardSet(out)
    assert [r["__key__"] for r in read] == [samples.key(i) for i in range(len(samples))]
    for i, one in enumerate(read):
        assert one["json"] == samples.meta(i)
        assert np.array_equal(np.asarray(one["png"].convert("L")), samples.image(i))
    with tarfile.open(shards[0]) as tar:
        assert {(t.mtime, t.uid, t.gid, t.uname) for t in tar} == {(0, 0, 0, "")}


def test_the_index_is_what_tarfile_finds(warts):
    manifest, out = warts
    paths = [out / s["name"] for s in manifest["shards"]]
    with tarfile.open(paths[0]) as tar:
        expected = [(t.offset_data, t.size) for t in tar]
    index = np.load(out / "index.npy")
    assert np.array_equal(index, index_shards(paths))
    found = [(r[f], r[f + "_size"]) for r in index for f in ("image", "meta")]
    assert [(int(a), int(b)) for a, b in found] == expected


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_locate_finds_what_every_id_stands_for(tmp_path):
    source = zipped(tmp_path / "a.zip", {"p1/x.png": saved(image(1)), "p2/y.png": saved(image(2)), "bad.png": b"x"})
    key = tmp_path / "secret" / "key"
    packed(source, tmp_path / "out", key=key, patient="p\\d")
    table = table_beside(key)
    before = table.read_text()
    packed(source, tmp_path / "again", key=key, patient="p\\d")
    assert table.read_text() == before  # nothing twice
    samples = ShardSet(tmp_path / "out")
    for meta in (samples.meta(i) for i in range(2)):
        (kind, path), *_ = locate(table, meta["source"])
        assert (kind, Path(path).parent.parent) == ("file", source)
        assert locate(table, meta["id"])[0] == ("box", f"{path} (its box 1)")
        assert locate(table, meta["patient"])[0][1] in path
    for line in rejected(tmp_path / "out"):
        if line["ledger"] == "files":
            assert locate(table, line["id"]) == [("file", f"{source}/bad.png")]
    with pytest.raises(PackError, match="does not have the id"):
        locate(table, "0" * 16)
    with pytest.raises(PackError, match="no table of ids"):
        locate(tmp_path / "nowhere", "0" * 16)


def test_the_keys_owner_can_locate_every_rejected_input(tmp_path):
    source = zipped(tmp_path / "warts.zip", WARTS)
    table = tmp_path / "boxes.csv"
    table.write_text("image,x0,y0,x1,y1\ngood,1,1,50,90\ngone,1,1,50,90\ngood,a,1,50,90\n")
    for name, boxes in (("yolo", "auto"), ("csv", str(table))):
        packed(source, tmp_path / name, key=tmp_path / "key", boxes=boxes)
        lines = rejected(tmp_path / name)
        assert {line["ledger"] for line in lines} == {"files", "radiographs", "boxes"}
        for line in lines:
            assert locate(table_beside(tmp_path / "key"), line["id"])
    assert locate(table_beside(tmp_path / "key"), lines[-1]["id"])[0][1].startswith(f"{table} (its row")


def test_a_table_of_ids_that_cannot_grow_is_named(tmp_path):
    code = (
        "import resource, pathlib\n"
        "from data_shards.pseudonyms import remember\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"remember(pathlib.Path({str(tmp_path / 'table')!r}), [(str(i) * 16, 'file', 'x') for i in range(9)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PackError: cannot write the table of ids" in done.stderr
    assert str(tmp_path / "table") in done.stderr


def test_keys(tmp_path):
    a, made = load_key(tmp_path / "a")
    assert made == tmp_path / "a"
    assert load_key(tmp_path / "a") == (a, None)
    b, _ = load_key(tmp_path / "b")
    assert a.id("file", "x") != b.id("file", "x")
    assert a.id("file", "x") != a.id("box", "x")
    assert a.id("file", "x", "y") != a.id("file", "xy")
    (tmp_path / "short").write_text("1234")
    with pytest.raises(PackError, match="guessed"):
        load_key(tmp_path / "short")
    with pytest.raises(PackError, match="cannot read or make the key"):
        load_key(tmp_path / "a" / "below a file")
    table = tmp_path / "t.jsonl"
    table.write_text('{"id": "cut sh')
    remember(table, [("1", "file", "p")])
    remember(table, [("1", "file", "p"), ("2", "file", "\udcff")])
    assert locate(table, "2") == [("file", "\udcff")]


def test_bytes_do_not_depend_on_workers_or_on_where_it_lies(tmp_path):
    members = {f"images/{i}.png": saved(image(i)) for i in range(8)}
    members |= {f"labels/{i}.txt": "0 0.5 0.5 0.2 0.5\n1 0.3 0.5 0.2 0.5" for i in range(8)}
    (tmp_path / "other").mkdir()
    one = zipped(tmp_path / "a.zip", members)
    other = zipped(tmp_path / "other" / "a.zip", dict(reversed(members.items())))
    packed(one, tmp_path / "one", holdout=0.5)
    packed(one, tmp_path / "two", holdout=0.5, workers=2)
    packed(other, tmp_path / "other" / "out", holdout=0.5)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "other" / "out")


def test_the_holdout_shares_no_patient_and_stays_stable(tmp_path):
    members = {f"p{i // 3}-{i % 3}.png": saved(image(i, (30, 30))) for i in range(60)}
    source = zipped(tmp_path / "a.zip", members)
    out = tmp_path / "out"
    manifest = packed(source, out, holdout=0.3, patient="p(\\d+)-")
    kept, held = ShardSet(out), ShardSet(out / "holdout")
    patients = [{s.meta(i)["patient"] for i in range(len(s))} for s in (kept, held)]
    assert not patients[0] & patients[1]
    assert len(patients[0] | patients[1]) == 20
    assert len(kept) + len(held) == 60 == manifest["ledgers"]["boxes"]["used"]
    counts = {"samples": len(held), "radiographs": len(held), "patients": len(patients[1])}
    assert manifest["holdout"].items() >= counts.items()
    assert verify(out, quiet=True) == []
    packed(source, tmp_path / "half", holdout=0.5, patient="p(\\d+)-")
    half = ShardSet(tmp_path / "half" / "holdout")
    assert patients[1] <= {half.meta(i)["patient"] for i in range(len(half))}
    with pytest.raises(PackError, match="leaves one side"):
        packed(source, tmp_path / "none", holdout=1e-9)


def test_against_drops_what_an_earlier_pack_has(tmp_path):
    first = zipped(tmp_path / "january.zip", {f"{i}.png": saved(image(i)) for i in range(6)})
    second = zipped(tmp_path / "february.zip", {f"x{i}.bmp": saved(image(i), "bmp") for i in range(4, 9)})
    packed(first, tmp_path / "january", holdout=0.5)
    manifest = packed(second, tmp_path / "february", against=[tmp_path / "january"])
    assert manifest["ledgers"]["radiographs"] == {"seen": 5, "used": 3, "rejected": 2}
    known = {Key(KEY, None).id("radiograph", f"january.zip/{i}.png") for i in range(6)}
    twins = {line["twin"] for line in rejected(tmp_path / "february") if line["ledger"] == "radiographs"}
    assert len(twins) == 2
    assert twins <= known
    with pytest.raises(PackError, match="another key"):
        packed(second, tmp_path / "march", against=[tmp_path / "january"], key=b"another public key")


@pytest.mark.parametrize("place", ["scans", "scans/labels", "scans/labels/b.txt"])
def test_boxes_named_inside_the_source_are_entered_once(tmp_path, place):
    for folder in ("images", "labels"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
    (tmp_path / "scans" / "images" / "b.png").write_bytes(saved(image(2)))
    (tmp_path / "scans" / "labels" / "b.txt").write_text("0 0.5 0.5 0.2 0.5")
    manifest = packed(tmp_path / "scans", tmp_path / "out", boxes=str(tmp_path / place))
    assert manifest["ledgers"]["files"] == {"seen": 2, "used": 2, "rejected": 0}
    assert manifest["ledgers"]["boxes"]["used"] == 1


def test_boxes_from_a_file_of_its_own(tmp_path):
    source = tmp_path / "scans"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.png").write_bytes(saved(image(1)))
    (source / "deep" / "b.png").write_bytes(saved(image(2)))
    (source / "deep" / "b.txt").write_text("0 0.5 0.5 0.2 0.5")
    table = tmp_path / "table.csv"
    table.write_text("X0;Y0;X1;Y1;Image;fdi;age\n10;10;60;90;deep\\a.png;48;33\n10;10;60;90;b;;\n5;5;9;9;c.png;1;1\n")
    manifest = packed(source, tmp_path / "out", boxes=str(table), labels=["age"])
    assert manifest["ledgers"]["files"] == {"seen": 4, "used": 3, "rejected": 1}
    assert manifest["ledgers"]["boxes"] == {"seen": 3, "used": 2, "rejected": 1}
    assert manifest["reasons"]["files"] == {"left, as --boxes names other annotations": 1}
    samples = ShardSet(tmp_path / "out")
    tooth = next(m for m in (samples.meta(i) for i in range(2)) if "fdi" in m)
    assert (tooth["fdi"], tooth["tooth_type"], tooth["position"], tooth["age"]) == (48, "molar", 48, "33")
    assert packed(source, tmp_path / "yolo")["settings"]["boxes"] == "yolo"
    assert packed(source, tmp_path / "whole", boxes="none")["statistics"]["height"]["50%"] == 120
    with pytest.raises(PackError, match="no label sex"):
        packed(source, tmp_path / "x", boxes=str(table), labels=["sex"])
    table.write_text("a,b\n1,2\n")
    with pytest.raises(PackError, match="no boxes in"):
        packed(source, tmp_path / "x", boxes=str(table))


def labels_of(out):
    samples = ShardSet(out)
    return sorted(
        tuple(samples.meta(i).get(k) for k in ("class", "finding", "fdi", "age", "box")) for i in range(len(samples))
    )


WHOLE = [0.0, 0.0, 200.0, 120.0]


@pytest.mark.parametrize("column", ["image", "File", "FILENAME", "path", "image_path"])
def test_a_table_without_boxes_labels_whole_images(tmp_path, capsys, column):
    table = f"age;{column};finding\n33;a.png;caries\n34;deep/b;none\n35;gone.png;none\n"
    members = {"a.png": saved(image(1)), "deep/b.png": saved(image(2)), "c.png": saved(image(3)), "labels.csv": table}
    source = zipped(tmp_path / "a.zip", members)
    manifest = packed(source, tmp_path / "out", quiet=False)
    assert labels_of(tmp_path / "out") == [(None, name, None, None, WHOLE) for name in ("caries", "none")]
    assert manifest["settings"]["boxes"] == "csv of whole images"
    assert manifest["ledgers"]["boxes"] == {"seen": 3, "used": 2, "rejected": 1}
    assert manifest["reasons"]["boxes"] == {"no radiograph for it": 1}
    assert manifest["reasons"]["radiographs"] == {"no row of a table labels it": 1}
    said = capsys.readouterr().out
    assert f"1 table(s) with the column {column.lower()}, labels (finding) and no boxes: a row is a whole image" in said
    assert "columns left out, as they may hold names: age" in said
    assert "warning: whole images" in said
    packed(source, tmp_path / "age", labels=["age"])
    assert [found[3] for found in labels_of(tmp_path / "age")] == ["33", "34"]


def test_what_is_no_table_of_whole_images(tmp_path):
    """Tables without a label that is kept, of boxes in other words, or beside boxes of another kind."""
    members = {"a.png": saved(image(1))}
    for number, header in enumerate(["image,age", "filename,class,polygon", "image,class,x,y"]):
        row = ",".join(["a.png", "1", "2", "3", "4", "5"][: header.count(",") + 1])
        source = zipped(tmp_path / f"{number}.zip", {**members, "t.csv": f"{header}\n{row}\n"})
        if number:
            with pytest.raises(PackError, match="a table with boxes in unknown columns"):
                packed(source, tmp_path / f"out{number}")
            continue
        manifest = packed(source, tmp_path / f"out{number}")
        assert manifest["settings"]["boxes"] == "none"
        assert "a table of images without a label column" in " ".join(manifest["reasons"]["files"])
    boxes = {"boxes.csv": "path,x0,y0,x1,y1,fdi\na.png,1,1,50,90,36\n", "whole.csv": "image,finding\na.png,caries\n"}
    yolo = {"a.txt": "0 0.5 0.5 0.2 0.4", "whole.csv": "image,finding\na.png,caries\n"}
    for name, texts in (("csv", boxes), ("yolo", yolo)):
        manifest = packed(zipped(tmp_path / f"{name}.zip", members | texts), tmp_path / name)
        assert manifest["settings"]["boxes"] == name
        assert manifest["reasons"]["files"] == {f"annotations of another kind than {name}": 1}
        assert manifest["ledgers"]["boxes"]["used"] == 1


def test_folders_are_classes_only_if_asked_for(tmp_path, capsys):
    members = {
        "train/11/a.png": saved(image(1)),
        "val/crown/b.png": saved(image(2)),
        "images/c.png": saved(image(3)),
        f"{'long ' * 30}/d.png": saved(image(4)),
        "test\\labels\\e.png": saved(image(5)),  # as some zips have it
        "root.png": saved(image(6)),
        "../climbs.png": saved(image(7)),
        "notes.txt": "none",
    }
    source = zipped(tmp_path / "a.zip", members)
    manifest = packed(source, tmp_path / "out", boxes="folders", quiet=False)
    wanted = {"11", "crown", "images", "labels", ("long " * 30)[:64]}
    assert {(found[0], found[2]) for found in labels_of(tmp_path / "out")} == {
        (name, 11 if name == "11" else None) for name in wanted
    }
    assert manifest["reasons"]["radiographs"] == {"no class: it lies in no folder of its source": 2}
    assert manifest["ledgers"]["files"] == {"seen": 8, "used": 5, "rejected": 3}
    assert verify(tmp_path / "out", quiet=True) == []
    assert "its folder its class, 5 classes" in capsys.readouterr().out
    assert packed(source, tmp_path / "auto")["statistics"]["labels"] == {}
    labelled = packed(source, tmp_path / "labelled", boxes="labelled")
    assert labelled["settings"]["boxes"] == "folders"
    zipped(source, members | {"labels.csv": "image,finding\na.png,caries\n"})
    labelled = packed(source, tmp_path / "table", boxes="labelled")
    assert labelled["statistics"]["labels"] == {"finding": {"caries": 1}}


def test_a_class_number_without_a_name_is_no_tooth(tmp_path):
    source = zipped(tmp_path / "a.zip", {"x.png": saved(image(1)), "x.txt": "11 0.5 0.5 0.2 0.5"})
    assert packed(source, tmp_path / "out")["statistics"]["labels"] == {"class": {"11": 1}}


def test_hostile_members_do_no_harm(tmp_path):
    source = tmp_path / "evil.tar"
    good = saved(image(1))
    with tarfile.open(source, "w") as tar:
        names = ("../../climbs.png", "/tmp/absolute.png", "twice.png", "twice.png", "Twice.png")
        for seed, name in enumerate(names, start=1):
            info = tarfile.TarInfo(name)
            raw = saved(image(seed))
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, raw in {
            "._good.png": b"\0\5\x16\7 AppleDouble",
            "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "bomb.png": bomb(),
            "zero.png": b"",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    before = sorted(p.name for p in tmp_path.iterdir())
    manifest = packed(source, tmp_path / "inner" / "out")
    assert manifest["ledgers"]["files"] == {"seen": 12, "used": 5, "rejected": 7}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "inner"])
    assert [p.name for p in (tmp_path / "inner").iterdir()] == ["out"]
    told = " | ".join(reasons(tmp_path / "inner" / "out", "files"))
    for words in ("link", "not a regular file", "Git LFS", "decompression bomb", "empty file", "AppleDouble"):
        assert words in told, words
    assert good


def bomb():
    """A PNG of 40,000 x 40,000 black pixels in a few kilobytes."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(40_001)))
        + chunk(b"IEND", b"")
    )


def test_links_in_folders_are_not_followed(tmp_path):
    source = tmp_path / "scans"
    source.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(saved(image(2)))
    (source / "a.png").write_bytes(saved(image(1)))
    (source / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "dangling.png").symlink_to(tmp_path / "nowhere")
    manifest = packed(source, tmp_path / "out")
    assert manifest["ledgers"]["files"] == {"seen": 4, "used": 1, "rejected": 3}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_archive_that_ends_early_keeps_what_it_has(tmp_path, kind):
    source = tmp_path / f"a.{kind}"
    rng = np.random.default_rng(0)
    with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as tar:
        for i in range(6):
            raw = saved(rng.integers(0, 255, (100, 100), dtype=np.uint8))
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    manifest = packed(source, tmp_path / "out")
    assert 1 <= manifest["ledgers"]["radiographs"]["used"] <= 3
    assert any("ends early" in reason for reason in reasons(tmp_path / "out", "files"))


def test_encrypted_and_damaged_zip_members(tmp_path):
    source = zipped(tmp_path / "a.zip", {"a.png": saved(image(1)), "b.png": saved(image(2)), "c.png": saved(image(3))})
    raw = bytearray(source.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[central + 8] |= 1  # a.png says that it is encrypted
    at = zipfile.ZipFile(source).getinfo("b.png").header_offset
    raw[at + 200] ^= 0xFF
    source.write_bytes(raw)
    assert packed(source, tmp_path / "out")["ledgers"]["files"] == {"seen": 3, "used": 1, "rejected": 2}
    assert any("encrypted" in reason for reason in reasons(tmp_path / "out", "files"))
    assert any("damaged in its archive" in reason for reason in reasons(tmp_path / "out", "radiographs"))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damaged_archives_never_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    small = {name: content for name, content in WARTS.items() if "good" in name or "yaml" in name}
    raw = bytearray(zipped(folder / "f.zip", small).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "f.zip").write_bytes(raw)
    try:
        packed(folder / "f.zip", folder / "out")
    except PackError:
        assert [p.name for p in folder.iterdir()] == ["f.zip"]
    else:
        assert verify(folder / "out", quiet=True) == []


@given(st.text(alphabet="0123456789. -+enaif\t", max_size=60))
def test_yolo_rows_never_crash(row):
    try:
        category, values = numbers_in(row)
        corners = corners_of(values, decide([values]))
    except RowError:
        return
    assert isinstance(category, int)
    assert np.isfinite(corners).all()


FLOATS = st.floats(-300, 300, allow_nan=False)


@given(st.tuples(FLOATS, FLOATS, FLOATS, FLOATS), st.floats(0.2, 5), st.floats(0, 0.3))
def test_a_region_lies_in_the_image_and_holds_the_box(corners, aspect, margin):
    try:
        x0, y0, x1, y1 = region(corners, 100, 150, margin, 8, aspect)
    except CropError:
        return
    assert 0 <= x0 < x1 <= 150
    assert 0 <= y0 < y1 <= 100
    assert x0 <= max(corners[0], 0)
    assert x1 >= min(corners[2], 150)
    crop = cut(np.zeros((100, 150), np.uint8), (x0, y0, x1, y1), aspect)
    assert min(crop.shape) >= 8
    assert crop.shape == (round((y1 - y0) * max(1, 1 / aspect)), round((x1 - x0) * max(1, aspect)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    pixels = image(1)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }[orientation]
    for suffix in ("png", "tiff"):
        assert np.array_equal(decode(saved(pixels, suffix, exif=exif(orientation))).pixels, turned)


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_deep_pixels_do_not_turn_black(top):
    deep = np.linspace(0, top, 60 * 80).astype(np.uint16).reshape(60, 80)
    for suffix in ("png", "tiff"):
        radiograph = decode(saved(deep, suffix))
        assert radiograph.pixels.dtype == np.uint8
        assert 1 << radiograph.bits == top + 1
        assert np.array_equal(radiograph.pixels, (deep.astype(np.uint32) * 256 // (top + 1)).astype(np.uint8))


def test_every_mode_becomes_gray():
    gray = image(1)
    gray_image = Image.fromarray(gray)
    for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "YCbCr"):
        buffer = io.BytesIO()
        converted = gray_image.quantize(64) if mode == "P" else gray_image.convert("RGB").convert(mode)
        converted.save(buffer, "tiff" if mode in ("CMYK", "YCbCr") else "png")
        pixels = decode(buffer.getvalue()).pixels
        assert pixels.shape == gray.shape
        assert pixels.dtype == np.uint8
        if mode == "1":
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert np.abs(pixels.astype(int) - gray).max() <= (8 if mode == "P" else 2), mode
    with pytest.raises(RadiographError, match="floating-point"):
        decode(saved(gray.astype(np.float32) + 0.5, "tiff"))


def test_fdi_numbers():
    assert [tooth_in(t) for t in ("11", "tooth_36", "FDI 48", "19", "51", "111", "11 or 12", "", "11-11")] == [
        *(11, 36, 48, None, 51, None, None, None, 11)
    ]
    positions = {tooth_labels(10 * q + p)["position"] for q in (1, 2, 3, 4) for p in range(1, 9)}
    assert len(positions) == 16
    assert tooth_labels(21) == {"fdi": 21, "tooth_type": "incisor", "position": 11}
    assert tooth_labels(34) == {"fdi": 34, "tooth_type": "premolar", "position": 44}
    names = LabelList()
    labels = names.of({"fdi": "99", "finding": "caries"})
    names.name_teeth([])
    assert labels == {"finding": "caries"}


@pytest.mark.parametrize(
    ("texts", "fdi"),
    [
        (["11", "36", "48"], [11, 36, 48]),
        (["11.0", "36.0"], [11, 36]),  # of a column that lacks a number
        ([f"{n}.0" for n in range(1, 33)], [None] * 32),
        (["molar 17", "molar 19"], [None, None]),
        (["Tooth No 11", "Tooth No 29"], [None, None]),
        (["11-caries", "30-caries"], [None, None]),
        (["t11", "caries grade 3", "caries D2", "PAI 5", "35%", "background 0"], [11, *[None] * 5]),
        (["2019-11-30", "1962/07/23 visit", "Doe^Jane 36"], [None] * 3),  # no teeth, and they stay behind
    ],
)
def test_numbers_that_are_fdi_numbers(texts, fdi):
    names = LabelList()
    labels = [names.of({"tooth": text}) for text in texts]
    names.name_teeth([])
    assert [each.get("fdi") for each in labels] == fdi


def test_an_output_that_exists_is_left_alone(tmp_path):
    source = zipped(tmp_path / "a.zip", {"x.png": saved(image(1))})
    out = tmp_path / "out"
    out.mkdir()
    packed(source, out)  # an empty folder may be filled
    before = tree(out)
    with pytest.raises(PackError, match="already holds a finished pack"):
        packed(source, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(PackError, match="not an empty folder"):
        packed(source, tmp_path / "full")
    assert tree(out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patient": "("}, "regular expression"),
        ({"patient": "nobody"}, "does not match"),
        ({"holdout": 1.0}, "holdout"),
        ({"workers": 0}, "workers"),
        ({"pixel_aspect": 0.0}, "pixel aspect"),
        ({"boxes": "nowhere.csv"}, "no boxes at nowhere"),
        ({"against": ["nowhere"]}, "no pack at nowhere"),
        ({"margin": -1.0}, "margin"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options, words):
    source = zipped(tmp_path / "a.zip", {"x.png": saved(image(1))})
    with pytest.raises(ValueError, match=words) as caught:
        packed(source, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_pack_killed_anywhere_leaves_nothing_that_looks_finished(tmp_path):
    source = zipped(tmp_path / "a.zip", {f"{i}.png": saved(image(i, (300, 400))) for i in range(60)})
    out = tmp_path / "out"
    code = (
        "from data_shards.pack.pipeline import *\n"
        f"pack(PackConfig([{str(source)!r}], {str(out)!r}, key={KEY!r}, quiet=True))"
    )
    finished = 0
    for delay in (0.05, 0.15, 0.3):
        child = subprocess.Popen([sys.executable, "-c", code])
        while not (tmp_path / ".out.packing").exists() and child.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if out.exists():
            finished += 1
            break
    if not finished:
        assert not out.exists()
        packed(source, out)
    assert verify(out, quiet=True) == []
    packed(source, tmp_path / "straight")
    assert tree(out) == tree(tmp_path / "straight")
    assert not (tmp_path / ".out.packing").exists()


def test_two_sources_of_one_name_keep_apart(tmp_path):
    sources = []
    for i, place in enumerate(("left", "right")):
        (tmp_path / place).mkdir()
        sources.append(zipped(tmp_path / place / "a.zip", {"x.png": saved(image(i))}))
    manifest = pack(PackConfig(sources, tmp_path / "out", key=KEY, quiet=True))
    assert manifest["statistics"]["patients"] == 2


def test_tables_of_two_archives_mean_their_own_images(tmp_path):
    """Exports of two months call their images alike; a name that two images of one archive have stays undecided."""
    rows = "image,x0,y0,x1,y1,finding\nscans/x.png,1,1,50,90,{}\ntwice.png,1,1,50,90,none\n"
    sources = []
    for i, finding in enumerate(("caries", "crown")):
        members = {"scans/x.png": saved(image(i)), "a/twice.png": saved(image(9)), "b/twice.png": saved(image(8))}
        sources.append(zipped(tmp_path / f"{finding}.zip", {**members, "boxes.csv": rows.format(finding)}))
    pack(PackConfig(sources, tmp_path / "out", key=KEY, quiet=True, margin=0.0))
    samples = ShardSet(tmp_path / "out")
    found = {samples.meta(i)["finding"]: samples.image(i) for i in range(len(samples))}
    assert found.keys() == {"caries", "crown"}
    for i, finding in enumerate(("caries", "crown")):
        assert np.array_equal(found[finding], image(i)[1:90, 1:50])


def test_a_plain_image_and_a_tar_that_ends_in_a_zip(tmp_path):
    (tmp_path / "x.png").write_bytes(saved(image(1)))
    inner = zipped(tmp_path / "inner.zip", {"y.png": saved(image(2))})
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "z.png")
        tar.add(inner, "inner.zip")
    manifest = pack(PackConfig([tmp_path / "a.tar"], tmp_path / "out", key=KEY, quiet=True))
    assert manifest["ledgers"]["files"] == {"seen": 2, "used": 2, "rejected": 0}  # z.png, and y.png in inner.zip
    single = pack(PackConfig([tmp_path / "x.png"], tmp_path / "single", key=KEY, quiet=True))
    assert single["statistics"]["samples"] == 1
    inner.write_bytes(inner.read_bytes()[:100])
    for path, words in ((inner, "cut off"), (tmp_path / "nowhere", "nothing at")):
        with pytest.raises(PackError, match=words):
            packed(path, tmp_path / "x")


def test_statistics_are_those_of_the_crops(warts):
    manifest, out = warts
    samples = ShardSet(out)
    pixels = np.concatenate([samples.image(i).ravel() for i in range(len(samples))]) / 255
    assert manifest["statistics"]["pixel_mean"] == pytest.approx(pixels.mean(), abs=1e-6)
    assert manifest["statistics"]["pixel_std"] == pytest.approx(pixels.std(), abs=1e-6)
    counted = [samples.meta(i)["class"] for i in range(len(samples))]
    expected = {k: len(list(g)) for k, g in itertools.groupby(sorted(counted))}
    assert manifest["statistics"]["labels"]["class"] == expected


def test_a_csv_module_table_round_trips(tmp_path):
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["image", "x0", "y0", "x1", "y1", "finding"])
    rows.writerow(["radiographs/a,b.png", "10", "10", "60", "90", "deep caries"])
    source = zipped(tmp_path / "a.zip", {"radiographs/a,b.png": saved(image(1)), "boxes.csv": "﻿" + table.getvalue()})
    assert packed(source, tmp_path / "out")["statistics"]["labels"] == {"finding": {"deep caries": 1}}


def test_a_pack_into_its_own_source_reads_what_was_there_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        Path(f"{i}.png").write_bytes(saved(image(i)))
    manifest = packed(".", ".out")  # `.out.packing` sorts before the images
    assert manifest["ledgers"]["files"] == {"seen": 4, "used": 4, "rejected": 0}
    samples = ShardSet(".out")
    found = {samples.image(i).tobytes() for i in range(4)}
    assert found == {image(i).tobytes() for i in range(4)}


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    source = zipped(tmp_path / "a.zip", {f"{i}.png": saved(image(i, (300, 400))) for i in range(20)})
    limited = (
        "import resource, signal, sys\n"
        "from data_shards.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    )
    command = f"main(['pack', {str(source)!r}, '--out', {str(tmp_path / 'out')!r}, '--key', {str(tmp_path / 'key')!r}])"
    done = subprocess.run([sys.executable, "-c", limited + command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(r"^error: cannot write .*File too large.*the same command goes on", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.packing", "a.zip", "key"]
    free = "from data_shards.__main__ import main\n"
    done = subprocess.run([sys.executable, "-c", free + command], capture_output=True, text=True, check=True)
    assert re.search(r"^continuing: [1-9]\d* files are converted already", done.stdout, re.MULTILINE)
    assert not (tmp_path / ".out.packing").exists()
    packed(source, tmp_path / "whole", key=(tmp_path / "key"))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_stored_png_loses_nothing_and_is_small_where_nothing_varies(dtype: type) -> None:
    white = np.iinfo(dtype).max
    noise = np.random.default_rng(0).integers(0, white + 1, (300, 200)).astype(dtype)
    for pixels, most in ((np.full((300, 200), white, dtype), 0.02), (noise, 1.02), (noise[:1, :1], 100)):
        raw = encode_png(pixels)
        with Image.open(io.BytesIO(raw)) as image:  # another reader than the stream's
            assert np.array_equal(np.asarray(image), pixels)
        assert len(raw) < most * pixels.nbytes


def test_what_a_column_of_teeth_says_that_is_no_tooth_is_counted():
    names = LabelList()
    for place, text in enumerate(("36", "9", "36,37", "Jane Doe", "UL6", "9")):
        names.of({"fdi": text}, f"row {place}")
    names.name_teeth([])
    found = names.withhold([])["fdi"]
    assert (found.texts, found.boxes, found.first) == (4, 5, "row 1")
