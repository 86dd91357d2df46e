"""A pack that dies continues: the same bytes in the end, and nothing done twice."""

import io
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.__main__ import main
from data_shards.errors import PackError
from data_shards.inspect.verify import verify
from data_shards.pack.crop_job import Converted, Frame
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pack.resume_log import JOURNAL, SPOOL, Journal
from data_shards.shards.shard_set import ShardSet

KEY = "a public key for tests"
COUNT = 24


def scan(seed, shape=(150, 200)):
    coarse = np.random.default_rng(seed).random((12, 16)).astype(np.float32)
    return (cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)


def saved(pixels, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


@pytest.fixture
def clinic(tmp_path):
    (tmp_path / "key").write_text(KEY)
    with zipfile.ZipFile(tmp_path / "clinic.zip", "w") as archive:
        archive.writestr("c/data.yaml", "names: ['11', '36']")
        for i in range(COUNT):
            archive.writestr(f"c/images/{i}.png", saved(scan(i, (600, 800))))
            archive.writestr(f"c/labels/{i}.txt", "0 .5 .5 .3 .4\n1 .3 .5 .2 .4\n1 .8 .5 .2 .4\n")
    return tmp_path


def command(folder, *options):
    arguments = ["pack", str(folder / "clinic.zip"), "--out", str(folder / "out"), "--key", str(folder / "key")]
    return [sys.executable, "-m", "data_shards", *arguments, "--holdout", "0.3", *options]


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines_of(folder):
    journal = folder / ".out.packing" / JOURNAL
    return journal.read_bytes().splitlines(True) if journal.exists() else []


def killed_at(folder, lines, *options):
    """Start the pack and kill it with SIGKILL once its journal has so many lines. Returns the lines that it left."""
    process = subprocess.Popen(command(folder, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(lines_of(folder)) < lines:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return lines_of(folder)


def whole(folder):
    """The shards of an undisturbed pack."""
    config = PackConfig([folder / "clinic.zip"], folder / "whole", key=folder / "key", holdout=0.3, quiet=True)
    pack(config)
    return tree(folder / "whole")


def kills(folder, points, workers):
    before = []
    for point, count in zip(points, workers, strict=True):
        left = killed_at(folder, point, "--workers", str(count))
        assert left[: len(before)] == before[: len(left)], "what was done was done again"
        before = left[:-1]  # the last may be torn
    done = subprocess.run(command(folder), capture_output=True, text=True, check=True)
    if before:
        told = next(line for line in done.stdout.splitlines() if line.startswith("continuing"))
        assert int(told.split()[1]) >= len(before)
    assert tree(folder / "out") == whole(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["clinic.zip", "key", "key.ids.jsonl", "out", "whole"]
    assert verify(folder / "out", quiet=True) == []


def test_killed_again_and_again_a_pack_ends_in_the_same_bytes(clinic):
    kills(clinic, (3, 11), (1, 2))


LATE = [  # where shards are written and the folder gets its name, in order
    "data_shards.pack.finalize.write_index",
    "data_shards.pack.finalize.tally",
    "data_shards.pack.finalize.write_manifest",
    "data_shards.pack.pipeline.remember",
    "data_shards.pack.pipeline.finish",
    "data_shards.pack.work_dir._sync",
    "data_shards.pack.work_dir._worth_keeping",  # the folder has its name, and its workplace is still there
]


def test_dead_in_the_last_moments_a_pack_ends_in_the_same_bytes(clinic):
    """A process that ends without a word, as killed, before each of the steps that a kill from outside seldom hits."""
    for place in LATE:
        module, _, name = place.rpartition(".")
        code = (
            f"import os, {module} as module\n"
            f"module.{name} = lambda *a, **k: os._exit(9)\n"
            "from data_shards.__main__ import main\n"
            f"main({command(clinic)[3:]!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 9, done.stderr
        assert (clinic / ".out.packing").is_dir()
        if place != LATE[0]:
            assert f"continuing: {COUNT} files" in done.stdout
    assert (clinic / "out").is_dir()
    subprocess.run(command(clinic), capture_output=True, check=True)
    assert tree(clinic / "out") == whole(clinic)
    assert not (clinic / ".out.packing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_point_a_pack_ends_in_the_same_bytes(clinic, seed):
    rng = np.random.default_rng(seed)
    kills(clinic, sorted(rng.integers(0, COUNT + 1, 4)), rng.integers(1, 4, 4))


def test_only_what_changed_is_converted_again(tmp_path, capsys):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(saved(scan(i)))
    stop = {"holdout": 0.9999999}  # a holdout that takes all: an error once everything is converted
    with pytest.raises(PackError, match="lower --holdout"):
        packed(tmp_path, **stop)
    (tmp_path / "in" / "0.png").write_bytes(saved(scan(7)))
    (tmp_path / "in" / "1.png").unlink()
    (tmp_path / "in" / "6.png").write_bytes(saved(scan(8)))
    with pytest.raises(PackError, match="lower --holdout"):
        packed(tmp_path, **stop)
    assert len(lines_of(tmp_path)) == 6 + 2  # one changed, one new
    packed(tmp_path, margin=0.2)  # another setting: nothing of before is used
    assert len(ShardSet(tmp_path / "out")) == 6
    packed(tmp_path, out="anew", margin=0.2)
    assert tree(tmp_path / "out") == tree(tmp_path / "anew")


def packed(folder, out="out", **options):
    return pack(PackConfig([folder / "in"], folder / out, key=folder / "key", quiet=True, **options))


def test_a_kill_after_the_last_rename_leaves_nothing_to_do(clinic, monkeypatch):
    pack(PackConfig([clinic / "clinic.zip"], clinic / "out", key=clinic / "key", quiet=True))
    before = tree(clinic / "out")
    (clinic / ".out.packing").mkdir()  # as a kill between the rename and the clearing up leaves it
    (clinic / ".out.packing" / SPOOL).write_bytes(b"x")
    manifest = pack(PackConfig([clinic / "clinic.zip"], clinic / "out", key=clinic / "key", quiet=True))
    assert manifest == ShardSet(clinic / "out").manifest
    assert tree(clinic / "out") == before
    assert not (clinic / ".out.packing").exists()


def entry(number, crops):
    chunk = np.random.default_rng(number).bytes(512 * crops)
    frame = Frame(f"{number:016x}", "f" * 16, "a" * 16, samples=crops, size=len(chunk), rejected=[("b", "blank")])
    return Converted(f"{number:064x}", "f" * 16, frame.radiograph, frames=[frame], chunk=chunk)


@settings(max_examples=30)
@given(
    crops=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    damage=st.tuples(st.sampled_from([SPOOL, JOURNAL]), st.sampled_from(["cut", "flip"]), st.floats(0, 1)),
)
def test_what_a_journal_gives_back_is_what_was_kept(tmp_path_factory, crops, damage):
    folder = tmp_path_factory.mktemp("journal")
    entries = [entry(number, count) for number, count in enumerate(crops)]
    journal = Journal(folder)
    for one in entries:
        journal.add(one)
    journal.close()
    name, kind, share = damage
    raw = bytearray((folder / name).read_bytes())
    at = min(int(share * len(raw)), len(raw) - 1)
    if raw:
        if kind == "cut":
            del raw[at:]
        else:
            raw[at] ^= 0x10
        (folder / name).write_bytes(raw)
    journal = Journal(folder)
    for one in entries:
        if one.digest not in journal:
            journal.add(one)
    for one in entries:
        found, chunks = journal[one.digest]
        assert found.frames == one.frames
        assert [journal.members(chunk) for chunk in chunks] == [one.chunk]
    journal.close()
    again = Journal(folder)
    assert all(one.digest in again for one in entries)
    again.close()


def test_ctrl_c_says_that_the_same_command_goes_on(clinic, capsys, monkeypatch):
    monkeypatch.setattr("data_shards.pack.pipeline.settle", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        main(command(clinic)[3:])
    assert stop.value.code == 130
    assert "the same command continues" in capsys.readouterr().err
    assert len(lines_of(clinic)) == COUNT


def test_a_killed_pack_leaves_no_worker(clinic):
    """SIGKILL to the pack alone, as for want of memory: its workers notice, and none waits for ever."""
    process = subprocess.Popen(command(clinic, "--workers", "2"), cwd=clinic, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(workers := psutil.Process(process.pid).children()) < 3:  # and multiprocessing's resource tracker
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=120)
    assert alive == []
    assert len(gone) == 3


def test_a_pack_does_not_read_what_it_writes(tmp_path):
    """`pack . --out shards`: neither an unfinished folder nor the output is an archive of radiographs."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(saved(scan(i)))
    for folder in (".out.packing", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".out.packing" / "left.png").write_bytes(saved(scan(9)))
    (tmp_path / "my.key").write_text(KEY)
    (tmp_path / "my.key.ids.jsonl").write_text("")
    manifest = pack(PackConfig([tmp_path], tmp_path / "out", key=tmp_path / "my.key", quiet=True))
    assert manifest["ledgers"]["files"] == {"seen": 3, "used": 3, "rejected": 0}
