"""`verify` tells of any byte that is not as packed, and of books that do not agree."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.inspect import verify as verifying
from data_shards.inspect.summary_text import describe
from data_shards.inspect.verify import verify
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.shards.manifest import read_manifest, sealed, stated


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Some shards and a holdout, with rejected inputs of every ledger."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("packed") / "whole"
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 30), dtype=np.uint8)).save(scans / f"{i:02}.png")
        (scans / f"{i:02}.txt").write_text("0 0.5 0.5 0.8 0.8\n0 0.5 0.5 0.01 0.8\n")
    shutil.copy(scans / "00.png", scans / "twin.png")
    shutil.copy(scans / "00.txt", scans / "twin.txt")
    (scans / "prose.md").write_text("none of it a radiograph")
    pack(PackConfig([scans], out, key=b"a public key for tests", quiet=True, shard_samples=3, holdout=0.3))
    assert len(list(out.glob("*.tar"))) >= 3
    assert (out / "holdout" / "shard-000000.tar").is_file()
    assert verify(out, quiet=True) == []
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@settings(max_examples=80)
@given(data=st.data())
def test_any_byte_flipped_cut_off_added_or_gone_is_told(whole, data):
    """Anywhere: in shards, index, manifest and lists, of the folder and of its holdout."""
    path = whole / data.draw(st.sampled_from(files(whole)))
    raw = path.read_bytes()
    kinds = ["added", "gone"] + (["flipped", "cut"] if raw else [])
    kind = data.draw(st.sampled_from(kinds))
    try:
        if kind == "gone":
            path.unlink()
        elif kind == "added":
            path.write_bytes(raw + data.draw(st.sampled_from([b"\n", b"\0", bytes(512), b"x"])))
        else:
            at = data.draw(st.integers(0, len(raw) - 1))
            changed = raw[:at] + bytes([raw[at] ^ 1 << data.draw(st.integers(0, 7))]) + raw[at + 1 :]
            path.write_bytes(changed if kind == "flipped" else raw[:at])
        problems = told(whole)
    finally:
        path.write_bytes(raw)
    assert problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize("name", ["manifest.json", "holdout/manifest.json"])
def test_any_field_of_a_manifest_under_another_name_is_told(copy, name):
    """A flipped bit in a name, each of them: no field may be missed with an error that says nothing."""
    path = copy / name
    raw = path.read_bytes()
    places = [found.start() + 1 for found in re.finditer(rb'"\w+":', raw)]
    assert len(places) > 50
    for at in places:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert told(copy)


@pytest.mark.parametrize("field", ["ledgers", "statistics", "sources", "holdout", "reasons", "settings"])
@pytest.mark.parametrize("value", [None, "x", 7])
def test_describe_says_what_a_manifest_lacks(copy, field, value):
    forged(copy, lambda manifest: manifest.update({field: value}))
    with pytest.raises(verifying.ShardError, match=f"no valid `{field}"):
        describe(copy)


def test_a_size_that_is_no_whole_number_is_told(copy):
    shard = next(copy.glob("*.tar"))
    raw = shard.read_bytes()
    found = re.search(rb'"width": (\d+), ', raw)
    shard.write_bytes(raw.replace(found[0], b'"width":%s.0,' % found[1], 1))
    assert any("and its JSON disagree" in problem for problem in told(copy))


def told(folder):
    """What `python -m data_shards verify` would tell: problems, or the error that it ends with."""
    try:
        return verify(folder, quiet=True)
    except verifying.ShardError as error:
        return [str(error)]


def forged(folder, change):
    """The manifest of `folder` changed by someone who knows how it is sealed, as a mistake in `pack` would."""
    manifest = read_manifest(folder)
    change(manifest)
    (folder / "manifest.json").write_bytes(sealed(manifest))


def held_forged(folder, change):
    """The same of its holdout, with the folder's manifest made to fit that."""
    forged(folder / "holdout", change)
    forged(folder, lambda m: m["holdout"].update(sha256=stated(folder / "holdout" / "manifest.json")["sha256"]))


