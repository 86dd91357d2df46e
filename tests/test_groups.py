"""Duplicates and near duplicates: what is dropped, what is listed, and which patients become one."""

import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_shards.errors import PackError
from data_shards.inspect.verify import verify
from data_shards.pack.duplicates import Earlier, Patients
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key
from data_shards.shards.shard_set import ShardSet

KEY = Key(b"a public key for tests", None)


def scan(seed, shape=(300, 400)):
    coarse = np.random.default_rng(seed).random((24, 32)).astype(np.float32)
    return (cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)


def saved(pixels, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


def folder_of(place, images):
    """Radiographs with two boxes each, under their patient's name."""
    for name, raw in images.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(raw)
        (place / name).with_suffix(".txt").write_text("0 .5 .5 .3 .4\n1 .3 .5 .2 .4\n")
    return place


def packed(source, out, **options):
    return pack(PackConfig([source], out, **{"key": KEY.secret, "patient": "(p[0-9]+)", "quiet": True, **options}))


def near_lines(out):
    return [json.loads(line) for line in (out / "near.jsonl").read_text().splitlines()]


def patients_of(*folders):
    sets = [ShardSet(folder) for folder in folders]
    return {meta["radiograph"]: meta["patient"] for s in sets for meta in map(s.meta, range(len(s)))}


def patient(name):
    return KEY.id("patient", name)


IMAGES = {
    "p1/a.png": saved(scan(1)),
    "p2/b.jpg": saved(cv2.resize(scan(1), (300, 225), interpolation=cv2.INTER_AREA), "jpeg", quality=80),  # near
    "p3/c.bmp": saved(scan(2), "bmp"),
    "p4/d.png": saved(scan(2)),  # the same pixels
    "p5/e.png": saved(scan(3)),
    "p5/f.png": saved(scan(4)),
}


def test_copies_make_two_patients_one(tmp_path):
    manifest = packed(folder_of(tmp_path / "in", IMAGES), tmp_path / "out")
    assert manifest["ledgers"]["radiographs"] == {"seen": 6, "used": 5, "rejected": 1}
    assert manifest["statistics"]["patients"] == 3
    near, exact = sorted(near_lines(tmp_path / "out"), key=lambda line: -line["distance"])
    assert sorted(near["patients"]) == sorted([patient("p1"), patient("p2")])
    assert sorted(exact["patients"]) == sorted([patient("p3"), patient("p4")])
    assert 0 < near["distance"] <= 32
    assert exact["distance"] == 0
    groups = [{"p1", "p2"}, {"p3", "p4"}, {"p5"}]
    assert set(patients_of(tmp_path / "out").values()) == {min(map(patient, group)) for group in groups}
    assert verify(tmp_path / "out", quiet=True) == []


def test_near_duplicates_are_dropped_if_asked_for(tmp_path):
    manifest = packed(folder_of(tmp_path / "in", IMAGES), tmp_path / "out", drop_near=True)
    reasons = manifest["reasons"]["radiographs"]
    assert sorted(reasons) == [
        "a duplicate: the same pixels are in this pack",
        "nearly a duplicate of a radiograph of this pack (near.jsonl says how near)",
    ]
    assert manifest["ledgers"]["boxes"] == {"seen": 12, "used": 8, "rejected": 4}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    dropped = next(line for line in lines if line["ledger"] == "radiographs" and "nearly" in line["reason"])
    near = next(line for line in near_lines(tmp_path / "out") if line["distance"])
    assert [dropped["twin"], dropped["id"]] == near["radiographs"]


def test_near_duplicates_are_not_sought_among_crops_nor_where_it_is_said(tmp_path, capsys):
    source = folder_of(tmp_path / "in", IMAGES)
    packed(source, tmp_path / "crops", boxes="none", quiet=False)
    assert [line["distance"] for line in near_lines(tmp_path / "crops")] == [0]
    assert "not sought among crops" in capsys.readouterr().out
    assert "hash" not in ShardSet(tmp_path / "crops").meta(0)
    packed(source, tmp_path / "off", near_bits=-1)
    assert [line["distance"] for line in near_lines(tmp_path / "off")] == [0]
    packed(source, tmp_path / "asked", boxes="none", near_bits=32)
    assert len(near_lines(tmp_path / "asked")) == 2
    with pytest.raises(PackError, match="near_bits 128"):
        packed(source, tmp_path / "many", near_bits=128)


def test_an_earlier_pack_keeps_its_patients_and_its_side(tmp_path):
    """Clinics send archives monthly: copies of what came before join the patients as they were, wherever they are."""
    first = {f"p{i}/{i}.png": saved(scan(i)) for i in range(12)}
    again = {f"p{i + 50}/{i}.jpg": saved(scan(i), "jpeg", quality=85) for i in range(12)}
    fresh = {f"p{i}/{i}.png": saved(scan(i + 100)) for i in range(12, 20)}
    packed(folder_of(tmp_path / "one", first), tmp_path / "first", holdout=0.5)
    packed(folder_of(tmp_path / "two", again | fresh), tmp_path / "second", holdout=0.5, against=[tmp_path / "first"])
    lines = near_lines(tmp_path / "second")
    assert {line["in"] for line in lines} == {"an earlier pack"}
    assert len(lines) == 12
    sides = [patients_of(tmp_path / name / part) for name in ("first", "second") for part in ("", "holdout")]
    kept, held = set(sides[0].values()) | set(sides[2].values()), set(sides[1].values()) | set(sides[3].values())
    assert not kept & held
    assert len(kept | held) == 20
    third = {f"p{i + 50}/again.png": saved(scan(i + 200)) for i in range(12)}  # other radiographs of those patients
    folder_of(tmp_path / "three", third)
    first, second = tmp_path / "first", tmp_path / "second"
    for name, against in {  # a pattern of the shell names the holdouts as well
        "third": [first, second],
        "fourth": [first / "holdout", first, second, second / "holdout"],
    }.items():
        packed(tmp_path / "three", tmp_path / name, holdout=0.5, against=against)
        assert set(patients_of(tmp_path / name).values()) <= kept
        assert set(patients_of(tmp_path / name / "holdout").values()) <= held
    dropped = packed(tmp_path / "two", tmp_path / "dropped", against=[tmp_path / "first"], drop_near=True, holdout=0.5)
    assert dropped["ledgers"]["radiographs"] == {"seen": 20, "used": 8, "rejected": 12}


def test_a_patient_of_earlier_packs_stays_on_its_side():
    """Whatever share is asked for now; one who turns out to be on both sides is trained on, and told."""
    assert Patients(Earlier(trained={"00", "f1"}, held={"00"})).torn == [("00", "00")]
    patients = Patients(Earlier(trained={"00", "f1"}, held={"01", "f2", "80"}))
    assert [patients.is_held_out(id_, 0.5) for id_ in ("00", "f1", "01", "f2", "7f", "81")] == [
        *(False, False, True, True, True, False)
    ]
    assert [patients.is_held_out(id_, 0.0) for id_ in ("01", "f2", "02")] == [True, True, False]
    patients.join("02", "f2")
    assert patients.of("02") == "f2"
    assert patients.torn == []
    patients.join("80", "f1")
    assert patients.torn == [("f1", "80")]
    assert patients.of("80") == "f1"
    assert not patients.is_held_out("80", 1.0)


def test_archives_of_one_name_are_told(tmp_path, capsys):
    """Ids come of names, so the next month's export.zip gives other radiographs the same ones."""
    for month in (1, 2):
        packed(
            folder_of(tmp_path / str(month) / "export", {"a.png": saved(scan(month)), "b.png": saved(scan(month + 5))}),
            tmp_path / f"out{month}",
            boxes="none",
            patient=None,
            quiet=False,
            against=[tmp_path / "out1"] if month == 2 else [],
        )
    assert "2 radiographs have the ids of others in an earlier pack" in capsys.readouterr().out


def test_the_same_radiograph_at_another_depth_is_a_duplicate(tmp_path):
    """Fingerprints are of the highest 8 bits whatever --depth; where it matters, the deeper copy stays."""
    deep = scan(3).astype(np.uint16) << 4
    deep[0, 0] = 4095
    shallow = (deep >> 4).astype(np.uint8)
    options = {"boxes": "none", "patient": None}
    packed(folder_of(tmp_path / "in", {"a.png": saved(deep)}), tmp_path / "eight", depth=8, **options)
    following = folder_of(tmp_path / "next", {"b.tif": saved(deep, "tiff"), "c.png": saved(scan(4))})
    against = [tmp_path / "eight"]
    manifest = packed(following, tmp_path / "sixteen", depth=16, against=against, **options)
    assert manifest["ledgers"]["radiographs"] == {"seen": 2, "used": 1, "rejected": 1}
    for names in ("ab", "ba", "cd", "dc"):  # of which each has other ids
        both = {f"{names[0]}.png": saved(deep), f"{names[1]}.png": saved(shallow)}
        packed(folder_of(tmp_path / names, both), tmp_path / f"{names}-out", depth=16, **options)
        samples = ShardSet(tmp_path / f"{names}-out")
        assert [samples.meta(i)["source_bits"] for i in range(len(samples))] == [12]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15), st.sets(st.integers(0, 9)))
