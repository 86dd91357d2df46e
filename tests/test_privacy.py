"""Nobody is identified: names, ids, dates and paths planted wherever they can hide are in no byte that is written."""

import base64
import hashlib
import html
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from itertools import product
from urllib.parse import quote

import pytest
from PIL import Image
from planted import (
    CONTAINERS,
    HEADER,
    IMAGES,
    KEPT,
    PLACE,
    SAID,
    annotated,
    coco,
    cvat,
    dicom,
    exif,
    jpeg,
    label_studio,
    labelme,
    lines,
    masks,
    pixels,
    png,
    saved,
    scans,
    supervisely,
    tiff,
    via,
    voc,
    yolo,
    zip_of,
)

from data_shards.__main__ import main
from data_shards.dental_terms import is_dental
from data_shards.shards.shard_set import ShardSet


def spellings(secret):
    """The bytes by which a secret could be found again, in lower case: texts, encodings, digests without a key."""
    for text in {secret, secret[::-1], secret.replace("-", ""), secret.replace("/", "\\/"), quote(secret, safe="")}:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
            yield text.lower().encode(encoding)
        yield text.encode().hex().encode()
        yield "".join(f"\\u{ord(c):04x}" for c in text).encode()
    for shift in range(3):  # base64 of any text that holds it
        yield base64.b64encode(bytes(shift) + secret.encode())[4 if shift else 0 : -4].lower()
    names = (
        secret,
        f"{KEPT}",
        f"{KEPT}.zip",
        f"{KEPT}-0.png",
        f"{KEPT}/{KEPT}-0.png",
        f"{KEPT}.zip/{KEPT}/{KEPT}-0.png",
    )
    for text, digest in product(names, ("md5", "sha1", "sha256", "blake2b")):
        raw = hashlib.new(digest, text.encode())
        yield raw.hexdigest()[:16].encode()
        yield raw.digest()[:8].lower()


HAYSTACK = {
    kind: {s for secret in secrets for s in spellings(secret)}
    for kind, secrets in (("header", HEADER), ("place", PLACE))
}


def traces(blob, kinds=("header", "place")):
    """What of the secrets is in these bytes."""
    low = bytes(blob).lower()
    return sorted(spelling for kind in kinds for spelling in HAYSTACK[kind] if spelling in low)


def views(name, raw):
    """A file's name and bytes, and all that unpacks from them: tar members, PNG chunks, pictures in HTML, JSON."""
    yield name.encode()
    yield raw
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for info in tar:
                assert not info.pax_headers
                yield from views(info.name, tar.extractfile(info).read())
    elif raw.startswith(b"\x89PNG"):
        assert set(chunks(raw)) <= {b"IHDR", b"IDAT", b"IEND"}  # none that could hold a word
        yield zlib.decompress(b"".join(chunks(raw)[b"IDAT"]))
    elif name.endswith((".json", ".jsonl")):
        for line in [raw] if name.endswith(".json") else raw.splitlines():
            yield json.dumps(json.loads(line[line.index(b"{") :]), ensure_ascii=False).encode()
    elif name.endswith(".html"):
        yield html.unescape(raw.decode()).encode()
        for data in re.findall(rb'base64,([^"]*)"', raw):
            picture = base64.b64decode(data)
            assert not Image.open(io.BytesIO(picture)).info.keys() - {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
            }
            yield picture


def chunks(raw):
    """The contents of a PNG's chunks by type; nothing may follow the last."""
    found, at = {}, 8
    while at < len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        found.setdefault(kind, []).append(raw[at + 8 : at + 8 + size])
        at += 12 + size
    return found


def searched(folder):
    """Assert that nothing below `folder` holds a secret; returns how many files were searched."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        for view in views(path.relative_to(folder).as_posix(), path.read_bytes()):
            assert traces(view) == [], path.relative_to(folder)
    return len(files)


@pytest.fixture
def command(tmp_path, monkeypatch, capfdbinary):
    """A command as its user runs it. The terminal may show where a file lies, never what is in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        ended = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            ended = stop.code
        told, complained = capfdbinary.readouterr()
        assert ended == code, complained
        assert traces(told + complained, ["header"]) == []
        return told.decode()

    return run


