"""Which crops k-NN takes, and what it refuses to score, on shards that others wrote."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest

from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import CorruptError, ShardError
from pretrain.config.schema import Config, DataConfig, EvalConfig
from pretrain.data.shard_sets import shard_cache
from pretrain.evaluation.final_knn import labelled_sets
from pretrain.evaluation.labelled_crops import EvaluationError, check_label, load_labelled
from pretrain.report.sample_crops import specimens

SIZE = (32, 24)


def foreign(path, metas):
    """A tar of one crop for each of `metas`."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i, meta in enumerate(metas):
            image = cv2.imencode(".png", rng.integers(0, 255, SIZE, dtype=np.uint8))[1].tobytes()
            for suffix, content in (("png", image), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"c{i:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def findings(*labels):
    """Metadata of crops with these labels, None for none, each of its own patient."""
    return [{"patient": f"p{i}"} | ({} if x is None else {"finding": x}) for i, x in enumerate(labels)]


def test_the_limit_is_of_crops_that_carry_the_label(tmp_path):
    """A stride over all 26 crops would step over each of the three."""
    few = ShardSet(foreign(tmp_path / "few.tar", findings(None, "a", "b", "a", *[None] * 22)))
    crops = load_labelled([few], "finding", SIZE, limit=2)
    assert crops.patients.tolist() == ["p1", "p3"]
    assert load_labelled([few], "finding", SIZE).labels.tolist() == ["a", "b", "a"]
    both = load_labelled([few, few], "finding", SIZE, limit=4)
    assert both.patients.tolist() == ["p1", "p3"] * 2


def test_labels_that_begin_late_or_are_few_are_found(tmp_path):
    late = ShardSet(foreign(tmp_path / "late.tar", findings(*[None] * 150, "a", "b")))
    check_label([late], "finding")
    crops = load_labelled([late], "finding", SIZE, limit=51)  # each third crop, of which one is labelled
    assert crops.labels.tolist() == ["a", "b"]


def test_a_corrupt_crop_is_listed_once_when_all_are_looked_at(tmp_path, monkeypatch):
    few = ShardSet(foreign(tmp_path / "few.tar", findings(None, "a", "b", "a", *[None] * 22)))
    meta = few.meta

    def damaged(i):
        if i == 13:
            raise CorruptError("crop 13 is corrupt")
        return meta(i)

    monkeypatch.setattr(few, "meta", damaged)
    unreadable = ["an earlier one"]
    assert len(load_labelled([few], "finding", SIZE, 2, unreadable).labels) == 2
    assert unreadable == ["an earlier one", "crop 13 is corrupt"]


def test_no_crop_to_read_is_an_evaluation_error(tmp_path):
    bare = ShardSet(foreign(tmp_path / "bare.tar", findings(None, None, None)))
    with pytest.raises(EvaluationError, match=r"no crop that carries the label 'finding' can be read in .*bare\.tar"):
        load_labelled([bare], "finding", SIZE, limit=2)


def refused(path, label, metas):
    with pytest.raises(EvaluationError) as error:
        check_label([ShardSet(foreign(path, metas))], label)
    return str(error.value)


def test_what_cannot_be_scored_is_refused(tmp_path):
    path = tmp_path / "shards.tar"
    said = refused(path, "finding", findings("caries", "caries", None))
    assert said.startswith(
        f"every crop that carries finding has 'caries' in {path}: nothing to tell apart; name another"
    )
    metas = [meta | {"source": f"s{i}"} for i, meta in enumerate(findings("a", "b"))]
    for label in ("source", "patient", "id"):
        assert f"'{label}' tells where a crop comes from and is no label" in refused(path, label, metas)
    assert "they have finding" in refused(path, "source", metas)
    check_label([ShardSet(foreign(path, findings("a", "b")))], "finding")
    check_label([ShardSet(foreign(path, findings(0, 1)))], "finding")
    check_label([ShardSet(foreign(path, [m | {"laterality": "LR"[i]} for i, m in enumerate(metas)]))], "laterality")


@pytest.mark.parametrize("none", [{}, {"patient": None}])
def test_crops_that_state_no_patient_are_told_in_one_line(none, tmp_path):
    known = findings("a", "b", "a", "b")
    unknown = [{"finding": meta["finding"]} | none for meta in known]
    for name, metas, lines in (("known", known, 0), ("unknown", unknown, 1)):
        path = str(foreign(tmp_path / f"{name}.tar", metas))
        config = Config(data=DataConfig(shards=[path]), eval=EvalConfig(shards=[path], label="finding"))
        said: list[str] = []
        sets = labelled_sets(config, [], shard_cache(config.data), said.append)
        assert len(said) == lines
        assert all("state no patient" in line and "\n" not in line for line in said)
        assert len(set(load_labelled(sets, "finding", SIZE).patients)) == 4


def test_a_label_0_is_scored_and_shown(tmp_path):
    metas = [*findings(0, 1, 0), {"patient": None}]
    sets = [ShardSet(foreign(tmp_path / "numbers.tar", metas))]
    assert load_labelled(sets, "finding", SIZE).labels.tolist() == ["0", "1", "0"]
    shown = specimens(sets, "finding", SIZE)
    assert shown.labels.tolist() == ["0", "1", "0"]
    assert shown.label == "finding"


def test_a_corrupt_crop_is_left_out_where_its_message_is_taken(tmp_path):
    path = foreign(tmp_path / "damaged.tar", findings("a", "b", "a"))
    path.write_bytes(path.read_bytes().replace(b'{"patient": "p1"', b'{"patient"- "p1"', 1))
    unreadable: list[str] = []
    assert load_labelled([ShardSet(path)], "finding", SIZE, None, unreadable).patients.tolist() == ["p0", "p2"]
    assert len(unreadable) == 1
    with pytest.raises(ShardError, match="is corrupt"):
        load_labelled([ShardSet(path)], "finding", SIZE)