def relisted(folder, lines):
    (folder / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    forged(folder, lambda m: m.update(rejected=stated(folder / "rejected.jsonl")))


def listed(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def one_less_used(manifest):
    manifest["ledgers"]["radiographs"]["used"] -= 1
    manifest["ledgers"]["radiographs"]["seen"] -= 1


DAMAGES = {
    "a foreign shard": (lambda f: shutil.copy(f / "shard-000000.tar", f / "shard-000009.tar"), "remove it"),
    "a foreign shard held out": (lambda f: shutil.copy(f / "shard-000000.tar", f / "holdout" / "x.tar"), "remove it"),
    "two shards swapped": (lambda f: swap(f / "shard-000000.tar", f / "shard-000001.tar"), "shard-00000"),
    "no holdout": (lambda f: shutil.rmtree(f / "holdout"), "is missing"),
    "another pack's holdout": (lambda f: forged(f / "holdout", lambda m: m.update(key="0" * 16)), "not the holdout"),
    "no manifest's seal": (lambda f: (f / "manifest.json").write_text(json.dumps(read_manifest(f))), "was changed"),
    "a ledger that does not balance": (lambda f: forged(f, lambda m: m["ledgers"]["files"].update(seen=99)), "balance"),
    "a ledger of other counts": (lambda f: forged(f, one_less_used), "used radiographs, its samples"),
    "a rejected input left out": (lambda f: relisted(f, listed(f)[1:]), "other files than the ledger"),
    "an index of another order": (lambda f: reindexed(f), "does not fit"),
    "statistics of another pack": (lambda f: forged(f, lambda m: m["statistics"].update(patients=1)), "statistics"),
    "a ledger that is none": (lambda f: forged(f, lambda m: m.update(ledgers={})), "no valid `ledgers.files`"),
    "a manifest without a checksum": (lambda f: forged(f, lambda m: m["shards"][0].pop("sha256")), "`shards.0.sha256`"),
    "a manifest of another form": (lambda f: forged(f, lambda m: m.update(statistics=None)), "no valid `statistics`"),
    "an index of another name": (lambda f: forged(f, lambda m: m["index"].update(name="../x.npy")), "no valid `index`"),
    "a manifest of the other part": (lambda f: forged(f, lambda m: m.update(part="holdout")), "no valid `part`"),
    "a manifest to come": (lambda f: forged(f, lambda m: m.update(format=99)), "of format 99"),
    "a manifest of brackets": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "not a readable manifest"),
    "other pixels": (lambda f: forged(f, lambda m: m["statistics"].update(pixel_std=0.0)), "(pixel_std)"),
    "other labels": (lambda f: forged(f, lambda m: m["statistics"].update(labels={})), "(labels)"),
    "other sources": (lambda f: forged(f, lambda m: m["sources"][0].update(files=999)), "shares of the sources"),
    "a list of names": (lambda f: (f / "names.csv").write_text("x"), "is not of this pack"),
    "a foreign folder": (lambda f: (f / "sub").mkdir(), "is not of this pack"),
    "a foreign list held out": (lambda f: (f / "holdout" / "near.jsonl").write_text(""), "is not of this pack"),
    "a holdout of other settings": (lambda f: held_forged(f, lambda m: m["settings"].update(depth=16)), "of two packs"),
    "a holdout of other counts": (
        lambda f: forged(f, lambda m: m["holdout"].update(patients=77)),
        "counts its holdout",
    ),
    "a holdout of other ledgers": (
        lambda f: held_forged(f, lambda m: m["ledgers"]["boxes"].update(used=3, seen=3)),
        "are not those of its samples",
    ),
    "a near pair of two patients": (lambda f: joined(f), "are of two patients"),
    "a rejected input that is used": (lambda f: relisted(f, used_too(f)), "both rejected and used"),
}


def joined(folder):
    """near.jsonl with a pair of radiographs that stayed two patients."""
    with tarfile.open(folder / "shard-000000.tar") as tar:
        metas = [json.loads(tar.extractfile(name).read()) for name in tar.getnames() if name.endswith(".json")]
    line = {"radiographs": [meta["radiograph"] for meta in metas[:2]], "patients": ["0" * 16] * 2, "distance": 9}
    (folder / "near.jsonl").write_text(json.dumps(line) + "\n")
    forged(folder, lambda m: m.update(near=stated(folder / "near.jsonl")))


def swap(a, b):
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)


