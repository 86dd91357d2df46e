"""7z archives as sources: the same crops, books and refusals as for zip and tar."""

import io
import os
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import py7zr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.__main__ import main
from data_shards.errors import MemberError, PackError
from data_shards.inspect.verify import verify
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.sources.source import open_sources

KEY = b"a public key for tests"
LZMA2 = [{"id": py7zr.FILTER_LZMA2, "preset": 1}]
COPY = [{"id": py7zr.FILTER_COPY}]


def picture(seed, shape=(60, 80)):
    pixels = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def seven(path, members, filters=LZMA2, **options):
    """An archive of one solid block."""
    with py7zr.SevenZipFile(path, "w", filters=filters, **options) as archive:
        for name, content in members.items():
            archive.writestr(content, name)
    return path


def blocks(path, *parts):
    """An archive of one solid block a part."""
    seven(path, parts[0])
    for part in parts[1:]:
        with py7zr.SevenZipFile(path, "a", filters=LZMA2) as archive:
            for name, content in part.items():
                archive.writestr(content, name)
    return path


def packed(source, out, **options):
    return pack(PackConfig([source], out, **{"key": KEY, "quiet": True, **options}))


def members(path):
    return open_sources([path])[0].members()


def reasons(manifest, ledger="files"):
    return " | ".join(manifest["reasons"][ledger])


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FILTERS = {
    "lzma2": LZMA2,
    "copy": COPY,
    "lzma": [{"id": py7zr.FILTER_LZMA}],
    "deflate": [{"id": py7zr.FILTER_DEFLATE}],
    "bzip2": [{"id": py7zr.FILTER_BZIP2}],
    "ppmd": [{"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}],
    "zstandard": [{"id": py7zr.FILTER_ZSTD, "level": 3}],
    "delta": [{"id": py7zr.FILTER_DELTA}, {"id": py7zr.FILTER_LZMA2, "preset": 1}],
    "x86": [{"id": py7zr.FILTER_X86}, {"id": py7zr.FILTER_LZMA2, "preset": 1}],
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_method_gives_the_bytes_back(tmp_path, name):
    rng = np.random.default_rng(0)
    wanted = {f"{i}.bin": rng.integers(0, 255, int(size), dtype=np.uint8).tobytes() for i, size in enumerate([1, 7e5])}
    wanted |= {"plain.bin": b"tooth " * 500_000, "empty.bin": b"", "last.png": picture(1)}
    path = seven(tmp_path / "a.7z", wanted, FILTERS[name])
    assert {m.name: m.read() for m in members(path)} == wanted
    assert {m.name: m.head(64) for m in members(path)} == {name: raw[:64] for name, raw in wanted.items()}
    last = [m.read() for m in members(path) if m.name == "last.png"]  # nobody read those before it
    assert last == [wanted["last.png"]]


def test_a_7z_is_packed_as_a_folder_is(tmp_path):
    """Two solid blocks with YOLO files; the shards are those of the same files in a folder, byte by byte."""
    names = "names: ['11', '46']\n"
    first = {f"images/{i}.png": picture(i) for i in range(4)} | {"data.yaml": names}
    second = {f"labels/{i}.txt": "0 0.5 0.5 0.5 0.5\n1 0.3 0.5 0.4 0.9" for i in range(4)}
    path = blocks(tmp_path / "scans", first, second)  # one name for both, as ids are made of it
    (tmp_path / "x").mkdir()
    for name, content in (first | second).items():
        file = tmp_path / "x" / "scans" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    manifest = packed(path, tmp_path / "out")
    assert manifest["ledgers"]["boxes"] == {"seen": 8, "used": 8, "rejected": 0}
    packed(tmp_path / "x" / "scans", tmp_path / "folder")
    packed(path, tmp_path / "two", workers=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "folder") == tree(tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "out", "scans", "two", "x"]  # nothing unpacked


def test_a_flipped_bit_costs_one_member(tmp_path):
    """Noise is stored by LZMA2 as it is, so that only the checksum tells."""
    wanted = {f"{i}.png": picture(i) for i in range(5)}
    path = seven(tmp_path / "a.7z", wanted)
    flip(path, path.read_bytes().index(wanted["2.png"][1000:1032]) + 16)
    manifest = packed(path, tmp_path / "out")
    assert manifest["ledgers"]["files"] == {"seen": 5, "used": 4, "rejected": 1}
    assert reasons(manifest) == "damaged in its archive: its checksum is wrong"


def test_a_broken_block_costs_its_rest_and_no_other_block(tmp_path):
    text = {f"a{i}.csv": "image,x0\n" + f"{i},{i * i}\n" * 40_000 for i in range(5)}
    path = blocks(tmp_path / "a.7z", text, {f"{i}.png": picture(i) for i in range(3)})
    for at in range(200, 260):  # in the first block
        flip(path, at)
    manifest = packed(path, tmp_path / "out")
    assert manifest["ledgers"]["files"]["used"] == 3
    assert "damaged in its archive" in reasons(manifest)


def test_links_and_strange_names(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "real.png").write_bytes(picture(1))
    (tmp_path / "links" / "link.png").symlink_to("real.png")
    path = tmp_path / "a.7z"
    with py7zr.SevenZipFile(path, "w", filters=LZMA2) as archive:
        archive.writeall(tmp_path / "links", "links")
        for number, name in enumerate(["twice.png", "twice.png", "XX/climbs.png", "Y/absolute.png", "C;/drive.png"], 5):
            archive.writestr(picture(number), name)
        for info in archive.files.files_list:  # which the writer refuses to write
            for ours, evil in (("XX/", "../"), ("Y/", "/"), ("C;", "C:")):
                info["filename"] = info["filename"].replace(ours, evil)
    assert [m.name for m in members(path)][2:] == [
        *("twice.png", "twice.png#2", "../climbs.png", "/absolute.png", "C:/drive.png")
    ]
    manifest = packed(path, tmp_path / "out")
    assert manifest["ledgers"]["files"] == {"seen": 7, "used": 6, "rejected": 1}
    assert reasons(manifest) == "a link, which is not followed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.7z", "links", "out"]


def test_encrypted_archives(tmp_path):
    options = {"filters": None, "password": "secret"}
    path = seven(tmp_path / "a.7z", {"a.png": picture(1)}, **options)
    assert [m.name for m in members(path)] == ["a.png"]
    with pytest.raises(PackError, match=r"no file of 1 could be used .*encrypted: pack a decrypted copy"):
        packed(path, tmp_path / "out")
    seven(path, {"a.png": picture(1)}, **options, header_encryption=True)
    with pytest.raises(PackError, match="encrypted 7z archive: pack a decrypted copy"):
        packed(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.7z"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_archive_is_one_line(tmp_path, share):
    path = seven(tmp_path / "a.7z", {f"{i}.png": picture(i) for i in range(4)})
    raw = path.read_bytes()
    path.write_bytes(raw[: 10 + int(share * (len(raw) - 10))])  # its list of members is at the end
    with pytest.raises(
        PackError, match=r"a.7z: a 7z archive whose list of members, at its end, is damaged or cut off"
    ) as caught:
        packed(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_without_py7zr_the_extra_is_named(tmp_path, monkeypatch, capsys):
    path = seven(tmp_path / "a.7z", {"a.png": picture(1)})
    monkeypatch.setitem(sys.modules, "py7zr", None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(SystemExit) as stop:
        main(["pack", str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert 'pip install "tooth-foundations[7z]"' in said
    assert said.count("\n") == 1


def test_an_archive_without_content(tmp_path):
    path = seven(tmp_path / "a.7z", {"empty.png": b""})
    with pytest.raises(PackError, match="1 x an empty file"):
        packed(path, tmp_path / "out")
    with py7zr.SevenZipFile(path, "w"):
        pass
    with pytest.raises(PackError):
        packed(path, tmp_path / "out")


def test_memory_does_not_grow_with_the_archive(tmp_path):
    """10 MB of noise, and a bomb of 20 MB, in solid blocks: a chunk or two of each is held at a time."""
    path = tmp_path / "a.7z"
    fast = [{"id": py7zr.FILTER_LZMA2, "preset": 0}]  # with a small dictionary, which is not counted here
    with py7zr.SevenZipFile(path, "w", filters=fast) as archive:
        for number in range(20):
            archive.writestr(os.urandom(500_000), f"{number}.bin")
    with py7zr.SevenZipFile(path, "a", filters=fast) as archive:
        archive.writef(io.BytesIO(bytes(20_000_000)), "bomb.bin")
        archive.writestr(picture(1), "behind.png")
    total = 0
    tracemalloc.start()
    for member in members(path):
        if member.name == "0.bin":
            tracemalloc.reset_peak()  # the list of members has a dictionary of its own, of 16 MB
        total += len(member.head(64) if member.name == "bomb.bin" else member.read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20 * 500_000 + 64 + len(picture(1))
    assert peak < 8_000_000


def test_an_abandoned_archive_is_closed(tmp_path):
    path = seven(tmp_path / "a.7z", {f"{i}.png": picture(i) for i in range(4)})
    before = len(list(Path("/proc/self/fd").iterdir()))
    reading = members(path)
    first = next(reading)
    assert first.read() == picture(0)
    reading.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(MemberError):
        first.read()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    members = {"a.png": picture(1, (12, 12)), "a.txt": "0 0.5 0.5 1 1", "b.png": picture(2, (12, 12))}
    path = tmp_path_factory.mktemp("small") / "a.7z"
    with py7zr.SevenZipFile(path, "w", filters=LZMA2) as archive:
        archive.set_encoded_header_mode(False)  # a list of members that damage can change without undoing it
        for name, content in members.items():
            archive.writestr(content, name)
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_archives_never_crash(tmp_path_factory, small, data):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "f.7z"
    raw = bytearray(small)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(6, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # so that the damage is believed: checksums of the list and of its place made right
        at, size = (int.from_bytes(raw[i : i + 8], "little") for i in (12, 20))
        raw[28:32] = zlib.crc32(raw[32 + at : 32 + at + size]).to_bytes(4, "little")
        raw[8:12] = zlib.crc32(raw[12:32]).to_bytes(4, "little")
    path.write_bytes(raw)
    try:
        packed(path, folder / "out")
    except PackError:
        assert [p.name for p in folder.iterdir()] == ["f.7z"]
    else:
        assert verify(folder / "out", quiet=True) == []
