"""The reading side: index, shard sets, the exact stream."""

import contextlib
import io
import json
import multiprocessing
import pickle
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stand_ins import Sized

from data_shards.pack.pipeline import PackConfig, pack
from data_shards.shards import shard_set
from data_shards.shards.stream import Address, ShardError, ShardSet, Stream, epoch_order
from data_shards.shards.tar_index import INDEX_DTYPE, index_shards, walk_tar

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def write_tar(path, members, fmt=tarfile.USTAR_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=fmt) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def encoded(value, suffix=".png", shape=(20, 10)):
    return cv2.imencode(suffix, np.full(shape, value, np.uint8))[1].tobytes()


def foreign(path, count, start=0):
    members = []
    for i in range(start, start + count):
        members += [(f"s{i}.png", encoded(i)), (f"s{i}.json", json.dumps({"id": f"s{i}", "n": i}).encode())]
    return write_tar(path, members)


unhurried = settings(deadline=None)  # the machine is shared


@unhurried
@given(SIZES, st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 5))
def test_an_epoch_holds_every_sample_once_and_needs_few_shards_at_a_time(sizes, seed, epoch, group):
    order = epoch_order(sizes, seed, epoch, group)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert np.array_equal(order, epoch_order(np.array(sizes), seed, epoch, group))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    entered, done = [], 0
    while done < len(order):  # the order falls into runs of `group` whole shards
        run = set(shard_of[done : done + 1].tolist())
        end = done
        while end < len(order) and (len(run | {int(shard_of[end])}) <= group):
            run.add(int(shard_of[end]))
            end += 1
        assert not run & set(entered)
        entered += run
        done = end
    assert sorted(entered) == list(range(len(sizes)))


