"""Shards behind http and s3: real servers on loopback that reset, cut, flip, stall and refuse."""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import LoopbackServer

from data_shards.errors import ShardError
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.shards import cache as caching
from data_shards.shards import remote
from data_shards.shards.cache import ShardCache
from data_shards.shards.remote import RemoteFile, Url
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.tar_index import INDEX_DTYPE

ROOM = 10**9
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A packed folder: 5 shards of 4 noisy crops, 1 to 2 kB each, and a holdout."""
    folder = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    (folder / "source").mkdir()
    for i in range(24):
        cv2.imwrite(str(folder / "source" / f"{i}.png"), rng.integers(0, 255, (40, 30), dtype=np.uint8))
    pack(PackConfig([folder / "source"], folder / "own", key=b"public", quiet=True, shard_samples=4, holdout=0.2))
    return folder / "own"


@pytest.fixture(scope="module")
def moto(own):
    """moto's S3 with the folder in the bucket `clinic`; returns host:port."""
    import boto3  # here, as spawned processes import this file too
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="clinic")
        for path in own.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "clinic", f"sets/own/{path.relative_to(own)}")
        yield f"{host}:{port}"
        server.stop()


KEPT = []


def forget_filesystems(patch):
    """Start without any, but keep the old alive: collected in a forked child, each closes for a second (measured)."""
    KEPT.append(remote._filesystem)
    patch.setattr(remote, "_filesystem", functools.cache(remote._filesystem.__wrapped__))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Short pauses, fake credentials, and no cache of the user's."""
    for name, value in {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(remote, "STALL", 10.0)
    forget_filesystems(monkeypatch)  # the endpoint is another one in each test
    caching._print_once.cache_clear()


@pytest.fixture
def http(own):
    with LoopbackServer(own.parent) as server:
        yield server


@pytest.fixture(params=["http", "s3"])
def served(request, own, monkeypatch):
    """(server, address of the set), through http and through s3."""
    if request.param == "http":
        with LoopbackServer(own.parent) as server:
            yield server, f"{server.url}/own"
    else:
        with LoopbackServer(upstream=request.getfixturevalue("moto")) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            yield server, "s3://clinic/sets/own"


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", ROOM, patience=3)


def same(samples, own):
    local = ShardSet(own)
    assert len(samples) == len(local)
    assert samples.shard_sizes.tolist() == local.shard_sizes.tolist()
    for i in range(len(local)):
        assert np.array_equal(samples.image(i), local.image(i))
        assert (samples.meta(i), samples.key(i)) == (local.meta(i), local.key(i))
        assert samples.image_bytes(i) == local.image_bytes(i)
    return True


def listing(folder):
    sizes = {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            sizes[entry.name] = entry.stat().st_size
    return sizes


def size_of(folder):
    """Bytes in a folder that others change: two equal listings in a row, else one may hold a file and its successor."""
    before = listing(folder)
    while before != (now := listing(folder)):
        before = now
    return sum(now.values())


def test_equal_to_the_local_set_sample_for_sample(served, own, cache):
    server, address = served
    samples = ShardSet(address, cache)
    same(samples, own)
    assert samples.checksum == ShardSet(own).checksum
    assert len(server.paths(".tar")) == len(set(server.paths(".tar"))) == len(samples.shard_sizes)
    assert len(server.paths("own/index.npy")) == 1
    held = samples.holdout()
    assert same(held, own / "holdout")
    assert held.holdout() is None
    assert (cache.folder.stat().st_mode & 0o777, {p.stat().st_mode & 0o777 for p in cache.folder.iterdir()}) == (
        0o700,
        {0o600},
    )
    assert all(re.fullmatch(r"[0-9a-f]{64}\.(tar|npy)|lock", p.name) for p in cache.folder.iterdir())


def test_the_holdout_of_a_local_set(own):
    assert len(ShardSet(own).holdout()) == len(ShardSet(own / "holdout"))
    assert ShardSet(own / "holdout").holdout() is None
    ShardSet(own).prefetch([0, 1])  # nothing to do


def test_a_holdout_that_was_not_uploaded(http, own, cache):
    http.faults["holdout/manifest.json"] = itertools.repeat("404")
    assert ShardSet(f"{http.url}/own", cache).holdout() is None


@pytest.mark.parametrize("fault", ["reset", "cut", "flip", "503", "slow", "stall"])
def test_a_fault_is_survived(served, own, cache, monkeypatch, fault):
    server, address = served
    monkeypatch.setattr(remote, "STALL", 0.4 if fault == "stall" else 10.0)
    server.faults = {name: iter([fault]) for name in ("own/index.npy", "shard-000001.tar")}
    if fault != "flip":  # nothing vouches for the manifest's own bytes
        server.faults["own/manifest.json"] = iter([fault])
    assert same(ShardSet(address, cache), own)
    if fault != "slow":
        assert len(server.paths("shard-000001.tar")) == 2
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", "connection|reset|disconnected|payload"),
        ("cut", "the connection broke off"),
        ("flip", "its SHA-256 is not the manifest's|did not match calculated checksum"),
        ("503", "503|Service Unavailable|SlowDown"),
        ("stall", "silent for 0.4 s"),
    ],
)
def test_a_lasting_fault_is_reported_with_the_url(served, tmp_path, monkeypatch, fault, words):
    server, address = served
    monkeypatch.setattr(remote, "STALL", 0.4 if fault == "stall" else 10.0)
    samples = ShardSet(address, ShardCache(tmp_path / "cache", ROOM, patience=0.6))
    server.faults["shard-000000.tar"] = itertools.repeat(fault)
    began = time.monotonic()
    with pytest.raises(ShardError, match=rf"cannot read {address}/shard-000000\.tar .*({words}).*resume") as caught:
        samples.image(0)
    assert 0.6 <= time.monotonic() - began < 6
    assert "\n" not in str(caught.value)
    assert not list(samples._cache.folder.glob("*.part"))
    assert samples.image(int(samples.shard_sizes[0])) is not None  # the others are as before


