"""Any archive as a stream of members: every kind, one in another, damaged, hostile, and always the same names."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import socket
import struct
import sys
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import py7zr
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.__main__ import main
from data_shards.errors import MemberError, PackError
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key, locate
from data_shards.sources import limits
from data_shards.sources.source import open_sources

FILES = {"a.png": b"\x89PNG first", "deep/b.txt": b"0 0.5 0.5 1 1\n" * 40, "deep/c.bin": bytes(range(256)) * 9}


def zipped(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def streamed(files):
    """As programs write that do not know a member's size beforehand, with zip64 fields."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(content)
    return buffer.getvalue()


def tarred(files, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sevened(files, **options):
    buffer = io.BytesIO()
    options.setdefault("filters", [{"id": py7zr.FILTER_LZMA2, "preset": 0}])
    with py7zr.SevenZipFile(buffer, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return buffer.getvalue()


PACKED = {
    "zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
    "bzip2.zip": lambda files: zipped(files, zipfile.ZIP_BZIP2),
    "lzma.zip": lambda files: zipped(files, zipfile.ZIP_LZMA),
    "zip64.zip": streamed,
    "tar": tarred,
    "gnu.tar": lambda files: tarred(files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda files: tarred(files, tarfile.USTAR_FORMAT),
    "tar.gz": lambda files: gzip.compress(tarred(files)),
    "tar.bz2": lambda files: bz2.compress(tarred(files), 1),
    "tar.xz": lambda files: lzma.compress(tarred(files), preset=0),
    "tar.zst": lambda files: zstandard.compress(tarred(files)),
    "7z": sevened,
}


def source(path, content=None, **options):
    if content is not None:
        path.write_bytes(content)
    return open_sources([path], **options)[0]


def read(path, content=None, **options):
    """What each member holds, or its reason; what ends the archive goes under an empty name."""
    found = {}
    try:
        for member in source(path, content, **options).members():
            assert member.name not in found
            try:
                found[member.name] = member.read()
            except MemberError as error:
                found[member.name] = str(error)
    except MemberError as error:
        found[""] = str(error)
    return found


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def names(path):
    """The names of all members, none of which is read: what ends the archive goes under an empty name."""
    found = []
    try:
        found.extend(member.name for member in source(path).members())
    except MemberError:
        found.append("")
    return found


def only_reason(found):
    (reason,) = (value for value in found.values() if isinstance(value, str))
    return reason


@pytest.mark.parametrize("kind", PACKED)
def test_every_kind_by_its_content(tmp_path, kind):
    """The name says nothing: the archive is called `photo.png`, alone, in a folder, and in a zip, a tar and a 7z."""
    content = PACKED[kind](FILES)
    assert read(tmp_path / "photo.png", content) == FILES
    inner = {f"photo.png/{name}": raw for name, raw in FILES.items()}
    (tmp_path / "folder").mkdir()
    assert read(tmp_path / "folder") == {}
    (tmp_path / "folder" / "photo.png").write_bytes(content)
    assert read(tmp_path / "folder") == inner
    for outer in ("zip", "tar.gz", "7z"):
        wanted = {"before.txt": b"1", **inner, "behind.txt": b"2"}
        packed = PACKED[outer]({"before.txt": b"1", "photo.png": content, "behind.txt": b"2"})
        assert read(tmp_path / "outer", packed) == wanted
        heads = {m.name: m.head(5) for m in source(tmp_path / "outer").members()}  # not read to their ends
        assert heads == {name: raw[:5] for name, raw in wanted.items()}
        assert list(read(tmp_path / "outer")) == list(wanted)  # and nobody looked at


@pytest.mark.parametrize("chain", [["zip"] * 3, ["7z", "zip", "tar.zst"], ["tar.gz", "7z", "stored.zip"]])
def test_three_deep_and_no_deeper_than_told(tmp_path, chain):
    files, prefix = FILES, ""
    for number, kind in enumerate(chain):
        files = {f"{number}.bin": PACKED[kind](files), f"{number}.txt": b"beside"}
        prefix = f"{number}.bin/{prefix}"
    found = read(tmp_path / "a", PACKED["tar"](files))
    assert {name: found[name] for name in found if name.startswith(prefix)} == {
        prefix + name: raw for name, raw in FILES.items()
    }
    assert len(found) == len(FILES) + len(chain)
    deeper = read(tmp_path / "a", PACKED["zip"]({"too": PACKED["tar"](files)}))
    assert len(deeper) == 1 + len(chain)
    assert only_reason(deeper) == "an archive inside 4 others: unpack the outermost, and pack the folder"


def test_a_file_that_is_only_compressed(tmp_path):
    assert read(tmp_path / "scan.dcm.gz", gzip.compress(b"pixels")) == {"scan.dcm": b"pixels"}
    inner = {"t.csv.zst": zstandard.compress(b"a,b"), "x.zip.xz": lzma.compress(zipped(FILES))}
    found = read(tmp_path / "a.zip", zipped(inner))
    assert found.pop("t.csv.zst/t.csv") == b"a,b"
    assert found == {f"x.zip.xz/x.zip/{name}": raw for name, raw in FILES.items()}


def test_streams_and_frames_one_after_another(tmp_path):
    half, rest = tarred(FILES)[:700], tarred(FILES)[700:]
    for name, compress in (
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", zstandard.compress),
    ):
        padding = bytes(8) if name == "xz" else b""
        assert read(tmp_path / name, compress(half) + padding + compress(rest) + padding) == FILES
    skipped = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    assert read(tmp_path / "zst", skipped + zstandard.compress(half) + skipped + zstandard.compress(rest)) == FILES


def test_stamps_change_with_the_content_and_not_with_the_place(tmp_path):
    def stamps(path, content):
        return {m.name: m.stamp for m in source(path, content).members()}

    (tmp_path / "elsewhere").mkdir()
    for kind in ("zip", "7z"):
        first = stamps(tmp_path / "a", PACKED[kind](FILES))
        assert stamps(tmp_path / "elsewhere" / "b", PACKED[kind](FILES)) == first
        other = stamps(tmp_path / "a", PACKED[kind](FILES | {"a.png": b"\x89PNG fjrst"}))
        assert {name for name in FILES if first[name] != other[name]} == {"a.png"}
        assert stamps(tmp_path / "n", zipped({"in": PACKED[kind](FILES)})) == {f"in/{n}": s for n, s in first.items()}
    for content in (tarred(FILES), gzip.compress(tarred(FILES)), zipped({"in": tarred(FILES)})):
        first = stamps(tmp_path / "a", content)
        os.utime(tmp_path / "a", ns=(0, 1))
        if not content.startswith(b"PK"):  # a tar keeps no checksums, so its file's time counts
            assert not set(stamps(tmp_path / "a", None).values()) & set(first.values())
    first = stamps(tmp_path / "a", zipped({"in": tarred(FILES)}))
    changed = stamps(tmp_path / "a", zipped({"in": tarred(FILES | {"a.png": b"\x89PNG fjrst"})}))
    assert not set(first.values()) & set(changed.values())


def test_names_do_not_depend_on_the_place_or_the_order_of_the_file_system(tmp_path, monkeypatch):
    for place in ("x", "y/z"):
        folder = tmp_path / place / "clinic"
        (folder / "sub").mkdir(parents=True)
        for name in random.sample(["b.txt", "a.zip", "sub/c.txt", "A.txt", "sub/B.txt"], 5):
            (folder / name).write_bytes(zipped(FILES) if name.endswith("zip") else b"x")
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: sorted(real(place), key=lambda e: random.random()))
    first, second = (open_sources([tmp_path / place / "clinic"])[0] for place in ("x", "y/z"))
    names = [first.name_of(m.name) for m in first.members()]
    assert names == [second.name_of(m.name) for m in second.members()]
    assert names == [
        *("clinic/A.txt", "clinic/a.zip/a.png", "clinic/a.zip/deep/b.txt", "clinic/a.zip/deep/c.bin"),
        *("clinic/b.txt", "clinic/sub/B.txt", "clinic/sub/c.txt"),
    ]


def test_patterns(tmp_path, monkeypatch):
    clinic = tmp_path / "clinic"
    for name in ("one/a.zip", "two/deep/a.zip", "b.zip", "notes.txt"):
        (clinic / name).parent.mkdir(parents=True, exist_ok=True)
        (clinic / name).write_bytes(zipped({"x.png": b"x"}))
    (clinic / "two" / "round").symlink_to(clinic)
    monkeypatch.chdir(tmp_path)
    for pattern in ("clinic/**/*.zip", str(clinic / "**" / "*.zip")):
        found = open_sources([pattern])
        assert [s.label for s in found] == ["b.zip", "one/a.zip", "two/deep/a.zip"]
    assert [s.label for s in open_sources(["clinic/*.zip", "clinic/b.zip", "clinic/one/a.zip"])] == [
        *("b.zip", "b.zip#2", "a.zip")
    ]
    assert [s.path for s in open_sources(["clinic/**"])] == [Path("clinic")]  # once, not file by file
    (tmp_path / "[2024] x.zip").write_bytes(zipped({"x.png": b"x"}))
    assert [s.label for s in open_sources(["[2024] x.zip"])] == ["[2024] x.zip"]  # what is there is no pattern
    (clinic / "cut.zip").write_bytes(zipped(FILES)[:50])
    cut = open_sources(["clinic/*.zip"])[1]  # one of many: it does not end the pack
    with pytest.raises(MemberError, match="list of members, at its end, is damaged"):
        list(cut.members())
    for pattern, words in (("clinic/*.rar", "nothing matches clinic/"), ("clinic/no.zip", "nothing at")):
        with pytest.raises(PackError, match=words):
            open_sources([pattern])


def test_the_spool_is_anonymous_limited_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    big = zipped({"noise.bin": random.Random(0).randbytes(2_000_000)})
    content = tarred({"small.zip": zipped(FILES), "big.zip": big, "two.zip": zipped({"in.zip": big}), "z.png": b"z"})
    (tmp_path / "a.tar").write_bytes(content)
    opened = open_files()
    found = {}
    for member in source(tmp_path / "a.tar", spool_gb=0.0025).members():
        found[member.name] = None if member.refused else len(member.read())
        assert not list((tmp_path / "tmp").iterdir())
    assert open_files() == opened
    assert found["big.zip/noise.bin"] == 2_000_000
    assert found["z.png"] == 1
    refused = [m.refused for m in source(tmp_path / "a.tar", spool_gb=0.0025).members() if m.name == "two.zip/in.zip"]
    assert len(refused) == 1
    assert refused[0].startswith("an inner archive that needs over 0.0025 GB of temporary disk: raise --spool-gb")
    assert not any(m.refused for m in source(tmp_path / "a.tar", spool_gb=0.005).members())
    reading = source(tmp_path / "a.tar").members()
    next(reading)
    reading.close()
    assert open_files() == opened


@pytest.mark.parametrize("chain", [["tar"], ["tar.gz"], ["stored.zip"], ["zip", "stored.zip"], ["tar", "zip"]])
def test_memory_does_not_grow_with_the_archive(tmp_path, chain):
    """20 MB of noise in files of 500 kB; 7z is tried in test_7z."""
    files = {f"{n}.bin": random.Random(n).randbytes(500_000) for n in range(40)}
    for kind in chain:
        files = {"inner": PACKED[kind](files)}
    (tmp_path / "a").write_bytes(files["inner"])
    del files
    total = 0
    archive = source(tmp_path / "a")
    tracemalloc.start()
    for member in archive.members():
        total += len(member.read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20_000_000
    assert peak < 6_000_000


def test_a_full_temporary_disk_ends_the_pack(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(PackError, match="set TMPDIR to a folder on a disk with more space"):
        read(tmp_path / "a.tar", tarred({"small.zip": zipped(FILES)}))


def test_without_py7zr_an_inner_7z_is_one_rejected_file(tmp_path, monkeypatch):
    content = zipped({"x.7z": sevened(FILES), "y.png": b"y"})
    monkeypatch.setitem(sys.modules, "py7zr", None)
    found = read(tmp_path / "a.zip", content)
    assert found["y.png"] == b"y"
    assert 'pip install "tooth-foundations[7z]"' in only_reason(found)


# What is no archive, no image and no annotation is told by name


CLOSED = {
    "cd.iso": (bytes(2048), "an image of a disk"),
    "unpack.exe": (b"MZ\x90\0\3 and a zip", "a program, perhaps an archive"),
    "scan.pdf": (b"%PDF-1.7 and pages", "a PDF"),
    "scan.rar": (b"Rar!\x1a\x07\x01\0 and more", "a RAR archive"),
    "x.zip.001": (b"PK\x07\x08PK\x03\x04", "a part of a split zip"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    "annex.png": (b"/annex/objects/MD5E-s12--0", "git annex get"),
    "._a.png": (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
    "__MACOSX/deep/a.png": (b"whatever", "AppleDouble"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_files_that_stand_for_others_are_told_so(tmp_path, name):
    content, words = CLOSED[name]
    found = read(tmp_path / "a.zip", zipped({name: content, "good.png": b"good"}))
    assert words in found[name]
    assert found["good.png"] == b"good"


def test_documents_are_files_and_not_archives(tmp_path):
    report = zipped({"[Content_Types].xml": b"<xml/>", "word/media/image1.png": b"x"})
    assert read(tmp_path / "a.zip", zipped({"report.docx": report})) == {"report.docx": report}


# Hostile names


def test_names_that_climb_are_absolute_twice_or_clash_do_no_harm(tmp_path):
    names = ["../../up.png", "/etc/abs.png", "C:\\x.png", "A.png", "a.png", "a.png", "n" * 300 + ".png", "a.png#2"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo(name)
            archive.NameToInfo.pop(name, None)  # else zipfile warns of the second `a.png`
            archive.writestr(info, str(number))
    before = set(tmp_path.parent.rglob("*"))
    found = read(tmp_path / "a.zip", buffer.getvalue())
    assert [v.decode() for v in found.values()] == [str(n) for n in range(len(names))]
    assert list(found) == [*names[:5], "a.png#2", names[6], "a.png#2#2"]
    assert set(tmp_path.parent.rglob("*")) - before == {tmp_path / "a.zip"}


def test_names_that_are_no_text_survive(tmp_path):
    """Latin-1 names in a tar and a folder become surrogates, go through JSON and differ from one another."""
    names = [os.fsdecode(raw) for raw in (b"x\xe4.png", b"x\xf6.png", b"y\xff.png")]
    raw = tarred({names[0]: b"1", names[1]: b"2"}, tarfile.GNU_FORMAT)
    assert b"x\xe4.png" in raw
    found = read(tmp_path / "a.tar", raw)
    assert found == {names[0]: b"1", names[1]: b"2"}
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / names[2]).write_bytes(b"3")
    assert read(folder) == {names[2]: b"3"}
    assert json.loads(json.dumps(names)) == names
    assert len({Key(b"k", None).id("file", name) for name in names}) == 3


def test_what_is_rejected_can_be_found_by_its_id_whatever_its_name(tmp_path, monkeypatch):
    """A name that is no text, and the rest of an archive that is cut off, which the table must know too."""
    name = os.fsdecode(b"x\xff.png")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8)).save(buffer, "png")
    content = tarred({"good.png": buffer.getvalue(), name: b"no image", "c.png": b"c"}, tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(content[: content.index(b"c.png") + 512])
    pack(PackConfig([tmp_path / "a.tar"], tmp_path / "out", key=tmp_path / "key", quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "utf-8", write_through=True))  # strict, as in a terminal
    for line in lines:
        main(["locate", line["id"], "--key", str(tmp_path / "key")])
    found = {row.split("\t")[1].removeprefix(str(tmp_path)) for row in shown.getvalue().decode().splitlines()}
    assert found >= {"/a.tar/x\\udcff.png", "/a.tar/c.png", "/a.tar"}


def test_a_zip_with_a_name_that_is_not_the_text_that_it_says(tmp_path):
    content = zipped({"a.png": b"a", "\u00e4.png": b"x", "\u00f6.png": b"o"})
    content = content.replace("\u00e4".encode(), b"\xff\xfe")
    found = read(tmp_path / "o.zip", content)
    assert found.pop("a.png") == b"a"
    assert found.pop("\u00f6.png") == b"o"
    assert "not the UTF-8 that it is marked as" in only_reason(found)
    assert read(tmp_path / "outer.zip", zipped({"in.zip": content})).keys() >= {"in.zip/a.png", "in.zip/\u00f6.png"}


# Links, devices, rights


def test_folders_with_what_is_no_file(tmp_path):
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    (folder / "good.png").write_bytes(b"good")
    (folder / "deep" / "round").symlink_to(folder)
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "s.png"))
    found = read(folder)
    server.close()
    assert found.pop("good.png") == b"good"
    assert found == {
        **dict.fromkeys(("dangling.png", "deep/round"), "a link, which is not followed"),
        **dict.fromkeys(("pipe.png", "s.png"), "not a regular file"),
    }
    with pytest.raises(PackError, match="not a regular file"):  # and does not wait for a writer
        open_sources([folder / "pipe.png"])
    (tmp_path / "link").symlink_to(folder / "good.png")
    assert read(tmp_path / "link") == {"good.png": b"good"}  # the user named it


def test_files_that_may_not_be_read_or_vanish(tmp_path, monkeypatch):
    """Root reads everything, so the system's answer is put in its mouth."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"x")
    real = Path.open

    def refusing(path, *arguments):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    monkeypatch.setattr(Path, "open", refusing)
    found = {}
    for member in source(folder).members():
        if member.name == "a.png":
            (folder / "c.png").unlink()
        try:
            found[member.name] = member.read()
        except MemberError as error:
            found[member.name] = str(error)
    assert found == {
        "a.png": b"x",
        "b.png": "it may not be read: check its rights",
        "c.png": "it cannot be read (No such file or directory)",
    }
    with pytest.raises(PackError, match=r"b\.png: it may not be read"):
        open_sources([folder / "b.png"])


def test_links_devices_and_sparse_files_in_archives(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "good.png"
            archive.addfile(info)
        info = tarfile.TarInfo("sparse.png")
        info.pax_headers = {"GNU.sparse.map": "0,3", "GNU.sparse.size": "1000000000000"}
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
        info = tarfile.TarInfo("good.png")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"good"))
    found = read(tmp_path / "a.tar", buffer.getvalue())
    assert found.pop("good.png") == b"good"
    assert "sparse" in found.pop("sparse.png")
    assert set(found.values()) == {"a link, which is not followed", "not a regular file"}
    assert len(found) == 5
    link = zipfile.ZipInfo("l.png")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert read(tmp_path / "a.zip", buffer.getvalue()) == {"l.png": "a link, which is not followed"}


# Encrypted


def marked(content, flags, method=None):
    """A zip whose first member says that it is encrypted: as AES (method 99) or as of old."""
    raw = bytearray(content)
    for signature, at, methods in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):
        place = raw.index(signature)
        raw[place + at] |= flags
        if method is not None:
            raw[place + methods : place + methods + 2] = struct.pack("<H", method)
    return bytes(raw)


def test_encrypted_archives_at_every_depth(tmp_path):
    files = {"a.png": b"secret", "b.png": b"open"}
    inner = {
        "old.zip": marked(zipped(files), 1),
        "aes.zip": marked(zipped(files), 1, 99),
        "content.7z": sevened(files, filters=None, password="p"),
        "list.7z": sevened(files, filters=None, password="p", header_encryption=True),
        "good.png": b"good",
    }
    found = read(tmp_path / "a.zip", zipped(inner))
    assert found.pop("good.png") == b"good"
    assert [found.pop(f"{name}.zip/b.png") for name in ("old", "aes")] == [b"open", b"open"]
    assert set(found) == {"old.zip/a.png", "aes.zip/a.png", "content.7z/a.png", "content.7z/b.png", "list.7z"}
    assert all("encrypted" in reason and "decrypted copy" in reason for reason in found.values())


# Bombs


ZEROS = {
    "zip": zipped,
    "bzip2.zip": PACKED["bzip2.zip"],
    "lzma.zip": PACKED["lzma.zip"],
    "tar.gz": PACKED["tar.gz"],
    "tar.bz2": PACKED["tar.bz2"],
    "tar.xz": PACKED["tar.xz"],
    "tar.zst": PACKED["tar.zst"],
    "7z": sevened,
}


@pytest.mark.parametrize("kind", ZEROS)
def test_decompression_bombs(tmp_path, monkeypatch, kind):
    """With a tenth of the real allowance, as only its size matters: alone, and inside a zip, with a file before."""
    monkeypatch.setattr(limits, "FREE_BYTES", 4 << 20)
    bomb = ZEROS[kind]({"first.png": b"first", "bomb.png": bytes(12 << 20), "last.png": b"last"})
    assert len(bomb) < (12 << 20) / 200
    for path, content, before in (("a", bomb, ""), ("o.zip", zipped({"in": bomb, "good": b"good"}), "in/")):
        tracemalloc.start()
        found = read(tmp_path / path, content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[f"{before}first.png"] == b"first"
        assert sum(limits.BOMB in value for value in found.values() if isinstance(value, str)) >= 1
        assert found.get("good", b"good") == b"good"
        assert peak < (40 << 20 if "zip" not in kind else 90 << 20)


def test_decoders_that_ask_for_too_much_memory(tmp_path):
    """Handmade: a zstd frame (RFC 8878) with a window of 1 GiB, an xz block with a dictionary of 2 GiB."""
    zst = struct.pack("<IBB", 0xFD2FB528, 0, 20 << 3) + (1 | 5 << 3).to_bytes(3, "little") + b"abcde"
    xz = bytearray(lzma.compress(b"abcde"))
    size = (xz[12] + 1) * 4  # of the block's header, from byte 12 on
    assert xz[14:16] == b"\x21\x01"  # LZMA2, with one byte of properties, which is the dictionary's size
    xz[16] = 38
    xz[8 + size : 12 + size] = struct.pack("<I", zlib.crc32(xz[12 : 8 + size]))
    found = read(tmp_path / "a.zip", zipped({"w.zst": zst, "d.xz": bytes(xz), "good.png": b"good"}))
    assert found.pop("good.png") == b"good"
    assert list(found.values()) == ["its decoder asks for over 512 MiB of memory: pack an unpacked copy"] * 2
    zst = zst.replace(bytes([20 << 3]), bytes([10 << 3]))
    assert read(tmp_path / "w.zst", zst) == {"w": b"abcde"}


def test_bombs_that_multiply_with_depth(tmp_path, monkeypatch):
    """No layer is out of proportion, but all together are: what comes out of the outermost archive is counted."""
    monkeypatch.setattr(limits, "FREE_IN_ALL", 1 << 20)
    leaf = zipped({f"{n}.png": bytes(100_000) for n in range(10)})
    inner = gzip.compress(tarred({f"{n}.zip": leaf for n in range(40)}))
    bomb = zipped({f"{n}.tgz": inner for n in range(30)}, zipfile.ZIP_LZMA)
    found = read(tmp_path / "a", bomb)
    assert all(limits.BOMB in value for value in found.values() if isinstance(value, str))
    given = sum(len(value) for value in found.values() if isinstance(value, bytes))
    assert given < max(1 << 20, 200 * len(bomb)) < 30 * 40 * 10 * 100_000


def test_a_zip_of_overlapping_members(tmp_path):
    """After D. Fifield, 'A better zip bomb' (WOOT 2019): many entries of the list share one compressed kernel."""
    raw = zipped({"a.png": bytes(100_000), "b.png": b"b"})
    first = raw.index(b"PK\x01\x02")
    second = raw.index(b"PK\x01\x02", first + 1)
    entry = raw[first:second].replace(b"a.png", b"c.png")
    end = bytearray(raw[-22:])
    struct.pack_into("<HH", end, 8, 3, 3)
    struct.pack_into("<I", end, 12, len(raw) - 22 - first + len(entry))
    found = read(tmp_path / "a.zip", raw[:-22] + entry + bytes(end))
    assert "overlaps" in found["a.png"]
    assert found["b.png"] == b"b"


def test_a_member_that_lies_about_its_size(tmp_path):
    raw = zipped({"a.png": b"x" * 1000, "b.png": b"b"})
    for stated in (999, 1001, 2**32 - 2):
        told = bytearray(raw)
        at = raw.index(b"PK\x01\x02")
        struct.pack_into("<I", told, at + 24, stated)
        found = read(tmp_path / "a.zip", bytes(told))
        assert isinstance(found["a.png"], str)
        assert found["b.png"] == b"b"


def test_a_member_over_the_limit_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", random.Random(0).randbytes(3000))
    member = next(source(tmp_path / "a.zip").members())
    with pytest.raises(MemberError, match="larger than any radiograph"):
        member.read(2999)
    with pytest.raises(MemberError, match="larger than any radiograph"):
        member.read()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "over 1024 MiB" in read(tmp_path / "huge.png")["huge.png"]


def test_hostile_tar_headers(tmp_path):
    """Long names that are longer than any, attributes that would fill the memory, a size below nothing."""
    long = tarred({"n" * 100_000: b"x"}, tarfile.GNU_FORMAT)
    assert "a header of over 16 KiB" in only_reason(read(tmp_path / "o.zip", zipped({"a.tar": long, "b": b"b"})))
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"comment": "2 " * 40_000}
    pax = info.tobuf(tarfile.PAX_FORMAT)
    assert "a header of over 16 KiB" in only_reason(read(tmp_path / "o.zip", zipped({"a.tar": pax, "b": b"b"})))
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\0"
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    found = read(tmp_path / "o.zip", zipped({"a.tar": bytes(header) + tarred(FILES), "b": b"b"}))
    assert found["b"] == b"b"
    assert any(isinstance(value, str) for value in found.values())


# Damage


def test_a_tar_tells_where_it_ends_before_its_time(tmp_path):
    whole = tarred({f"{n}.png": bytes([n]) * 700 for n in range(4)}, tarfile.USTAR_FORMAT)
    assert "" not in read(tmp_path / "a.tar", whole)
    assert "" not in read(tmp_path / "a.tar", whole[: 4 * 1536 + 512])
    for end, count in ((1536, 1), (1537, 1), (4608, 3), (6144, 4), (4708, 3), (6143, 4), (5819, 3)):
        found = read(tmp_path / "a.tar", whole[:end])
        assert "ends early" in found[""] or "ends early" in only_reason({k: v for k, v in found.items() if k})
        assert sum(isinstance(value, bytes) for value in found.values()) == count
    damaged = bytearray(whole)
    damaged[2 * 1536 + 10] ^= 1  # a header amid others, which tarfile takes for the end
    found = read(tmp_path / "a.tar", bytes(damaged))
    assert (len(found), "damaged" in found[""]) == (3, True)
    assert "goes on behind its end mark" in read(tmp_path / "a.tar", whole + whole)[""]


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_compressed_stream_tells_where_it_ends_before_its_time(tmp_path, kind):
    noise = random.Random(0).randbytes(300_000)  # three blocks of bzip2 at its level 1
    whole = PACKED[kind]({"a.png": b"a", "noise.png": noise, "c.png": b"c"})
    found = read(tmp_path / "a", whole[: len(whole) // 2])
    assert found["a.png"] == b"a"
    assert "c.png" not in found
    assert "ends early" in found[""] or "ends early" in found["noise.png"]
    alone = {"tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress, "tar.zst": zstandard.compress}
    content = alone[kind](noise)
    for cut in (len(content) // 2, len(content) - 1):  # a table that lost its end must not pass for whole
        assert only_reason(read(tmp_path / "o.zip", zipped({"t.csv.gz": content[:cut]})))


def test_a_damaged_inner_archive_gives_what_is_whole(tmp_path):
    """A bit flipped in an inner zip that is stored: its own members tell which one is hit."""
    inner = zipped({"a.png": b"a" * 50, "b.png": b"b" * 50, "c.bin": bytes(9000)}, zipfile.ZIP_STORED)
    outer = zipped({"in.zip": inner, "good.png": b"good"}, zipfile.ZIP_STORED)
    found = read(tmp_path / "o.zip", outer.replace(b"a" * 50, b"a" * 49 + b"b"))
    assert found["in.zip/b.png"] == b"b" * 50
    assert found["good.png"] == b"good"
    assert "damaged" in found["in.zip/a.png"]
    assert "damaged" in found["in.zip"]
    outer = zipped({"in.tar": tarred({"a.png": b"a" * 50}), "good.png": b"good"}, zipfile.ZIP_STORED)
    found = read(tmp_path / "o.zip", outer.replace(b"a" * 50, b"a" * 49 + b"b"))
    assert "damaged" in found["in.tar"]  # the tar cannot tell, but the zip around it does
    assert found["good.png"] == b"good"


def test_a_top_level_archive_that_cannot_be_opened_ends_the_pack(tmp_path):
    for kind in ("zip", "tar.gz", "7z"):
        (tmp_path / "a").write_bytes(PACKED[kind](FILES)[:12])
        with pytest.raises(PackError, match=r"/a: .*copy it again"):
            open_sources([tmp_path / "a"])


def check_damaged(path, content):
    """Nothing but members, reasons and a PackError comes of it, nothing is written, and it is the same again.

    The names are those of the first pass of a pack, which reads little: what ends the archive comes in both.
    """
    path.write_bytes(content)
    before = sorted(path.parent.iterdir())

    def once():
        try:
            return read(path)
        except PackError as error:
            return {"": str(error)}

    found = once()
    assert found == once()
    if found.keys() != {""}:
        assert set(names(path)) == found.keys()
    assert sorted(path.parent.iterdir()) == before
    for value in found.values():
        if isinstance(value, str):
            assert value
            assert ".png" not in value  # reasons hold no names
            assert "\n" not in value


BASES = {kind: made(FILES) for kind, made in PACKED.items()}
NESTED = {f"{o} {i}": PACKED[o]({"in": BASES[i], "x": b"x"}) for o in ("stored.zip", "tar", "7z") for i in BASES}


def damaged(bases):
    @st.composite
    def draw_one(draw):
        raw = bytearray(bases[draw(st.sampled_from(sorted(bases)))])
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(raw) - 1))
            raw[at] = draw(st.integers(0, 255))
        cut = draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
        return bytes(raw[:cut])

    return draw_one()


@pytest.fixture(scope="module")
def damaged_file(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "a"


@settings(max_examples=60)
@given(damaged(BASES | NESTED))
def test_damage_never_crashes(damaged_file, content):
    check_damaged(damaged_file, content)


@pytest.mark.slow
@settings(max_examples=3000)
@given(damaged(BASES | NESTED))
def test_damage_never_crashes_at_length(damaged_file, content):
    check_damaged(damaged_file, content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASES)
def test_an_archive_cut_at_any_byte(damaged_file, kind):
    """Members that come are whole or refused: no cut is passed over in silence."""
    whole = read(damaged_file, BASES[kind])
    for end in range(0, len(BASES[kind]), 7):
        damaged_file.write_bytes(BASES[kind][:end])
        try:
            found = read(damaged_file)
        except PackError:
            continue
        contents = {name: value for name, value in found.items() if isinstance(value, bytes)}
        complete = contents == whole
        assert complete or len(found) > len(contents) or set(contents) == {"a"}  # `a` is no archive any more


def test_links_that_a_pattern_meets_are_not_followed(tmp_path):
    """What the user names is followed; what lies in the clinic's folder is not."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "secret.png").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file.png").symlink_to(tmp_path / "outside" / "deep" / "secret.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "outside" / "deep")
    (tmp_path / "named").symlink_to(tmp_path / "outside")
    for pattern in ("in/*", "in/*/*.png", "in/**/*.png"):
        for place in open_sources([tmp_path / pattern]):
            for member in place.members():
                with pytest.raises(MemberError, match="link"):
                    member.read()
    (place,) = open_sources([tmp_path / "named" / "*" / "*.png"])
    assert [member.read() for member in place.members()] == [b"secret"]
    (place,) = open_sources([tmp_path / "named"])
    assert [member.read() for member in place.members()] == [b"secret"]


def test_thousands_of_members_of_one_name_take_no_longer(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for i in range(20_000):
                archive.writestr("same.pdf", str(i))
    (place,) = open_sources([tmp_path / "a.zip"])
    began = time.monotonic()
    names = [member.name for member in place.members()]
    assert time.monotonic() - began < 60  # it was quadratic: half an hour
    assert len(set(names)) == 20_000
    assert names[:3] == ["same.pdf", "same.pdf#2", "same.pdf#3"]


def test_packs_in_a_source_are_not_packed_again(tmp_path, capsys):
    source = tmp_path / "films"
    (source / "deep").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(source / "a.png")
    key = b"a public key for tests"
    for month in ("jan", "deep/feb"):
        pack(PackConfig([source], source / month, key=key, quiet=True))
    manifest = pack(PackConfig([source], tmp_path / "march", key=key))
    assert manifest["ledgers"]["radiographs"]["seen"] == 1
    assert "a folder of shards that `pack` made" in (tmp_path / "march" / "rejected.jsonl").read_text()


def test_names_that_steer_a_terminal_are_escaped(tmp_path, capsys):
    source = tmp_path / "films"
    source.mkdir()
    for number, name in enumerate((b"M\xfcller\x1b[31m.png", b"p12.png")):
        image = np.random.default_rng(number).integers(0, 255, (60, 50), dtype=np.uint8)
        Image.fromarray(image).save(source / os.fsdecode(name))
    pack(PackConfig([source], tmp_path / "out", key=b"a public key for tests", patient=r"p(\d+)"))
    assert r"M\udcfcller\x1b[31m.png" in capsys.readouterr().out


def test_a_table_of_ids_that_a_kill_cut_short_takes_further_ids(tmp_path):
    key, table = tmp_path / "key", tmp_path / "key.ids.jsonl"
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 255, (60, 50), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        manifest = pack(PackConfig([tmp_path / f"{number}.png"], tmp_path / f"out{number}", key=key, quiet=True))
        assert locate(table, manifest["sources"][0]["id"]) == [("source", str(tmp_path / f"{number}.png"))]
        os.truncate(table, table.stat().st_size - 30)


@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_blanks_in_a_header_take_no_time(magic, tmp_path):
    raw = magic + b" " * 60 + b"40 40 255\n" + bytes(range(256)) * 19
    (tmp_path / "a.ppm").write_bytes(raw[: len(magic) + 70 + 40 * 40 * (3 if magic == b"P6" else 1)])
    began = time.perf_counter()
    pack(PackConfig([tmp_path / "a.ppm"], tmp_path / "out", key=b"a public key for tests", quiet=True))
    assert time.perf_counter() - began < 20  # not 2 ** 60 attempts


def test_the_working_folder_of_another_pack_is_not_packed(tmp_path):
    """Its spool is a tar of tooth crops, which would be radiographs of patients of their own."""
    image = np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    working = tmp_path / ".other.packing"
    working.mkdir()
    Image.fromarray(image.T.copy()).save(working / "spool.png")
    manifest = pack(PackConfig([tmp_path], tmp_path / "out", key=b"a public key for tests", quiet=True))
    assert manifest["ledgers"]["radiographs"]["seen"] == 1
    assert manifest["reasons"]["files"] == {
        "the working folder of a pack that is not finished: finish it, or remove it": 1
    }