def test_groups_are_the_connected_components(pairs, known):
    patients = Patients(Earlier(trained={str(k) for k in known}))
    for one, other in pairs:
        patients.join(str(one), str(other))
    for start in range(10):
        reached, waiting = {start}, [start]
        while waiting:
            here = waiting.pop()
            for pair in pairs:
                if here in pair:
                    waiting += [n for n in pair if n not in reached]
                    reached |= set(pair)
        assert patients.of(str(start)) == str(min(reached & known or reached))


def test_label_files_of_duplicates_are_not_blamed(tmp_path):
    """A month that comes again: nothing is wrong with its boxes."""
    both = {"p1/a.png": saved(scan(2)), "p2/b.png": saved(scan(2)), "p3/c.png": saved(scan(5))}
    boxes = {name.replace(".png", ".txt"): b"0 0.5 0.5 0.4 0.4\n" for name in both}
    manifest = packed(folder_of(tmp_path / "in", both | boxes), tmp_path / "out", boxes="yolo", patient=None)
    assert manifest["reasons"]["files"] == {
        "a duplicate: the same pixels are in this pack": 1,
        "its boxes are of radiographs that are not used": 1,
    }


def test_a_month_without_anything_new_leaves_nothing_behind(tmp_path):
    source = folder_of(tmp_path / "in", {"p1/a.png": saved(scan(1)), "p2/b.png": saved(scan(2))})
    packed(source, tmp_path / "jan")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PackError, match="nothing new: 2 radiographs are in earlier packs; no shards are made"):
        packed(source, tmp_path / "feb", against=[tmp_path / "jan"])
    assert sorted(tmp_path.iterdir()) == before