def test_a_shard_that_failed_is_not_waited_for_again_by_each_of_its_samples(own, http, tmp_path):
    samples = ShardSet(f"{http.url}/own", ShardCache(tmp_path / "cache", ROOM, patience=0.4))
    http.faults["shard-000000.tar"] = itertools.repeat("503")
    with pytest.raises(ShardError, match="503"):
        samples.image(0)
    asked, began = len(http.requests), time.monotonic()
    for i in (1, 2, 3):
        with pytest.raises(ShardError, match=r"shard-000000\.tar .*503"):
            samples.image(i)
    assert time.monotonic() - began < 0.3
    assert len(http.requests) == asked
    http.faults.clear()
    time.sleep(0.5)
    assert np.array_equal(samples.image(1), ShardSet(own).image(1))


def test_several_blocks_through_both(served, own, cache, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4000)
    _, address = served
    assert same(ShardSet(address, cache), own)


@pytest.mark.parametrize("status", ["404", "403"])
def test_what_cannot_get_better_is_reported_at_once(served, tmp_path, status):
    server, address = served
    samples = ShardSet(address, ShardCache(tmp_path / "cache", ROOM, patience=60))
    server.faults["shard-000000.tar"] = itertools.repeat(status)
    began = time.monotonic()
    with pytest.raises(ShardError, match=rf"{address}/shard-000000\.tar"):
        samples.image(0)
    server.faults["own/manifest.json"] = itertools.repeat(status)
    with pytest.raises(ShardError, match=rf"{address}/manifest\.json"):
        ShardSet(address, samples._cache)
    assert time.monotonic() - began < 5


def test_no_server_no_credentials_no_scheme_no_room(tmp_path, moto, monkeypatch, cache, http):
    impatient = ShardCache(tmp_path / "cache", ROOM, patience=0.2)
    with pytest.raises(ShardError, match=r"cannot read http://127\.0\.0\.1:9/own/manifest\.json .*resume"):
        ShardSet("http://127.0.0.1:9/own", impatient)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{moto}")
    with pytest.raises(ShardError, match=r"there is no s3://elsewhere/own/manifest\.json: pack with .*whole folder"):
        ShardSet("s3://elsewhere/own", cache)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_filesystems(monkeypatch)
    with pytest.raises(ShardError, match=r"cannot read s3://clinic/sets/own/manifest\.json: .*credentials"):
        ShardSet("s3://clinic/sets/own", cache)
    with pytest.raises(ShardError, match="gopher:// is not known"):
        ShardSet("gopher://clinic/own", cache)
    with pytest.raises(ShardError, match=r"cannot hold the index and one shard of http.*raise --data\.cache_gb"):
        ShardSet(f"{http.url}/own", ShardCache(tmp_path / "cache", 4000))
    known = sys.modules["fsspec.registry"]._registry
    for missing, scheme in (("fsspec", "http"), ("aiohttp", "http"), ("s3fs", "s3")):
        with monkeypatch.context() as patch:
            forget_filesystems(patch)
            patch.setitem(sys.modules, missing, None)
            patch.delitem(known, "s3", raising=False)
            with pytest.raises(ShardError, match=r'pip install -e "\.\[remote\]"'):
                ShardSet(f"{scheme}://x/own", cache)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"shards": [], "index": {"sha256": "0"}}', b"<html>"])