def reindexed(folder):
    index = np.load(folder / "index.npy")
    np.save(folder / "index.npy", index[[1, 0, *range(2, len(index))]])
    forged(folder, lambda m: m.update(index=stated(folder / "index.npy")))


def used_too(folder):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        id_ = tar.getnames()[0].partition(".")[0]
    lines = listed(folder)
    boxes = next(line for line in lines if line["ledger"] == "boxes")
    return [line if line is not boxes else {**line, "id": id_} for line in lines]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_told_by_name(copy, damage):
    change, words = DAMAGES[damage]
    change(copy)
    problems = told(copy)
    assert any(words in problem for problem in problems), problems


def rewritten(folder, change):
    """The first shard with its members (name, content) changed, and index and manifest made to fit it."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = change([(info.name, tar.extractfile(info).read()) for info in tar])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shards = [{**stated(folder / s["name"]), "samples": s["samples"]} for s in read_manifest(folder)["shards"]]
    np.save(folder / "index.npy", verifying.index_shards([folder / s["name"] for s in shards]))
    forged(folder, lambda m: m.update(shards=shards, index=stated(folder / "index.npy")))


def with_field(**fields):
    def change(members):
        name, content = members[1]
        return [members[0], (name, json.dumps(json.loads(content) | fields).encode()), *members[2:]]

    return change


def held_patient(folder):
    with tarfile.open(folder / "holdout" / "shard-000000.tar") as tar:
        return json.loads(tar.extractfile(tar.getmembers()[1]).read())["patient"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_field(width=7), "its JSON disagree"),
        (with_field(id="0" * 16), "its JSON disagree"),
        (with_field(bits=12), "its JSON disagree"),
        (with_field(patient=7), "its JSON disagree"),
        (lambda members: [members[0], (members[1][0], b"{"), *members[2:]], "the JSON of sample"),
        (lambda members: [(members[0][0], b"GIF89a"), *members[1:]], "the image of sample"),
        (lambda members: [*members[:4], *members[:2], *members[6:]], "more than once"),
    ],
)
def test_shards_that_fit_their_checksums_are_read_all_the_same(copy, change, words):
    rewritten(copy, change)
    problems = told(copy)
    assert any(words in problem for problem in problems), problems


def test_a_patient_on_both_sides_of_the_holdout_is_told(copy):
    rewritten(copy, with_field(patient=held_patient(copy)))
    assert any("1 patients are both in" in problem for problem in told(copy))


def test_processes_tell_what_one_process_tells(copy):
    path = copy / "shard-000001.tar"
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    assert told(copy) == verify(copy, quiet=True, workers=2)
    assert len(told(copy)) == 2  # the shard, and which sample of it


def test_foreign_shards_are_verified_by_what_they_have(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "png")
    for name, content in (("good", buffer.getvalue()), ("bad", buffer.getvalue()[:40])):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            info = tarfile.TarInfo("a long key of someone's.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert verify(tmp_path / "good.tar", quiet=True) == []
    problems = verify(tmp_path, quiet=True)
    assert len(problems) == 3  # one image cannot be decoded, and two samples bear one key
    assert sum("cannot be decoded" in problem for problem in problems) == 1
