"""What `describe` and `preview` say of shards, against the shards as other libraries read them."""

import base64
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections import Counter
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import webdataset
from PIL import Image

from data_shards.__main__ import main
from data_shards.inspect.preview import crop_sheet
from data_shards.inspect.summary import survey
from data_shards.inspect.summary_html import as_page
from data_shards.inspect.summary_text import describe
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.phantom.render import render_radiograph
from data_shards.pseudonyms import Key
from data_shards.shards.manifest import read_manifest
from data_shards.shards.shard_set import ShardSet

NASTY = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Seven radiographs, two of them the same, with a table of boxes and a class name that would steer a terminal."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("packed") / "shards"
    rng = np.random.default_rng(0)
    rows = ["image,x0,y0,x1,y1,fdi,finding"]
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (90, 80 + i % 6), dtype=np.uint8)).save(scans / f"{i}.png")
        rows += [f"{i}.png,5,5,{30 + i},80,{11 + i},{NASTY if i == 3 else 'none'}", f"{i}.png,40,5,70,80,36,caries"]
    (scans / "7.png").write_bytes((scans / "6.png").read_bytes())
    rows += ["7.png,5,5,36,80,17,none", "7.png,40,5,70,80,36,caries"]
    (scans / "boxes.csv").write_text("\n".join(rows))
    pack(PackConfig([scans], out, key=b"a public key for tests", quiet=True, margin=0.0, labels=["finding"]))
    return out


def foreign(path, samples):
    """A tar as others write it: `samples` are (key, {suffix: bytes})."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def encoded(pixels, suffix="png"):
    return cv2.imencode(f".{suffix}", pixels)[1].tobytes()


def test_figures_are_those_of_the_shards(packed):
    shards = [str(path) for path in sorted(packed.glob("*.tar"))]
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    found = survey(ShardSet(packed), quiet=True)
    assert found.samples == len(read) == 14
    assert found.patients == len({one["json"]["patient"] for one in read})
    for label in ("fdi", "finding", "position", "tooth_type"):
        assert found.labels[label] == Counter(str(one["json"][label]) for one in read if label in one["json"])
    pixels = np.concatenate([np.asarray(one["png"].convert("L")).ravel() for one in read])
    assert np.array_equal(found.intensities, np.bincount(pixels, minlength=256))
    assert found.mean == pytest.approx(pixels.mean() / 255, abs=1e-6)
    assert sorted(found.sizes["width"]) == sorted(one["png"].width for one in read)
    assert found.duplicates.exact == 1
    assert found.duplicates.earlier == 0


def test_the_text_fits_a_terminal_and_cannot_steer_it(packed):
    told = describe(packed)
    assert max(map(len, told.splitlines()[1:])) <= 96  # the first is the path
    assert "\x1b" not in told
    for words in ("14 crops", "7 radiographs of 7 patients", "exact: 1 radiograph left out", "caries", "50.0%", "█"):
        assert words in told
    for name, ledger in read_manifest(packed)["ledgers"].items():
        assert [name, *map(str, ledger.values())] in [line.split() for line in told.splitlines()]


def test_each_source_has_its_share(tmp_path):
    rng = np.random.default_rng(0)
    counts = {"north": 3, "south": 1, "west": 0}
    for place, count in counts.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / "notes.md").write_text(place)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (40, 30), dtype=np.uint8)).save(tmp_path / place / f"{place}{i}.png")
    key = Key(b"a public key for tests", None)
    manifest = pack(PackConfig([tmp_path / p for p in counts], tmp_path / "out", key=key.secret, quiet=True))
    expected = [
        {"id": key.id("source", place), "files": count + 1, "radiographs": count, "crops": count}
        for place, count in counts.items()
    ]
    assert manifest["sources"] == sorted(expected, key=lambda share: share["id"])
    assert "whole images are the crops" in describe(tmp_path / "out")
    assert f"{key.id('source', 'north')}        4            3        3    75.0%" in describe(tmp_path / "out")


def test_near_duplicates_depth_and_facts_are_told(tmp_path):
    film = render_radiograph(3, 0).image
    deep = np.minimum(film + np.uint16(1), 255) * 16  # a shade lighter: near its 8-bit copies, not the same
    files = {"a.png": encoded(film), "b.jpg": encoded(film, "jpg"), "c.tif": encoded(deep, "tif")}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\n" + "".join(f"{n},20,20,90,120\n" for n in files))
    key = b"a public key for tests"
    pack(PackConfig([tmp_path], tmp_path / "out", key=key, quiet=True, depth=16))
    found = survey(ShardSet(tmp_path / "out"), quiet=True)
    assert found.depths == {"8 bits": 2, "12 bits": 1}
    assert found.words["format"] == {"png": 1, "jpeg": 1, "tiff": 1}
    assert found.patients == 1
    told = describe(tmp_path / "out")
    assert "near: 3 pairs, all kept, each pair as one patient" in told
    pack(PackConfig([tmp_path], tmp_path / "dropped", key=key, quiet=True, depth=16, drop_near=True))
    assert "2 radiographs left out (near.jsonl lists them)" in describe(tmp_path / "dropped")


class Page(HTMLParser):
    """Tags that are open, and everything that a browser would fetch or run."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.words = [], [], Counter(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_stands_alone(packed):
    samples = ShardSet(packed)
    text = as_page(samples, survey(samples, quiet=True))
    page = Page(text)
    assert page.open == []
    assert not page.tags.keys() & {"script", "link", "iframe", "object"}
    assert "url(" not in text
    assert page.tags["img"] == 14
    assert page.tags["svg"] == 4
    for source in page.sources:
        kind, _, data = source.partition(";base64,")
        assert kind == "data:image/jpeg"
        assert Image.open(io.BytesIO(base64.b64decode(data))).convert("L").getextrema()[1] > 50
    assert "width=device-width" in text
    assert "<script>alert(1)</script>" in page.words  # as words, and so not as a tag
    assert str(packed) not in text


