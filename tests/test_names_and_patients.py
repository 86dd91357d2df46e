"""Annotations find their radiographs however names are spelled; tables say whose a radiograph is."""

import os
import zipfile
from urllib.parse import quote

import pytest
from annotations_fixture import assert_teeth, coco, packed, samples_in, scan, share, teeth
from planted import dicom

from data_shards.__main__ import main
from data_shards.annotations.spelling import subset_words

SEEDS = (0, 1, 2)


def rows_of(seed):
    return "\n".join(f"0 {' '.join(f'{v:.6f}' for v in share(box))}" for box in teeth(seed))


def unmarked(path, members):
    """A zip whose names are bytes in a code page, without the mark of UTF-8, as old tools write them."""
    renamed = {f"{n:04}{'x' * (len(name) - 4)}": name for n, name in enumerate(members)}
    with zipfile.ZipFile(path, "w") as archive:
        for plain, name in renamed.items():
            archive.writestr(plain, members[name])
    raw = path.read_bytes()
    for plain, name in renamed.items():
        raw = raw.replace(plain.encode(), name)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("gbk", "全景牙片"),
        ("shift_jis", "歯科ソ写真"),
        ("cp850", "Röntgen"),
        ("mac_roman", "Röntgen"),
        ("utf-8", "Röntgen"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_names_in_the_code_pages_of_archives(tmp_path, capsys, page, name, beside):
    members = {f"img/{name}_{seed}.png".encode(page): scan(seed) for seed in SEEDS}
    unmarked(tmp_path / "images.zip", members)
    texts = {"a.json": coco([f"{name}_{seed}.png" for seed in SEEDS], SEEDS)}
    if beside:
        texts = {f"labels/{name}_{seed}.txt": rows_of(seed) for seed in SEEDS} | {"data.yaml": "names: ['36']"}
    for path, text in texts.items():
        (tmp_path / "drawn" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "drawn" / path).write_text(text, encoding="utf-8")
    sources = [str(tmp_path / "images.zip"), str(tmp_path / "drawn")]
    main(["pack", *sources, "--out", str(tmp_path / "out"), "--key", str(tmp_path / "key")])
    assert_teeth(samples_in(tmp_path / "out"), SEEDS, fdi=36)


def test_names_in_bytes_on_the_disk(tmp_path):
    for seed in SEEDS:
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / os.fsdecode(f"牙片_{seed}.png".encode("gbk"))).write_bytes(scan(seed))
    (tmp_path / "a" / "a.json").write_text(coco([f"牙片_{seed}.png" for seed in SEEDS], SEEDS), encoding="utf-8")
    main(["pack", str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--key", str(tmp_path / "key")])
    assert_teeth(samples_in(tmp_path / "out"), SEEDS, fdi=36)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("Röntgen {}.png", quote("Röntgen ") + "{}.png"),
        (quote("Röntgen ") + "{}.png", "Röntgen {}.png"),
        ("op_{}.png", "images/ab12cd34-op_{}.png"),
        ("op_{}.png", "D:\\data\\OP_{}.PNG"),
        ("op_{}.png", "op_{}.dcm"),
    ],
)
def test_names_that_tools_change(tmp_path, capsys, image, told):
    members = {image.format(seed): scan(seed) for seed in SEEDS}
    members["a.json"] = coco([told.format(seed) for seed in SEEDS], SEEDS)
    _, samples, _ = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS, fdi=36)


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("images/{}/7.png", "annotations/instances_{}.json"),
        ("{}2017/7.png", "annotations/instances_{}2017.json"),
        ("data/{}ing/7.png", "data/json/{}/teeth.json"),
        ("{}/7.png", "{}/_annotations.coco.json"),
    ],
)
def test_subsets_with_equal_names(tmp_path, capsys, images, annotations):
    members = {}
    for subset, seed in (("train", 0), ("test", 1)):
        members[images.format(subset)] = scan(seed)
        members[annotations.format(subset)] = coco(["7.png"], [seed])
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, [0, 1])
    assert "8         8         0" in said


def test_words_of_subsets():
    assert subset_words("instances_Train2017") == ["instances", "train", "2017"]
    assert subset_words("Validation-set 3") == ["val", "set", "3"]


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        ("other.png", "two different exports"),
        ("牙.png", "code page"),
        ("7_scan1_x.png", "a prefix or suffix"),
        ("scan1.png", "Several radiographs have that name"),
    ],
)
def test_an_archive_in_which_nothing_matches(tmp_path, capsys, told, cause):
    members = {"b/scan1.png": scan(0), "c/scan1.png": scan(1), "set/a.json": coco([told], [0])}
    code, samples, said = packed(tmp_path, members, capsys)
    assert (code, samples) == (2, [])
    assert "no radiograph matches the annotations" in said
    assert "b/scan1.png" in said
    assert cause in said


def table(column, patients, by=",", corners=True):
    places = ["x0", "y0", "x1", "y1"] if corners else []
    lines = [by.join(["image", column, *places])]
    for seed, patient in enumerate(patients):
        for box in teeth(seed) if corners else [()]:
            lines.append(by.join([f"{seed}.png", patient, *map(str, box)]))
    return "\n".join(lines)


