"""What every rank and worker delivers at each step: the stream, whole and in its order, whatever happens."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import smoke
from stand_ins import Sized

from data_shards.shards.remote import Url
from data_shards.shards.stream import ShardError, ShardSet, Stream
from pretrain.config.schema import Config, ConfigError, DataConfig
from pretrain.data.multicrop_loader import SampleRecord, StepSampler, view_batches
from pretrain.data.shard_sets import check_cache
from pretrain.models.normalization import normalised

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=200)
@given(
    sets=st.lists(SIZES, min_size=1, max_size=3),
    weighted=st.booleans(),
    share=st.integers(1, 7),
    tries=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 9)), min_size=1, max_size=5),
    group=st.integers(1, 4),
)
def test_kills_and_any_number_of_ranks_leave_every_epoch_exact(sets, weighted, share, tries, group):
    """A try is (ranks, steps until it is killed); the next continues from the step reached, with other ranks."""
    weights = [i + 1.0 for i in range(len(sets))] if weighted else None
    batch, step, delivered = 12 * share, 0, []
    for ranks, steps in tries:
        stream = Stream([Sized(s) for s in sets], weights, 3, group)  # anew, as a process that starts has it
        shares = [list(StepSampler(stream, batch, step, step + steps, rank, ranks)) for rank in range(ranks)]
        assert {len(batches) for batches in shares} == {steps}
        for slices in zip(*shares, strict=True):
            assert {len(addresses) for addresses in slices} == {batch // ranks}
            delivered += [address for addresses in slices for address in addresses]
        step += steps
    assert delivered == Stream([Sized(s) for s in sets], weights, 3, group).addresses(0, step * batch)
    cycles = [[(i, n) for i, s in enumerate(sets) for n in range(sum(s))]]
    if weighted:
        cycles = [[(i, n) for n in range(sum(s))] for i, s in enumerate(sets)]
    for everything in cycles:
        mine = [(a.source, a.index) for a in delivered if (a.source, a.index) in set(everything)]
        for first in range(0, len(mine) - len(everything) + 1, len(everything)):
            assert sorted(mine[first : first + len(everything)]) == everything


def write_shard(path, first, count, broken=()):
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            pixels = np.add.outer(np.arange(40), 2 * np.arange(30)) + i  # a slope, so that no two views of it are equal
            image = cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes()
            for name, content in ((f"s{i}.png", b"oops" if i in broken else image), (f"s{i}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def configured(**data):
    views = dataclasses.replace(Config().views, global_size=(16, 12), local_size=(8, 8), local_count=1)
    return Config(views=views, data=DataConfig(**data))


def records(batches):
    return [SampleRecord._make(row) for batch in batches for row in batch.samples.tolist()]


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ranks=st.sampled_from([1, 2, 4]),
    workers=st.lists(st.integers(0, 3), min_size=1, max_size=3),
)
def test_worker_processes_change_neither_samples_nor_views(tmp_path_factory, sizes, ranks, workers):
    folder = tmp_path_factory.mktemp("shards")
    for number, size in enumerate(sizes):
        write_shard(folder / f"{number}.tar", 10 * number, size)
    stream = Stream([ShardSet(folder)], None, seed=5, group=2)
    expected = records(view_batches(configured(batch_size=8, workers=0), stream, 0, 2 * len(workers)))
    assert len({record.views for record in expected}) > 1
    found = []
    for piece, count in enumerate(workers):  # killed after every second step
        config = configured(batch_size=8, workers=count)
        pieces = [view_batches(config, stream, 2 * piece, 2 * piece + 2, rank, ranks) for rank in range(ranks)]
        for batches in zip(*pieces, strict=True):
            found += records(batches)
    assert found == expected


@pytest.fixture
def broken(tmp_path):
    """Two sets; samples 3 and 12 of the first cannot be decoded, nor any of its last shard."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_shard(tmp_path / "a" / "0.tar", 0, 10, broken={3})
    write_shard(tmp_path / "a" / "1.tar", 10, 10, broken={12})
    write_shard(tmp_path / "a" / "2.tar", 20, 2, broken={20, 21})
    write_shard(tmp_path / "b" / "0.tar", 30, 5)
    return Stream([ShardSet(tmp_path / "a"), ShardSet(tmp_path / "b")], None, seed=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_replaced_by_another_of_its_set_alike_everywhere(broken, workers):
    config = configured(batch_size=6, workers=workers, bad_samples=4)
    whole = records(view_batches(config, broken, 0, 18))
    assert len(whole) == 108
    bad = {record.index for record in whole if record.read != record.index}
    assert bad == {3, 12, 20, 21}
    ends = broken.sets[0].shard_sizes.cumsum()
    for record in whole:
        assert record.read not in bad or record.source == 1
        if record.index in (3, 12) and record.source == 0:
            assert np.searchsorted(ends, record.read, side="right") == np.searchsorted(ends, record.index, side="right")
    first = {}
    assert all(first.setdefault(r[:3], r) == r for r in whole)
    halves = [list(view_batches(config, broken, 4, 18, rank, 2)) for rank in range(2)]
    assert [r for batches in zip(*halves, strict=True) for r in records(batches)] == whole[24:]


def test_a_substitute_has_other_views_than_in_its_own_place(broken):
    whole = records(view_batches(configured(batch_size=6, workers=0, bad_samples=4), broken, 0, 60))
    own = {(r.source, r.epoch, r.index): r.views for r in whole if r.read == r.index}
    again = [(own[key], r.views) for r in whole if r.read != r.index and (key := (r.source, r.epoch, r.read)) in own]
    assert again
    assert sum(a == b for a, b in again) == 0


def test_without_leave_the_first_unreadable_sample_ends_it_by_shard_and_key(broken):
    with pytest.raises(ShardError, match=r"sample s\d+ in .*\.tar is corrupt"):
        list(view_batches(configured(batch_size=6, workers=0), broken, 0, 18))


def test_a_set_of_nothing_readable_ends_it_whatever_is_allowed(tmp_path):
    write_shard(tmp_path / "0.tar", 0, 4, broken=range(4))
    with pytest.raises(ShardError, match="is corrupt"):
        list(
            view_batches(
                configured(batch_size=2, workers=0, bad_samples=99), Stream([ShardSet(tmp_path)], None, 0), 0, 2
            )
        )


@pytest.mark.parametrize(("weighted", "limit"), [(False, 1.2), (True, 1.5)])
def test_a_cache_too_small_for_two_groups_is_refused_by_its_numbers(weighted, limit):
    big = SimpleNamespace(path=Url("s3://a"), manifest={"shards": [{"bytes": 3 * 10**8}] * 20})
    small = SimpleNamespace(path=Url("s3://b"), manifest={"shards": [{"bytes": 10**8}] * 3})
    local = SimpleNamespace(path=Path("c"), manifest={"shards": [{"bytes": 10**12}]})
    sets = [big, small, local]
    check_cache(Config(data=DataConfig(shard_group=2, cache_gb=limit * 1.1)), sets, weighted)
    with pytest.raises(ConfigError, match=rf"take up to {limit} GB, more than --data.cache_gb .* --data.shard_group"):
        check_cache(Config(data=DataConfig(shard_group=2, cache_gb=limit * 0.9)), sets, weighted)
    with pytest.raises(ConfigError, match=r"--timeout 100 ends the run before --data.patience 300"):
        check_cache(Config(timeout=100), sets, weighted)
    check_cache(Config(timeout=100), [local], weighted)


def deep_shard(path, count, bits):
    """Crops of `bits` in uint16, every third one of 8 bits in uint8."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            slope = np.add.outer(np.linspace(0, 0.6, 60), np.linspace(0.1, 0.3, 45)) + rng.uniform(0, 0.1)
            pixels = (slope * (2**bits - 1)).astype(np.uint16) if i % 3 else (slope * 255).astype(np.uint8)
            content = cv2.imencode(".png", pixels)[1].tobytes()
            meta = json.dumps({"bits": bits if i % 3 else 8, "patient": f"p{i}", "kind": str(i % 2)}).encode()
            for name, part in ((f"s{i}.png", content), (f"s{i}.json", meta)):
                info = tarfile.TarInfo(name)
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    return path


def test_a_batch_of_several_depths_keeps_their_levels_and_their_grays(tmp_path):
    stream = Stream([ShardSet(deep_shard(tmp_path / "0.tar", 12, 12))], None, seed=0)
    views = next(iter(view_batches(configured(batch_size=12, workers=0), stream, 0, 1))).views[0]
    assert views.dtype == torch.float32
    assert 0 <= views.min() < views.max() <= 1
    assert len(torch.unique(views)) > 1000
    means = views.mean(dim=(1, 2, 3))  # 8 and 12 bits alike: taken for 16 bits, the deep ones would lie below 0.07
    assert means.min() > 0.15
    shallow = (views * 255).round().to(torch.uint8)
    torch.testing.assert_close(normalised(views, 0.5, 0.25), normalised(shallow, 0.5, 0.25), atol=0.01, rtol=0)


def test_deep_crops_train_and_are_scored(tmp_path):
    deep_shard(tmp_path / "deep.tar", 48, 12)
    deep = tmp_path / "deep.tar"
    smoke(tmp_path / "run", deep, "--steps", 2, "--eval.shards", deep, "--eval.label", "kind")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["scores"]["knn"]["crops"] == 48
    sheet = cv2.imread(str(tmp_path / "run" / "views.png"))
    assert sheet is not None
    assert sheet.std() > 20