def test_of_two_that_are_near_the_deeper_stays(tmp_path):
    deep = scan(3).astype(np.uint16) << 4
    shade = np.clip(scan(3).astype(int) + 2, 0, 255).astype(np.uint8)
    for names in ("ab", "ba", "cd", "dc"):  # of which each has other ids
        both = {f"{names[0]}.png": saved(deep), f"{names[1]}.png": saved(shade)}
        options = {"depth": 16, "boxes": "none", "patient": None, "near_bits": 32, "drop_near": True}
        packed(folder_of(tmp_path / names, both), tmp_path / f"{names}-out", **options)
        samples = ShardSet(tmp_path / f"{names}-out")
        assert [samples.meta(i)["source_bits"] for i in range(len(samples))] == [12]


def test_a_month_of_known_patients_needs_no_holdout(tmp_path):
    """Their side is settled, so one side may be empty; where nobody is left to train on, it is said."""
    first = {f"p{i}/{i}.png": saved(scan(i)) for i in range(12)}
    packed(folder_of(tmp_path / "in", first), tmp_path / "jan", holdout=0.5)
    there = {part: set(patients_of(tmp_path / "jan" / part).values()) for part in ("", "holdout")}
    sides = {part: [i for i in range(12) if patient(f"p{i}") in ids] for part, ids in there.items()}
    against = {"holdout": 0.5, "against": [tmp_path / "jan"]}
    more = {part: {f"p{i}/{i + 50}.png": saved(scan(i + 50)) for i in sides[part]} for part in sides}
    packed(folder_of(tmp_path / "trained", more[""]), tmp_path / "feb", **against)
    assert not (tmp_path / "feb" / "holdout").exists()
    with pytest.raises(PackError, match="held out in earlier packs, which leaves none to train on"):
        packed(folder_of(tmp_path / "held", more["holdout"]), tmp_path / "march", **against)