def patients_of(samples):
    return {sample["patient"]: 0 for sample in samples}.keys()


COLUMNS = (
    "patient",
    "Patient_ID",
    "PatientID",
    "patient-no",
    "case",
    "Case ID",
    "subject",
    "SubjectID",
    "participant_id",
)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_says_whose_a_radiograph_is(tmp_path, capsys, column):
    members = {f"{seed}.png": scan(seed) for seed in SEEDS}
    members["t.csv"] = table(column, ["A-1", " a1 ", "B-2"])
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS)
    assert len(patients_of(samples)) == 2
    assert "patients: 3 of 3 radiographs, by the column" in said
    assert "columns left out" not in said


def test_a_column_that_is_named(tmp_path, capsys):
    members = {f"{seed}.png": scan(seed) for seed in SEEDS}
    members["t.csv"] = table("Akte", ["7", "7.0", "9"], by=";")
    _, samples, _ = packed(tmp_path, members, capsys, "--patient-column", "akte")
    assert len(patients_of(samples)) == 2
    code, _, said = packed(tmp_path / "out", members, capsys, "--patient-column", "who")
    assert code == 2
    assert "no table has such a column (the tables have image, akte," in said
    code, _, said = packed(tmp_path / "out", members, capsys, "--patient-column", "akte", "--patient", "x")
    assert code == 2
    assert "give one of them" in said


@pytest.mark.parametrize("options", [[], ["--boxes", "none"]])
def test_a_table_without_boxes_says_it_too(tmp_path, capsys, options):
    """Beside other annotations, and for whole images."""
    members = {f"images/{seed}.png": scan(seed) for seed in SEEDS}
    members |= {f"labels/{seed}.txt": rows_of(seed) for seed in SEEDS}
    members["patients.csv"] = "image,patient_id,sex\n0,P1,f\n1,P1,f\n2,P2,m\n"
    _, samples, said = packed(tmp_path, members, capsys, *options)
    assert len(samples) == (3 if options else 12)
    assert len(patients_of(samples)) == 2
    assert '"file' not in said


def test_one_patient_is_never_on_both_sides(tmp_path, capsys):
    members = {f"{seed}.png": scan(seed) for seed in range(12)}
    members["t.csv"] = table("patient", [f"P{seed // 3}" for seed in range(12)])
    _, samples, _ = packed(tmp_path, members, capsys, "--holdout", "0.5", "--near-bits", "-1")
    held = samples_in(tmp_path / "out" / "holdout")
    assert samples
    assert held
    assert not patients_of(samples) & patients_of(held)
    assert len(patients_of(samples) | patients_of(held)) == 4


def test_cases_in_a_second_table_belong_to_the_patients(tmp_path, capsys):
    """A case of a patient is that patient; a column that says something else does not join patients."""
    members = {f"{seed}.png": scan(seed) for seed in range(6)}
    members["a.csv"] = "image,patient\n0.png,A\n1.png,B\n2.png,B\n"
    members["b.csv"] = "image,case\n0.png,7\n3.png,7\n1.png,8\n4.png,9\n5.png,9\n"
    _, samples, _ = packed(tmp_path, members, capsys, "--boxes", "none")
    assert len(patients_of(samples)) == 3
    (tmp_path / "other").mkdir()
    members["b.csv"] = "image,case\n" + "".join(f"{seed}.png,adult\n" for seed in range(6))
    _, samples, _ = packed(tmp_path / "other", members, capsys, "--boxes", "none")
    assert len(patients_of(samples)) == 5


def test_augmented_versions_are_one_patient(tmp_path, capsys):
    names = [f"train/{number}_png.rf.{letter * 32}.png" for number, letter in ((1, "a"), (1, "b"), (2, "c"))]
    _, samples, _ = packed(tmp_path, dict(zip(names, map(scan, SEEDS), strict=True)), capsys, "--boxes", "none")
    assert len(patients_of(samples)) == 2


def test_two_patients_of_one_radiograph(tmp_path, capsys):
    members = {f"{seed}.png": scan(seed) for seed in SEEDS}
    members["t.csv"] = table("patient", ["A", "B", "C"])
    members["u.csv"] = "image,patient,fdi\n0.png,B,11\n1.png,,12\n"
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, [1, 2])
    assert "its table names two patients for it: correct the table" in said


def test_a_table_and_a_header_name_a_patient_alike(tmp_path, capsys):
    """The table's word counts over the header's, and both make the same id of the same patient."""
    raw = {name: dicom(n) for n, name in enumerate(("a.dcm", "b.dcm"))}
    _, samples, _ = packed(tmp_path, raw, capsys, "--boxes", "none")
    header = {sample["source"]: sample["patient"] for sample in samples}
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "key").write_bytes((tmp_path / "key").read_bytes())
    rows = "image,patient\na.dcm,8675309 1\nb.dcm,8675309 1\n"
    _, samples, _ = packed(tmp_path / "with", {**raw, "t.csv": rows}, capsys, "--boxes", "none")
    assert len(patients_of(samples)) == 1
    assert patients_of(samples) <= set(header.values())