def test_a_manifest_that_is_none(tmp_path, cache, content):
    (tmp_path / "manifest.json").write_bytes(content or b" ")
    with LoopbackServer(tmp_path) as server, pytest.raises(ShardError, match=r"http.*manifest\.json is not a readable"):
        ShardSet(server.url, cache)


def test_secrets_of_the_url_are_sent_and_not_printed(own, http, tmp_path):
    address = http.url.replace("//", "//user:hidden@") + "/own?sig=hidden%2Bkey&se=1"
    samples = ShardSet(address, ShardCache(tmp_path / "cache", ROOM, patience=0.2))
    assert same(samples, own)
    assert {r.query for r in http.requests} == {"sig=hidden%2Bkey&se=1"}
    assert "hidden" not in f"{samples.path} {samples.path!r} {samples.holdout().path}"
    caching.ShardCache.drop(samples._cache, samples._remote(0))
    for fault in ("503", "403", "404", "flip", "reset"):
        http.faults["shard-000000.tar"] = itertools.repeat(fault)
        with pytest.raises(ShardError, match=r"shard-000000\.tar") as caught:
            samples.image(0)
        assert "hidden" not in str(caught.value)
    assert not [p for p in samples._cache.folder.iterdir() if "hidden" in p.name or "own" in p.name]