def test_the_search_finds_what_it_should():
    """A search that finds nothing anywhere would prove nothing."""
    for blob in (
        f"x{HEADER[0].upper()}y".encode(),
        PLACE[0].encode("utf-16-le"),
        base64.b64encode(f"by {PLACE[0]}, dentist".encode()),
        hashlib.md5(PLACE[1].encode()).hexdigest().encode(),
        json.dumps({"a": "\u00e9" + HEADER[2]}).encode(),
        KEPT.replace("-", "").encode(),
        "".join(f"\\u{ord(c):04x}" for c in HEADER[1]).encode(),
    ):
        assert traces(blob), blob
    assert traces(os.urandom(1 << 20)) == []
    for name, raw in (("a.png", png(0)), ("b.jpg", jpeg(0)), ("c.tif", tiff(0))):
        assert traces(raw), name
    with pytest.raises(AssertionError):
        list(views("a.png", png(0)))


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_secret_is_in_any_byte_of_a_pack(tmp_path, container, command):
    """Every place of every image format, with a pattern that catches a name."""
    source = CONTAINERS[container](tmp_path, annotated(scans()))
    pattern = rf"(?P<name>{PLACE[0]}_\d+)_[\d-]+/(?:\w+-)?{KEPT}"
    command("pack", source, "--out", "shards/out", "--patient", pattern)
    assert len(ShardSet(tmp_path / "shards" / "out")) == len(IMAGES) + 2  # and two odd ones of DICOM
    assert searched(tmp_path / "shards") == 5


def test_no_secret_is_in_what_other_commands_write(tmp_path, command):
    """A holdout, the page, pictures; and beside the key only names, which are its owner's."""
    source = zip_of(tmp_path, annotated(scans()))
    (tmp_path / "config").mkdir()
    key = tmp_path / "config" / "fixed"
    key.write_text("who is held out follows from the key: this one parts them")
    key.chmod(0o600)
    told = command("pack", source, "--out", "shards/out", "--holdout", "0.4", "--key", key)
    assert "columns left out, as they may hold names" in told
    command("describe", "shards/out", "--html", "shards/page.html")
    command("preview", "shards/out", "--out", "shards/sheet.png")
    command("preview", source, "--out", "shards/radiographs.png")
    command("verify", "shards/out")
    assert searched(tmp_path / "shards") == 12
    owned = [path for path in (tmp_path / "config").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in owned} == {0o600}
    beside = b"".join(path.read_bytes() for path in owned)
    assert traces(beside, ["place"])
    assert traces(beside, ["header"]) == []


FORMATS = [coco, labelme, cvat, label_studio, via, supervisely, voc, yolo, lines, masks]


@pytest.mark.parametrize("annotations", FORMATS)
def test_no_secret_is_in_boxes_of_any_format(tmp_path, annotations, command):
    """Annotations with the secrets in all that surrounds the boxes, which have the mistakes that are rejected."""
    source = zip_of(tmp_path, {f"{KEPT}/{KEPT}-0.png": png(0), **annotations()})
    told = command("pack", source, "--out", "out")
    assert annotations.__name__ in told
    assert 1 <= len(ShardSet(tmp_path / "out")) <= 2
    assert searched(tmp_path / "out") == 5


def test_a_label_that_is_asked_for_travels_alone(tmp_path, command):
    """--labels keeps one column of the table, and the words in it are then wanted; its neighbours stay behind."""
    rows = f"image,x0,y0,x1,y1,ward,patient\nx.png,4,4,40,50,north,{SAID}\n"
    source = zip_of(tmp_path, {"x.png": png(0), "boxes.csv": rows.encode()})
    command("pack", source, "--out", "out", "--labels", "ward")
    assert ShardSet(tmp_path / "out").meta(0)["ward"] == "north"
    assert searched(tmp_path / "out") == 5


def labelled(kind, text):
    """Annotations of a kind, of two boxes: one with a dental term for its label, one with `text`."""
    if kind == "csv":
        rows = f"image,x0,y0,x1,y1,finding\nx.png,4,4,40,50,Deep Caries\nx.png,2,2,40,50,{text}\n"
        return {"boxes.csv": rows.encode()}
    if kind == "lines":
        return {"x.txt": f"4 4 40 50 Deep Caries\n2 2 40 50 {text}\n".encode()}
    if kind == "yolo":
        names = f"names: ['Deep Caries', '{text}']\n".encode()
        return {"x.txt": b"0 0.5 0.5 0.6 0.6\n1 0.5 0.5 0.7 0.7\n", "data.yaml": names}
    if kind == "voc":
        edges = "<xmin>{}</xmin><ymin>4</ymin><xmax>40</xmax><ymax>50</ymax>"
        one = f"<object><name>{{}}</name><bndbox>{edges}</bndbox></object>"
        return {"x.xml": f"<annotation>{one.format('Deep Caries', 4)}{one.format(text, 2)}</annotation>".encode()}
    boxes = [{"id": i, "image_id": 1, "category_id": i, "bbox": [4 + i, 4, 36, 46]} for i in (1, 2)]
    categories = [{"id": 1, "name": "Deep Caries"}, {"id": 2, "name": text}]
    return {
        "x.json": json.dumps(
            {"images": [{"id": 1, "file_name": "x.png"}], "annotations": boxes, "categories": categories}
        ).encode()
    }


