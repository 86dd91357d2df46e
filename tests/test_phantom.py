"""The phantom: deterministic, physical, labelled, and hard enough that raw pixels do not solve it."""

import csv
import io
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.phantom.anatomy import Tooth, draw_jaw
from data_shards.phantom.render import (
    CROP_ASPECT,
    FINDINGS,
    MATERIALS,
    Phantom,
    draw_scene,
    expose,
    render_crop,
    render_radiograph,
    write_archive,
)
from data_shards.phantom.solids import tooth_paths

TYPES = (0, 0, 1, 2, 2, 3, 3, 3)  # incisor, canine, premolar, molar by the last digit of the FDI number
PATIENTS = 400


@pytest.fixture(scope="module")
def films() -> list[Phantom]:
    return [render_radiograph(0, patient) for patient in range(PATIENTS)]


def same(a: Phantom, b: Phantom) -> bool:
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.fdi, b.fdi)
        and a.finding == b.finding
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), patient=st.integers(0, 10**6), view=st.integers(0, 50))
def test_a_radiograph_is_a_pure_function_of_its_arguments(seed: int, patient: int, view: int) -> None:
    film = render_radiograph(seed, patient, view)
    assert same(film, render_radiograph(seed, patient, view))
    for other in ((seed + 1, patient, view), (seed, patient + 1, view), (seed, patient, view + 1)):
        assert not same(film, render_radiograph(*other))
    height, width = film.image.shape
    assert film.image.dtype == np.uint8
    assert 200 <= height <= 360
    assert 200 <= width <= 360
    assert len(film.boxes) == len(film.fdi) == len(film.finding) >= 1
    assert np.all(film.boxes[:, :2] >= 0)
    assert np.all(film.boxes[:, 2] <= width)
    assert np.all(film.boxes[:, 3] <= height)
    assert len(set(film.fdi.tolist())) == len(film.fdi)
    assert set(film.finding) <= set(FINDINGS)
    assert len({int(fdi) // 10 in (1, 2) for fdi in film.fdi}) == 1  # one jaw on one film


def test_a_crop_is_one_tooth_of_its_radiograph() -> None:
    for patient in range(10):
        image, fdi, finding = render_crop(3, patient)
        film = render_radiograph(3, patient)
        i = film.fdi.tolist().index(fdi)
        assert film.finding[i] == finding
        x0, y0, x1, y1 = (round(float(v)) for v in film.boxes[i])
        assert np.array_equal(image, film.image[y0:y1, x0:x1])


def test_anatomy_belongs_to_the_patient_not_to_the_view() -> None:
    findings: dict[int, str] = {}
    shared = 0
    for view in range(30):
        film = render_radiograph(5, 1, view)
        for fdi, finding in zip(film.fdi.tolist(), film.finding, strict=True):
            shared += fdi in findings
            assert findings.setdefault(fdi, finding) == finding
    assert shared > 20
    assert draw_jaw(5, 1, True) == draw_jaw(5, 1, True) != draw_jaw(5, 2, True)


def test_boxes_contain_their_teeth_and_have_one_shape() -> None:
    for patient in range(60):
        scene, film = draw_scene(7, patient), render_radiograph(7, patient)
        numbers = [tooth.fdi for tooth in scene.teeth]
        for box, fdi in zip(film.boxes, film.fdi.tolist(), strict=True):
            outline = scene.outlines[numbers.index(fdi)]
            assert np.all(outline >= box[:2] - 1e-6)
            assert np.all(outline <= box[2:] + 1e-6)
            assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(CROP_ASPECT)


def test_upper_roots_point_up_and_lower_roots_down() -> None:
    for patient in range(20):
        scene = draw_scene(8, patient)
        crownwards = -scene.film[1, 1]  # film rows per row towards the crown
        assert (crownwards > 0) == (scene.teeth[0].fdi // 10 in (1, 2))


def test_the_beam_obeys_beer_and_lambert() -> None:
    scene = draw_scene(0, 3)
    assert scene.paths.dtype == np.float32
    assert scene.paths.shape[0] == len(MATERIALS)
    assert scene.paths.min() >= -1e-4  # no negative millimetres
    exact = np.zeros(scene.paths.shape[1:])
    for mu, path in zip(MATERIALS.values(), scene.paths.astype(np.float64), strict=True):
        exact += mu * path
    np.testing.assert_allclose(np.exp(-scene.line_integral()), np.exp(-exact), rtol=1e-4)


def test_more_of_anything_is_brighter() -> None:
    """A step wedge comes out in growing greys; denser materials attenuate more."""
    wedge = np.repeat(np.linspace(0, 12, 60, dtype=np.float32)[:, None], 400, axis=1)
    for material in ("soft", "bone", "dentin"):
        image = expose(np.exp(-np.float32(MATERIALS[material]) * wedge), np.random.default_rng(1))
        rows = image.reshape(12, 5, 400).mean(axis=(1, 2))
        assert np.all(np.diff(rows) >= 0)
        assert rows[-1] > rows[0]
    ranks = ("soft", "bone", "dentin", "enamel", "composite", "gutta_percha", "zirconia", "amalgam", "gold")
    assert all(MATERIALS[a] < MATERIALS[b] for a, b in pairwise(ranks))


def _integral(tooth: Tooth) -> dict[str, np.ndarray]:
    u, v = np.arange(-8, 8, 0.1, dtype=np.float32), np.arange(13, -20, -0.1, dtype=np.float32)
    parts = tooth_paths(tooth, u, v)
    total = sum(MATERIALS[name] * path for name, path in parts.materials.items())
    return {"total": np.asarray(total), **parts.materials, "solid": parts.solid}


@pytest.mark.parametrize("fdi", [11, 13, 14, 16, 31, 43, 35, 36, 28])
def test_metal_outshines_enamel_enamel_dentin_dentin_pulp(fdi: int) -> None:
    tooth = next(t for t in draw_jaw(0, 0, fdi // 10 in (1, 2)) if t.fdi == fdi)
    kinds = {finding: _integral(replace(tooth, finding=finding)) for finding in FINDINGS}
    sound = kinds["sound"]
    parts = sum(sound[name] for name in ("enamel", "dentin", "pulp"))
    np.testing.assert_allclose(parts, sound["solid"], atol=1e-3)  # the layers fill the tooth, nothing twice

    def mean_mu(name: str) -> float:
        """Mean attenuation per mm where a layer makes up most of the path."""
        mostly = (sound[name] > 0.5 * sound["solid"]) & (sound["solid"] > 0.5)
        return float((sound["total"][mostly] / sound["solid"][mostly]).mean())

    assert mean_mu("enamel") > mean_mu("dentin")
    canal = sound["pulp"] > 0.25 * sound["solid"]
    filled = sound["pulp"] < 0.01
    per_mm = sound["total"] / np.maximum(sound["solid"], 1e-3)
    assert per_mm[canal].mean() < per_mm[filled & (sound["dentin"] > 1)].mean()
    crown = kinds["crown"]
    assert np.median(crown["total"][crown["gold" if tooth.metal else "zirconia"] > 0.5]) > sound["total"].max()
    assert np.abs(kinds["caries"]["total"] - sound["total"]).max() > 0.3  # no invisible label
    assert kinds["caries"]["total"].sum() < sound["total"].sum() < kinds["filling"]["total"].sum()
    assert kinds["root_canal"]["gutta_percha"].max() > 0.3


def test_an_archive_has_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("a.zip", 1), ("b.zip", 2), ("c.zip", 1)):
        write_archive(tmp_path / name, patients=6, seed=4, views=2, workers=workers)
    write_archive(tmp_path / "d.zip", patients=6, seed=5, views=2)
    one, two, again, other = ((tmp_path / f"{n}.zip").read_bytes() for n in "abcd")
    assert one == two == again != other

    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = [f"radiographs/p{p:05d}-{v}.png" for p in range(6) for v in range(2)]
        assert archive.namelist() == [*members, "boxes.csv"]
        rows = list(csv.DictReader(io.StringIO(archive.read("boxes.csv").decode())))
        assert list(rows[0]) == ["image", "x0", "y0", "x1", "y1", "fdi", "finding"]
        for p in range(6):
            film = render_radiograph(4, p, 1)
            member = f"radiographs/p{p:05d}-1.png"
            stored = cv2.imdecode(np.frombuffer(archive.read(member), np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(stored, film.image)
            mine = [row for row in rows if row["image"] == member]
            assert [(int(r["fdi"]), r["finding"]) for r in mine] == list(zip(film.fdi, film.finding, strict=True))
            boxes = np.array([[float(r[k]) for k in ("x0", "y0", "x1", "y1")] for r in mine])
            np.testing.assert_allclose(boxes, film.boxes, atol=0.005)


def test_an_archive_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patients is 0"):
        write_archive(tmp_path / "none.zip", patients=0, seed=0)
    assert not (tmp_path / "none.zip").exists()


def test_labels_are_about_equally_common(films: list[Phantom]) -> None:
    kinds = np.bincount([TYPES[fdi % 10 - 1] for film in films for fdi in film.fdi.tolist()], minlength=4)
    findings = np.array([sum(film.finding.count(finding) for film in films) for finding in FINDINGS])
    assert kinds.min() / kinds.sum() > 0.12  # four canines stand in a mouth, twelve molars
    assert kinds.max() / kinds.sum() < 0.36
    assert findings.min() / findings.sum() > 0.13
    assert findings.max() / findings.sum() < 0.28
    quadrants = np.bincount([fdi // 10 for film in films for fdi in film.fdi.tolist()], minlength=5)[1:]
    assert quadrants.min() / quadrants.sum() > 0.18
    assert 3 < np.mean([len(film.boxes) for film in films]) < 5


def _knn(features: np.ndarray, labels: np.ndarray, patients: np.ndarray, cosine: bool) -> float:
    """Balanced accuracy of k-NN (k = 10) over 5 folds that share no patient."""
    guess = np.empty_like(labels)
    for fold in range(5):
        test = patients % 5 == fold
        if cosine:
            closeness = features[test] @ features[~test].T
        else:
            closeness = -np.square(features[test][:, None] - features[~test][None]).sum(axis=-1)
        near = labels[~test][np.argpartition(-closeness, 10, axis=1)[:, :10]]
        guess[test] = [np.bincount(row).argmax() for row in near]
    return float(np.mean([(guess[labels == c] == c).mean() for c in np.unique(labels)]))


def test_pixels_help_but_do_not_solve_it_and_size_says_nothing(films: list[Phantom]) -> None:
    thumbs, sizes, kinds, findings, patients = [], [], [], [], []
    for patient, film in enumerate(films):
        for box, fdi, finding in zip(film.boxes, film.fdi.tolist(), film.finding, strict=True):
            x0, y0, x1, y1 = (round(float(v)) for v in box)
            crop = cv2.resize(film.image[y0:y1, x0:x1], (24, 24), interpolation=cv2.INTER_AREA)
            thumbs.append(crop.ravel().astype(np.float32))
            sizes.append((x1 - x0, y1 - y0))
            kinds.append(TYPES[fdi % 10 - 1])
            findings.append(FINDINGS.index(finding))
            patients.append(patient)
    pixels = np.array(thumbs)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    size = np.array(sizes, np.float64)
    size /= size.std(axis=0)
    for labels, chance in ((np.array(kinds), 1 / 4), (np.array(findings), 1 / 5)):
        assert 0.4 < _knn(pixels, labels, np.array(patients), cosine=True) < 0.85
        assert _knn(size, labels, np.array(patients), cosine=False) < chance + 0.06