@unhurried
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**40), st.integers(0, 9))
def test_a_set_of_one_group_keeps_the_order_that_published_figures_were_taken_in(sizes, seed, epoch):
    """Order 1, written out: one generator permutes the shards, then their samples."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    starts = np.cumsum([0, *sizes])
    samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in rng.permutation(len(sizes))])
    rng.shuffle(samples)
    assert np.array_equal(epoch_order(sizes, seed, epoch, 5), samples)


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order([50, 50], seed, epoch, 2)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@unhurried
@given(st.lists(SIZES, min_size=1, max_size=3), st.integers(0, 99), st.data())
def test_without_weights_the_stream_is_epochs_on_end(sets, seed, data):
    stream = Stream([Sized(s) for s in sets], None, seed, group=2)
    n = len(stream)
    assert n == sum(map(sum, sets))
    epoch = data.draw(st.integers(0, 1000))
    addresses = stream.addresses(epoch * n, n)
    assert sorted((a.source, a.index) for a in addresses) == [(s, i) for s, z in enumerate(sets) for i in range(sum(z))]
    assert {a.epoch for a in addresses} == {epoch}


@unhurried
@given(
    st.lists(SIZES, min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 99),
    st.integers(0, 10**9),
    st.lists(st.integers(0, 70), min_size=1, max_size=6),
)
def test_an_address_depends_on_its_position_only(sets, weighted, seed, start, cuts):
    weights = [i + 0.5 for i in range(len(sets))] if weighted else None
    whole = Stream([Sized(s) for s in sets], weights, seed).addresses(start, sum(cuts))
    pieces, used = [], Stream([Sized(s) for s in sets], weights, seed)
    for i, length in reversed(list(enumerate(cuts))):  # in any order, with a used cache
        pieces.insert(0, used.addresses(start + sum(cuts[:i]), length))
    assert [a for piece in pieces for a in piece] == whole


WEIGHTS = st.one_of(
    st.lists(st.floats(0.001, 1000), min_size=2, max_size=8), st.lists(st.integers(1, 20), min_size=2, max_size=8)
)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 10**12))
@example([186.75, 528.75, 634.25, 634.25, 634.25, 634.25], 0)
def test_any_thousand_positions_have_every_share_right_to_one_sample(weights, start):
    if min(weights) / sum(weights) < 1e-4:
        return  # under the resolution of shares
    stream = Stream([Sized([7, 5])] * len(weights), weights, 0)
    sources, _ = stream._schedule.at(np.arange(start, start + 130_000))
    for source, weight in enumerate(weights):
        count = np.concatenate([[0], np.cumsum(sources == source)])
        error = count[1000:] - count[:-1000] - 1000 * weight / sum(weights)
        assert np.abs(error).max() <= 1 + 1e-6
        # Shares move by at most 2 parts of 1/32000 to stay off whole samples; one set may take up all others' moves.
        assert abs(count[128_000] - 128_000 * weight / sum(weights)) <= 128_000 / 32_000 * 2 * len(weights)


@unhurried
@given(st.lists(SIZES, min_size=2, max_size=4), st.integers(0, 9))
def test_with_weights_every_set_runs_through_its_own_exact_epochs(sets, seed):
    stream = Stream([Sized(s) for s in sets], [1 + i for i in range(len(sets))], seed)
    drawn = stream.addresses(0, 600)
    for source, sizes in enumerate(sets):
        mine = [a for a in drawn if a.source == source]
        n = sum(sizes)
        for epoch in range(len(mine) // n):
            part = mine[epoch * n : (epoch + 1) * n]
            assert {a.epoch for a in part} == {epoch}
            assert sorted(a.index for a in part) == list(range(n))


def test_a_far_position_costs_what_a_near_one_does():
    stream = Stream([Sized([500] * 20), Sized([300] * 5)], [1, 3], 0)
    stream.addresses(10**15, 64)
    began = time.perf_counter()
    for step in range(50):
        stream.addresses(10**15 + 64 * step, 64)
    assert time.perf_counter() - began < 0.5
    assert all(len(cycle._groups) <= 8 and len(cycle._epochs) <= 3 for cycle in stream._cycles)


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2], [1, float("nan")], [1, 1e-9]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ShardError, match="weight"):
        Stream([Sized([3]), Sized([4])], weights, 0)


def test_foreign_shards_read_as_they_are(tmp_path):
    foreign(tmp_path / "a.tar", 5)
    foreign(tmp_path / "b.tar", 3, start=5)
    samples = ShardSet(tmp_path)
    assert len(samples) == 8
    assert samples.shard_sizes.tolist() == [5, 3]
    assert samples.manifest == {}
    for i in range(8):
        assert samples.image(i).shape == (20, 10)
        assert samples.image(i)[0, 0] == i == samples.meta(i)["n"]
        assert samples.key(i) == f"s{i}"
    assert len(ShardSet(tmp_path / "b.tar")) == 3


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_header_walk_agrees_with_tarfile(tmp_path, fmt):
    long = "folder/" * 20 + "x" * 60 if fmt != tarfile.USTAR_FORMAT else "folder/" * 12 + "x" * 60
    members = [
        (f"{long}.jpg", encoded(9, ".jpg")),
        (f"{long}.json", b'{"id": 1}'),
        ("plain.webp", encoded(5, ".webp")),
        ("no image.json", b"{}"),
        ("zähne/b.c.png", encoded(3)),
        ("zähne/b.png", encoded(4)),
        ("last.cls", b"7"),
        ("last.jpeg", encoded(8, ".jpg")),
    ]
    path = write_tar(tmp_path / "f.tar", members, fmt)
    index = index_shards([path])
    assert index.dtype == INDEX_DTYPE
    assert INDEX_DTYPE.itemsize <= 40
    with tarfile.open(path) as tar:
        expected = {info.offset_data: info.size for info in tar if info.name.endswith(("jpg", "jpeg", "webp", "b.png"))}
    assert dict(zip(index["image"].tolist(), index["image_size"].tolist(), strict=True)) == expected
    samples = ShardSet(path)
    assert [int(samples.image(i).mean().round()) for i in range(4)] == [9, 5, 4, 8]
    assert samples.meta(0) == {"id": 1}
    assert samples.meta(3) == {"id": "last"}


@pytest.mark.parametrize(("size", "pax"), [(b"-0001000", b""), (b"0000_100", b""), (b"\xff" * 12, b""), (b"3", b"1 a")])
def test_numbers_that_are_none_end_a_walk(tmp_path, size, pax):
    """A negative size would have it walk in a circle."""

    def header(name, size, kind):
        raw = bytearray(512)
        raw[: len(name)], raw[124 : 124 + len(size)], raw[156:157], raw[257:263] = name, size, kind, b"ustar\0"
        raw[148:156] = b"        "
        raw[148:156] = b"%06o\0 " % sum(raw)
        return bytes(raw)

    before = header(b"x", b"%o" % len(pax), b"x") + pax.ljust(512, b"\0") if pax else b""
    path = tmp_path / "f.tar"
    path.write_bytes(before + header(b"a.png", b"3", b"0") + b"abc".ljust(512, b"\0") + header(b"b.png", size, b"0"))
    with pytest.raises(ShardError, match=r"damaged tar header at byte 1024|cut short"):
        list(walk_tar(path))


def test_colour_and_16_bits_from_elsewhere(tmp_path):
    deep = np.arange(200, dtype=np.uint16).reshape(10, 20) * 300
    colour = np.zeros((10, 20, 3), np.uint8)
    colour[..., 1] = 100
    members = [("a.png", cv2.imencode(".png", deep)[1].tobytes()), ("b.png", cv2.imencode(".png", colour)[1].tobytes())]
    samples = ShardSet(write_tar(tmp_path / "f.tar", members))
    assert np.array_equal(samples.image(0), deep)
    assert samples.image(1).shape == (10, 20)
    assert samples.image(1)[0, 0] == 59  # BT.601 weight of green


def _sum_of(samples):
    return sum(int(samples.image(i).sum()) for i in range(len(samples)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_shard_set_travels_to_workers(tmp_path, own, method):
    samples = ShardSet(own)
    expected = _sum_of(samples)
    assert len(pickle.dumps(samples)) < 20_000
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum_of, [samples] * 2) == [expected] * 2


@pytest.fixture
def own(tmp_path):
    """A finished pack of its own, small shards."""
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    for i in range(12):
        cv2.imwrite(str(source / f"{i}.png"), rng.integers(0, 255, (40, 30), dtype=np.uint8))
    out = tmp_path / "own"
    pack(PackConfig([source], out, key=b"public", quiet=True, shard_samples=5))
    return out


def test_own_shards_stream(own):
    samples = ShardSet(own)
    assert samples.shard_sizes.tolist() == [5, 5, 2]
    stream = Stream([samples], None, seed=1)
    ids = [stream.meta(a)["id"] for a in stream.addresses(0, 24)]
    assert len(set(ids[:12])) == len(set(ids[12:])) == 12
    assert stream.addresses(3, 1)[0] == Address(0, 0, int(epoch_order([5, 5, 2], 1, 0)[3]))
    assert stream.image(Address(0, 0, 0)).shape == (40, 30)
    again = pickle.loads(pickle.dumps(stream))
    assert again.addresses(5, 9) == stream.addresses(5, 9)


def test_a_file_stays_open_while_it_is_read(own, monkeypatch):
    """Threads that open a shard at once get a descriptor each and the set keeps one; here it keeps none at all."""
    expected = [ShardSet(own).image(i) for i in range(12)]
    monkeypatch.setattr(shard_set, "OPEN_FILES", 0)
    samples = ShardSet(own)
    assert all(np.array_equal(samples.image(i), expected[i]) for i in range(12))


def test_nothing_there(tmp_path):
    with pytest.raises(ShardError, match=r"no shards at .*nowhere"):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"no \.tar shard in"):
        ShardSet(tmp_path)
    write_tar(tmp_path / "x.tar", [("readme.txt", b"hello")])
    with pytest.raises(ShardError, match="no sample with an image"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 512, 3000, -512])
def test_a_cut_shard_is_named(own, tmp_path, keep):
    for path in (own / "shard-000001.tar", foreign(tmp_path / "foreign.tar", 6)):
        whole = path.read_bytes()
        path.write_bytes(whole[: keep if keep >= 0 else len(whole) + keep - 10_240])
        with pytest.raises(ShardError, match=rf"{path.name} is cut short") as caught:
            ShardSet(path.parent if path.parent == own else path)
        assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(own):
    (own / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar is missing"):
        ShardSet(own)


def test_a_corrupt_member_is_named_by_shard_and_key(own):
    samples = ShardSet(own)
    row, key = samples.index[6], samples.key(6)
    with (own / "shard-000001.tar").open("r+b") as file:
        file.seek(int(row["image"]) + int(row["image_size"]) // 2)
        file.write(b"\xff" * 8)
    with pytest.raises(ShardError, match=rf"sample {key} in .*shard-000001\.tar is corrupt"):
        ShardSet(own).image(6)
    ShardSet(own).image(5)


def test_another_index_is_refused(own):
    raw = bytearray((own / "index.npy").read_bytes())
    raw[-1] ^= 1
    (own / "index.npy").write_bytes(raw)
    with pytest.raises(ShardError, match=r"index\.npy is not the one"):
        ShardSet(own)
    (own / "index.npy").unlink()
    with pytest.raises(ShardError, match=r"index\.npy is missing"):
        ShardSet(own)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"shards": [{"name": "../x.tar", "bytes": 1}], "index": {}}', "\0"]
)
def test_a_manifest_that_is_none_is_refused(own, content):
    (own / "manifest.json").write_text(content)
    with pytest.raises(ShardError, match="not a readable manifest"):
        ShardSet(own)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_foreign_tars_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "f.tar"
    raw = bytearray(foreign(path, 3).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    Path(path).write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(ShardError):
        samples = ShardSet(path)
        for i in range(len(samples)):
            with contextlib.suppress(ShardError):
                samples.image(i)
            samples.meta(i)


def test_twelve_bits_in_sixteen_are_raised_as_their_json_says(tmp_path):
    deep = np.arange(200, dtype=np.uint16).reshape(10, 20) * 20
    image = cv2.imencode(".png", deep)[1].tobytes()
    members = [("a.png", image), ("a.json", b'{"bits": 12}'), ("b.png", image), ("b.json", b'{"bits": 11}')]
    samples = ShardSet(write_tar(tmp_path / "f.tar", members))
    np.testing.assert_array_equal(samples.image(0), np.rint(deep * (65535 / 4095)))
    with pytest.raises(ShardError, match="says bits 11 and holds grays up to 3980"):
        samples.image(1)