@pytest.mark.parametrize("kind", ["csv", "lines", "yolo", "voc", "coco"])
def test_a_name_typed_as_a_label_stays_behind(tmp_path, kind, command):
    """Texts of labels are dental terms; any other stays behind, and its place told, unless `--labels` asks for it."""
    column = "finding" if kind == "csv" else "class"
    source = zip_of(tmp_path, {"x.png": png(0), **labelled(kind, f"{HEADER[0]} {HEADER[2]}")})
    told = command("pack", source, "--out", "out")
    assert f"1 text of `{column}` (1 box) may name somebody" in told
    assert "row" in told
    shards = ShardSet(tmp_path / "out")
    assert sorted(shards.meta(i).get(column, "") for i in range(len(shards))) == ["", "Deep Caries"]
    assert shards.manifest["settings"]["withheld"] == {column: {"texts": 1, "boxes": 1}}
    command("preview", source, "--out", "sheet.png")
    assert searched(tmp_path / "out") == 5
    (tmp_path / "plain").mkdir()
    source = zip_of(tmp_path / "plain", {"x.png": png(0), **labelled(kind, "Karies")})
    command("pack", source, "--out", "asked", "--labels", column)
    shards = ShardSet(tmp_path / "asked")
    assert {shards.meta(i)[column] for i in range(len(shards))} == {"Deep Caries", "Karies"}


@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_a_number_typed_as_a_class_stays_behind(tmp_path, kind, command):
    """Classes without a list of names are numbers: small ones travel, those that could be a date or an id do not."""
    members = labelled(kind, "other")
    members.pop("data.yaml", None)
    old, new = (
        (b"1 0.5 0.5 0.7", b"19610723 0.5 0.5 0.7")
        if kind == "yolo"
        else (b'"category_id": 2', b'"category_id": 19610723')
    )
    changed = {name: raw.replace(old, new).replace(b'"categories": [', b'"unused": [') for name, raw in members.items()}
    command("pack", zip_of(tmp_path, {"x.png": png(0), **changed}), "--out", "out")
    shards = ShardSet(tmp_path / "out")
    small = "0" if kind == "yolo" else "1"
    assert sorted(shards.meta(i).get("class", "") for i in range(len(shards))) == ["", small]
    assert searched(tmp_path / "out") == 5


def test_dental_terms():
    """Words of the closed list with at most one small number; what could be a name, a date or an id is none."""
    good = "dental implant,1st Molar,3rd molar,UR6,Q1,Root Piece,Supra Eruption,mental foramen,peri-implantitis,"
    good += "gold crown,"
    good += "bone loss 15-33%,0.35,12.5,35%,D1,E2,K02.1,dens in dente,11-caries,caries D2,molar 11,t11,11.0,"
    good += "caries,Deep Caries,root_canal,RootCanalTreatment,tooth 36,36,PAI 3,2.5,grade-2,Periapical Lesion,Fillings"
    bad = "Gold,white,11.30,D17,K0712,UR66,7-11-61,12%11,15-33,UR6 11,0.1234,100,Q17,"
    bad += "Ray Bridges,-4711,caries Zebulon,1961,19610723,3-11,23.07.61,caries 12 11,J S,a@b,Dr. Crown,/srv/caries"
    assert [text for text in good.split(",") if not is_dental(text)] == []
    assert [text for text in bad.split(",") if is_dental(text)] == []
    assert [is_dental(text) for text in ("0,35", "12,5", "12,5 %", "11,30", "3,11,61")] == [True] * 3 + [False] * 2


def test_an_error_tells_no_secret(tmp_path, command):
    """What ends a pack is told by path and reason, not by what was read."""
    source = zip_of(tmp_path, {f"{KEPT}.png": SAID.encode(), f"{KEPT}.csv": SAID.encode()})
    command("pack", source, "--out", "out", code=2)
    command("preview", source, code=2)
    assert not (tmp_path / "out").exists()


def test_a_killed_pack_leaves_no_secret(tmp_path):
    """The folder that a killed pack leaves for the next is searched like a finished one."""
    members = {f"{KEPT}/{KEPT}-{i}": dicom(i) for i in range(20)}
    members |= {f"{KEPT}/{KEPT}-{i}.png": saved(pixels(i, (300, 400)), "png", exif=exif()) for i in range(20, 60)}
    source = zip_of(tmp_path, members)
    arguments = [sys.executable, "-m", "data_shards", "pack", source, "--out", "shards/out", "--key", "key"]
    child = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left = tmp_path / "shards" / ".out.packing"
    while child.poll() is None and not any(p.stat().st_size > 1 << 20 for p in left.rglob("*")):
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    journal = left / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().rpartition(b"\n")[0] + b"\n")  # without a line that was cut short
    assert journal.stat().st_size > 1000
    assert searched(left) >= 2
    assert not (tmp_path / "shards" / "out").exists()