def test_foreign_shards_are_described_and_their_unknown_fields_kept_back(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(6):
        fields = {"finding": "caries" if i < 2 else "none", "patient": f"p{i // 2}", "referrer": "Zebulon"}
        image = rng.integers(0, 255, (30 + i, 20), dtype=np.uint8)
        samples.append((f"Zebulon/{i}", {"jpg": encoded(image, "jpg"), "json": json.dumps(fields).encode()}))
    samples.append(("bare", {"png": encoded(rng.integers(0, 65536, (40, 20), dtype=np.uint16))}))
    foreign(tmp_path / "a.tar", samples)
    set_ = ShardSet(tmp_path)
    found = survey(set_, quiet=True)
    told, page = describe(tmp_path), as_page(set_, found)
    assert found.patients == 3
    assert found.depths == {"8 bits": 6, "16 bits": 1}
    assert sorted(found.sizes["height"]) == [30, 31, 32, 33, 34, 35, 40]
    assert "caries" in told
    assert "referrer (1 values)" in told
    assert "Zebulon" not in told + page
    assert "no ledgers" in told


def deep_shards(path):
    """Crops of 8, 12 and 16 bits, each with a ramp from black to white."""
    samples = []
    for key, bits in (("a", 8), ("b", 12), ("c", 16)):
        ramp = np.tile(np.linspace(0, (1 << bits) - 1, 64), (60, 1)).astype(np.uint8 if bits == 8 else np.uint16)
        fields = {"id": key, "bits": bits, "finding": "none", "fdi": 11}
        samples.append((key, {"png": encoded(ramp), "json": json.dumps(fields).encode()}))
    return foreign(path, samples)


def test_deep_crops_are_shown_as_bright_as_shallow_ones(tmp_path, monkeypatch):
    samples = ShardSet(deep_shards(tmp_path / "deep.tar"))
    found = survey(samples, quiet=True)
    assert found.mean == pytest.approx(0.5, abs=0.01)
    assert np.flatnonzero(found.intensities)[[0, -1]].tolist() == [0, 255]
    sheet, told = crop_sheet(samples)
    assert told == "3 of 3 crops"
    cells = [sheet[80:120, left : left + 160].astype(int) for left in (0, 160, 320)]
    assert np.abs(cells[0] - cells[1]).max() <= 2
    assert np.abs(cells[0] - cells[2]).max() <= 2
    assert cells[0].max() == 255
    monkeypatch.chdir(tmp_path)
    main(["preview", ".", "--out", "sheet.png"])
    assert cv2.imread("sheet.png", cv2.IMREAD_GRAYSCALE).shape == sheet.shape


def test_one_huge_crop_leaves_the_others_visible(tmp_path):
    samples = [(f"{i}", {"png": encoded(np.full((80, 60), 200, np.uint8))}) for i in range(20)]
    samples.append(("z", {"png": encoded(np.full((3000, 2000), 200, np.uint8))}))
    sheet, _ = crop_sheet(ShardSet(foreign(tmp_path / "a.tar", samples)))
    assert (sheet[:240, :160] == 200).sum() > 60 * 80 / 2


@pytest.mark.parametrize("output", ["cp1252", "closed"])
def test_any_terminal_takes_the_description(output, shards):
    command = [sys.executable, "-m", "data_shards", "describe", str(shards)]
    if output == "closed":
        command = ["sh", "-c", f"exec {shlex.join(command)} >&-"]
    environment = os.environ | {"PYTHONIOENCODING": output} if output == "cp1252" else None
    done = subprocess.run(command, capture_output=True, env=environment, timeout=240)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (b"crops" in done.stdout) == (output == "cp1252")