def test_a_server_that_ignores_ranges(own, cache, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    with LoopbackServer(own.parent, ranges=False) as server:
        samples = ShardSet(f"{server.url}/own", cache)
        assert same(samples, own)
        assert len(server.paths(".tar")) == len(samples.shard_sizes)
        file = samples._remote(1)
        whole = (own / "shard-000001.tar").read_bytes()
        assert remote.read_range(file, 700, 1500, 0) == whole[700:1500]
        assert remote.read_range(file._replace(size=len(whole)), 0, 100, 0) == whole[:100]
        with pytest.raises(ShardError, match=r"it has \d+ bytes, not the"):
            remote.read_range(file._replace(size=len(whole) + 1), 0, 100, 0)


def test_what_came_before_a_fault_is_kept(own, http, cache, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    samples = ShardSet(f"{http.url}/own", cache)
    http.faults["shard-000000.tar"] = iter(["", "", "reset", "", "503"])
    samples.image(0)
    size = (own / "shard-000000.tar").stat().st_size
    assert len(http.paths("shard-000000.tar")) == -(-size // 1000) + 2


def read_all(samples):
    return sum(int(samples.image(i).sum()) for i in range(len(samples)))


def _reading(address, folder, stall, results):
    remote.STALL = stall
    results.put(read_all(ShardSet(address, ShardCache(folder, ROOM, 5))))


@pytest.mark.parametrize(
    ("served", "method"),
    [("http", "fork"), ("s3", "fork"), ("http", "spawn"), pytest.param("s3", "spawn", marks=pytest.mark.slow)],
    indirect=["served"],
)
def test_processes_share_one_download(served, own, cache, method):
    server, address = served
    parent = ShardSet(address, cache)
    parent.image(0)  # the parent has used the protocol before it forks
    parent.prefetch([1])
    expected = read_all(ShardSet(own))
    server.faults["shard-000003.tar"] = iter(["slow"])  # so that all of them meet there
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=_reading, args=(address, cache.folder, 5, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    with context.Pool(2) as pool:
        assert pool.map(read_all, [parent] * 2) == [expected] * 2
    assert [results.get(timeout=120) for _ in workers] == [expected] * 3
    for worker in workers:
        worker.join()
    assert read_all(parent) == expected
    shards = server.paths(".tar")
    assert sorted(shards) == sorted(set(shards))
    assert len(server.paths("own/index.npy")) == 1
    assert len(pickle.dumps(parent)) < 20_000


def test_the_bound_holds_while_more_is_read_than_fits(own, http, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(caching, "TOUCH_EVERY", 0.0)
    biggest = max(p.stat().st_size for p in own.glob("*.tar"))
    limit = (own / "index.npy").stat().st_size + 2 * biggest
    cache = ShardCache(tmp_path / "cache", limit, 5)
    samples = ShardSet(f"{http.url}/own", cache)
    local = ShardSet(own)
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(size_of(cache.folder))

    def read(seed):
        for i in np.random.default_rng(seed).permutation(len(local)).tolist() * 2:
            assert np.array_equal(samples.image(i), local.image(i))
            samples.prefetch([i % len(samples.shard_sizes)])
        return True

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = []
    readers = [threading.Thread(target=lambda s=s: results.append(read(s))) for s in range(3)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    done.set()
    watcher.join()
    assert results == [True] * 3
    assert biggest < max(seen) <= limit
    assert capsys.readouterr().err == ""  # all of it came through the cache
    assert len(http.paths(".tar")) > len(samples.shard_sizes)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=25), st.integers(3000, 12_000))
def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path_factory, uses, limit):
    """Against a model: files of 500 to 3000 bytes, each use marks a file, the oldest give way."""
    cache = ShardCache(tmp_path_factory.mktemp("lru") / "cache", limit, 0)
    memory = fsspec.filesystem("memory")
    held: list[int] = []
    for step, use in enumerate(uses):
        content = bytes([use]) * (500 * (use + 1))
        memory.pipe_file(f"/lru/{use}.tar", content)
        file = RemoteFile(Url(f"memory://lru/{use}.tar"), len(content), remote.hashlib.sha256(content).hexdigest())
        assert cache.read(file, 10, 20) == content[10:30]
        os.utime(cache._place(file), (1000 + step, 1000 + step))
        held = [h for h in held if h != use]
        while sum(500 * (h + 1) for h in held) + len(content) > limit:
            held.pop(0)
        held.append(use)
        assert sorted(p.stat().st_size for p in cache.folder.glob("*.tar")) == sorted(500 * (h + 1) for h in held)
        assert size_of(cache.folder) <= limit


def test_strangers_in_the_folder_stay_and_an_index_outlives_shards(own, http, tmp_path):
    cache = ShardCache(tmp_path / "cache", (own / "index.npy").stat().st_size + 20_000, 5)
    cache.folder.mkdir()
    (cache.folder / "thesis.tar").write_bytes(bytes(10_000))
    samples = ShardSet(f"{http.url}/own", cache)
    read_all(samples)
    assert (cache.folder / "thesis.tar").stat().st_size == 10_000
    assert len(list(cache.folder.glob("*.npy"))) == 1
    assert len(list(cache.folder.glob("*.tar"))) < len(samples.shard_sizes)


def test_a_vanished_folder_is_survived(own, http, cache, capsys):
    samples = ShardSet(f"{http.url}/own", cache)
    local = ShardSet(own)
    for i in range(len(local)):
        if i % 3 == 0:
            shutil.rmtree(cache.folder)
        assert np.array_equal(samples.image(i), local.image(i))
    again = pickle.loads(pickle.dumps(samples))
    shutil.rmtree(cache.folder)
    assert same(again, own)
    assert capsys.readouterr().err == ""


def test_a_folder_that_vanishes_during_a_download(own, http, cache):
    samples = ShardSet(f"{http.url}/own", cache)
    http.faults["shard-000000.tar"] = iter(["slow"])
    threading.Timer(0.2, shutil.rmtree, [cache.folder]).start()
    assert same(samples, own)
    assert same(samples, own)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
import data_shards.shards.remote  # before the limit
from data_shards.shards.cache import ShardCache
from data_shards.shards.shard_set import ShardSet
address, folder, own, size = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
samples, local = ShardSet(address, ShardCache(Path(folder), 10**9, 5)), ShardSet(own)
for i in range(len(local)):
    assert np.array_equal(samples.image(i), local.image(i)) and samples.meta(i) == local.meta(i)
print("equal", len(local))
"""


@pytest.mark.parametrize("fits", ["nothing", "index"])
def test_a_disk_that_cannot_be_written_is_survived(http, own, cache, fits):
    address = f"{http.url}/own"
    size = (own / "index.npy").stat().st_size if fits == "index" else 100
    command = [sys.executable, "-c", LIMITED, address, str(cache.folder), str(own), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, f"equal {len(ShardSet(own))}\n"), done.stderr
    assert re.fullmatch(r"warning: the shard cache .* failed \(File too large\); samples are read .*\n", done.stderr)
    assert not list(cache.folder.glob("*.tar"))
    assert not list(cache.folder.glob("*.part"))


def test_a_full_disk_first_gives_up_old_shards(own, http, cache, monkeypatch, capsys):
    samples = ShardSet(f"{http.url}/own", cache)
    held = 2
    real = os.posix_fallocate

    def allocate(descriptor, offset, size):  # a disk that has room for two shards beside the index
        if len(list(cache.folder.glob("*.tar"))) >= held:
            raise OSError(28, "No space left on device")
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    assert same(samples, own)
    assert capsys.readouterr().err == ""
    held = 0
    assert same(samples, own)
    assert capsys.readouterr().err.count("No space left on device") == 1
    held = 2
    monkeypatch.setattr(samples._cache, "_left_alone_until", 0.0)
    samples.image(0)
    assert list(cache.folder.glob("*.tar"))  # used again as soon as there is room


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
def test_a_damaged_cached_file_is_fetched_again(own, http, cache, damage):
    address = f"{http.url}/own"
    assert same(ShardSet(address, cache), own)
    for path in [*cache.folder.glob("*.tar"), *cache.folder.glob("*.npy")]:
        raw = path.read_bytes()
        flipped = raw[:1024] + bytes(b ^ 255 for b in raw[1024:])
        path.write_bytes({"flipped": flipped, "short": raw[:-7], "long": raw + b"x", "empty": b""}[damage])
    samples = ShardSet(address, cache)
    local = ShardSet(own)
    assert all(np.array_equal(samples.image(i), local.image(i)) for i in range(len(local)))
    assert len(http.paths(".tar")) == 2 * len(samples.shard_sizes)


def test_a_sample_that_was_packed_corrupt_is_named(own, tmp_path, cache):
    shutil.copytree(own, tmp_path / "bad")
    local = ShardSet(own)
    path = tmp_path / "bad" / "shard-000000.tar"
    raw = bytearray(path.read_bytes())
    begin = int(local.index[1]["image"])
    raw[begin : begin + 200] = bytes(200)
    path.write_bytes(raw)
    manifest = tmp_path / "bad" / "manifest.json"
    old = local.manifest["shards"][0]["sha256"]
    manifest.write_text(manifest.read_text().replace(old, remote.hashlib.sha256(raw).hexdigest()))
    with LoopbackServer(tmp_path) as server:
        samples = ShardSet(f"{server.url}/bad", cache)
        with pytest.raises(ShardError, match=rf"sample {local.key(1)} in http.*shard-000000\.tar is corrupt"):
            samples.image(1)
        samples.image(0)


def test_kill_9_in_a_download(own, http, cache):
    address = f"{http.url}/own"
    samples = ShardSet(address, cache)
    http.faults["shard-000000.tar"] = iter(["stall"])
    context = multiprocessing.get_context("fork")
    victim = context.Process(target=_reading, args=(address, cache.folder, 30, context.Queue()))
    victim.start()
    until = time.monotonic() + 10
    while not http.paths("shard-000000.tar") and time.monotonic() < until:
        time.sleep(0.01)
    (part,) = cache.folder.glob("*.part")
    assert part.stat().st_size == (own / "shard-000000.tar").stat().st_size  # it counts, in full
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    began = time.monotonic()
    assert same(samples, own)
    assert time.monotonic() - began < 3
    assert not list(cache.folder.glob("*.part"))


def test_what_a_killed_download_left_makes_way(own, http, tmp_path):
    biggest = max(p.stat().st_size for p in own.glob("*.tar"))
    cache = ShardCache(tmp_path / "cache", (own / "index.npy").stat().st_size + biggest, 5)
    cache.folder.mkdir()
    left = cache.folder / f"{'0' * 64}.part"
    left.write_bytes(bytes(biggest))
    assert same(ShardSet(f"{http.url}/own", cache), own)
    assert not left.exists()


def test_a_fork_while_the_parent_downloads_keeps_no_lock(own, http, cache):
    """The parent's thread holds a lock when a child is forked: the child must neither hold nor free it."""
    samples = ShardSet(f"{http.url}/own", cache)
    http.faults["shard-000000.tar"] = iter(["slow"])
    samples.prefetch([0])
    until = time.monotonic() + 10
    while not http.paths("shard-000000.tar") and time.monotonic() < until:
        time.sleep(0.01)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_all, [samples] * 2) == [read_all(ShardSet(own))] * 2
    shards = http.paths(".tar")
    assert sorted(shards) == sorted(set(shards))
    assert not caching._held


def test_prefetch_fetches_ahead_and_the_newest_wish_counts(own, http, cache):
    samples = ShardSet(f"{http.url}/own", cache)
    last = len(samples.shard_sizes) - 1
    http.faults["shard-000000.tar"] = iter(["slow"])
    began = time.monotonic()
    samples.prefetch([0, 1])
    while not http.paths(".tar") and time.monotonic() < began + 10:
        time.sleep(0.01)
    samples.prefetch([last, 2])  # shard 1 is not wished for any more
    assert time.monotonic() - began < 0.4
    while len(list(cache.folder.glob("*.tar"))) < 3 and time.monotonic() < began + 10:
        time.sleep(0.02)
    assert [Path(p).stem for p in http.paths(".tar")] == ["shard-000000", f"shard-{last:06d}", "shard-000002"]
    asked = len(http.requests)
    samples.image(len(samples) - 1)
    samples.image(0)
    assert len(http.requests) == asked


def test_a_failing_prefetch_is_silent_and_the_reader_reports(own, http, tmp_path, capfd):
    samples = ShardSet(f"{http.url}/own", ShardCache(tmp_path / "cache", ROOM, 0.5))
    http.faults["shard-000000.tar"] = itertools.repeat("503")
    samples.prefetch([0])
    time.sleep(0.1)
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"shard-000000\.tar .*503 Service Unavailable"):
        samples.image(0)
    assert time.monotonic() - began < 2  # the time that the prefetch tried counts
    samples.prefetch([1])
    until = time.monotonic() + 5
    while not list(cache_files(samples)) and time.monotonic() < until:
        time.sleep(0.02)
    assert list(cache_files(samples))  # the thread lives on
    assert capfd.readouterr() == ("", "")


def cache_files(samples):
    return samples._cache.folder.glob("*.tar")


ENDING = """
import sys
from pathlib import Path
from data_shards.shards.cache import ShardCache
from data_shards.shards.shard_set import ShardSet
samples = ShardSet(sys.argv[1], ShardCache(Path(sys.argv[2]), 10**9, 300))
samples.prefetch(range(len(samples.shard_sizes)))
import time; time.sleep(0.3)
print("ends")
"""


def test_a_process_ends_while_its_prefetch_hangs(served, cache):
    server, address = served
    server.faults[".tar"] = itertools.repeat("stall")
    command = [sys.executable, "-c", ENDING, address, str(cache.folder)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
    assert time.monotonic() - began < 100


def test_a_local_disk_that_fails_is_one_line(own, monkeypatch):
    samples = ShardSet(own)

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(ShardError, match=r"cannot read the shard .*shard-000000\.tar \(Input/output error\): "):
        samples.image(0)


def test_ten_thousand_shards_start_within_seconds(tmp_path, cache):
    """10,000 shards of 100 samples: the manifest is the only thing that grows with them beside the mapped index."""
    index = np.zeros(10**6, INDEX_DTYPE)
    index["shard"] = np.repeat(np.arange(10_000), 100)
    np.save(tmp_path / "index.npy", index)
    raw = (tmp_path / "index.npy").read_bytes()
    shards = [
        {"name": f"shard-{i:06d}.tar", "bytes": 6 * 10**7, "samples": 100, "sha256": f"{i:064x}"} for i in range(10_000)
    ]
    stated = {"name": "index.npy", "bytes": len(raw), "sha256": remote.hashlib.sha256(raw).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards, "index": stated}))
    with LoopbackServer(tmp_path) as server:
        began = time.monotonic()
        samples = ShardSet(server.url, cache)
        assert (len(samples), samples.shard_sizes.shape) == (10**6, (10_000,))
        assert time.monotonic() - began < 5
    assert isinstance(samples.index, np.memmap)
