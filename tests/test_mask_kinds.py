"""Masks are told by what they show and by the radiographs that they belong to, and kinds of them are told apart."""

import json

import cv2
import numpy as np
import pytest
from annotations_fixture import HEIGHT, WIDTH, assert_teeth, mask, packed, radiograph, saved, scan, teeth

from data_shards.decode.mask_parts import may_be_mask, read_mask

SEEDS = (0, 1, 2)


def jaw():
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[8:-8, 4:-4] = 255
    return saved(pixels)


def colours(seed):
    values = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for value, (x0, y0, x1, y1) in zip(values, teeth(seed), strict=True):
        pixels[y0:y1, x0:x1] = value
    return saved(pixels)


def by_tooth(place):
    return lambda seed: {place.format(seed, k): saved(mask(seed, k)) for k in range(4)}


LEVELS = (60, 120, 180, 240)
FORMS = {
    "any folder": lambda seed: {f"ground truth/{seed}.png": saved(mask(seed))},
    "jpeg": lambda seed: {f"gt/{seed}.jpg": saved(mask(seed), "jpeg", quality=75)},
    "levels in jpeg": lambda seed: {f"gt/{seed}.jpg": saved(mask(seed, values=LEVELS), "jpeg", quality=88)},
    "values": lambda seed: {f"gt/{seed}.png": saved(mask(seed, values=(1, 2, 3, 4)))},
    "colours": lambda seed: {f"gt/{seed}.png": colours(seed)},
    "beside, a tooth each": by_tooth("img/{}-tooth-{}.png"),
    "by tooth": by_tooth("Tooth-wise/{}_{}.png"),
    "name before": lambda seed: {f"gt/mask_{seed}.png": saved(mask(seed))},
    "a folder each": by_tooth("gt/{}/1{}.png"),
    "counted words": lambda seed: {f"gt/label{seed}.png": saved(mask(seed))},
    "both": lambda seed: {f"Radiograph-wise/{seed}.png": saved(mask(seed)), **by_tooth("Tooth-wise/{}_{}.png")(seed)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_folder_give_the_teeth(tmp_path, capsys, form):
    members = {f"img/{seed}.png": scan(seed) for seed in SEEDS}
    for seed in SEEDS:
        members |= FORMS[form](seed)
    code, samples, said = packed(tmp_path, members, capsys)
    assert code == 0, said
    assert "boxes: masks" in said
    assert_teeth(samples, SEEDS)
    totals = json.loads((tmp_path / "out" / "manifest.json").read_text())["ledgers"]
    assert totals["radiographs"] == {"seen": 3, "used": 3, "rejected": 0}
    assert totals["files"]["rejected"] == (3 if form == "both" else 0)


@pytest.mark.parametrize(
    ("image", "drawn"),
    [("{}_image.png", "{}_mask.png"), ("img_{}.png", "seg_{}.png"), ("case{}/image.png", "case{}/mask.png")],
)
def test_radiographs_whose_names_say_what_they_are(tmp_path, capsys, image, drawn):
    members = {image.format(seed): scan(seed) for seed in SEEDS}
    members |= {drawn.format(seed): saved(mask(seed)) for seed in SEEDS}
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS)
    assert "boxes: masks" in said


def test_a_folder_above_several_kinds_chooses_all(tmp_path, capsys):
    members = {}
    for seed in SEEDS:
        members |= {f"img/{seed}.png": scan(seed), f"jaw/{seed}.png": jaw()}
        members |= {
            f"gt/{kind}/{seed}.png": saved(mask(seed, k)) for k, kind in enumerate(("one", "two", "three", "four"))
        }
    code, _, said = packed(tmp_path, members, capsys)
    assert code == 2
    assert "gt/four (3 masks)" in said
    _, samples, _ = packed(tmp_path, members, capsys, "--masks", "gt")
    assert_teeth(samples, SEEDS)


def test_masks_of_no_radiograph_stop_the_pack(tmp_path, capsys):
    members = {f"img/op{seed}x.png": scan(seed) for seed in SEEDS}
    members |= {f"masks/{seed}.png": saved(mask(seed)) for seed in SEEDS}
    code, samples, said = packed(tmp_path, members, capsys)
    assert (code, samples) == (2, [])
    assert "masks that belong to no radiograph by name" in said


def test_a_drawing_over_a_radiograph_is_no_radiograph(tmp_path, capsys):
    members = {}
    for seed in SEEDS:
        drawn = np.repeat(radiograph(seed)[..., None], 3, 2)
        for x0, y0, x1, y1 in teeth(seed):
            cv2.rectangle(drawn, (x0, y0), (x1, y1), (255, 40, 0), 1)
        members |= {f"img/{seed}.png": scan(seed), f"shown/{seed}.jpg": saved(drawn, "jpeg", quality=75)}
        members[f"gt/{seed}.png"] = saved(mask(seed))
    _, samples, _ = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS)


def test_a_tooth_in_two_pieces_is_one_box(tmp_path, capsys):
    """A mask of one tooth may be cut by a filling; a mask of several teeth has as many boxes."""
    members = {"img/0.png": scan(0)}
    for k, (_x0, y0, _x1, y1) in enumerate(teeth(0)):
        pixels = mask(0, k)
        pixels[y0 + (y1 - y0) // 4 : y0 + (y1 - y0) // 4 + 3] = 0
        members[f"gt/0_{k}.png"] = saved(pixels)
    _, samples, _ = packed(tmp_path, members, capsys)
    assert_teeth(samples, [0])


KINDS = {
    "one folder a radiograph": ("img/{}/jaw.png", "img/{}/teeth.png", "teeth"),
    "folders": ("Segmentation/jaw/{}.png", "Segmentation/teeth/{}.png", "teeth"),
    "endings": ("img/{}_jaw.png", "img/{}_teeth.png", "_teeth"),
    "subsets": ("train/jaw/{}.png", "train/teeth/{}.png", "TEETH"),
}


@pytest.mark.parametrize("case", KINDS)
def test_masks_of_several_kinds_are_a_question(tmp_path, capsys, case):
    one, other, chosen = KINDS[case]
    members = {}
    for seed in SEEDS:
        members |= {f"img/{seed}.png": scan(seed), one.format(seed): jaw(), other.format(seed): saved(mask(seed))}
    code, samples, said = packed(tmp_path, members, capsys)
    assert (code, samples) == (2, [])
    assert "masks of several kinds" in said
    assert all(words in said for words in ("jaw (3 masks)", "teeth (3 masks)", "--masks"))
    code, samples, said = packed(tmp_path, members, capsys, "--masks", chosen)
    assert_teeth(samples, SEEDS)
    assert "a mask of another kind than --masks says" in said
    code, _, said = packed(tmp_path / "out", members, capsys, "--masks", "lesions")
    assert code == 2
    assert "there are no such masks" in said


def test_maps_of_gaze_are_neither_radiographs_nor_masks(tmp_path, capsys):
    members = {}
    for seed in SEEDS:
        heat = np.zeros((HEIGHT, WIDTH), np.float32)
        for x0, y0, x1, y1 in teeth(seed)[:2]:
            cv2.circle(heat, ((x0 + x1) // 2, (y0 + y1) // 2), 12, 255, -1)
        heat = cv2.GaussianBlur(heat, (0, 0), 11)
        heat = (heat / heat.max() * 255).astype(np.uint8)
        members |= {f"img/{seed}.png": scan(seed), f"teeth/{seed}.png": saved(mask(seed))}
        members[f"gaze/{seed}.jpg"] = saved(heat, "jpeg", quality=92)
        members[f"gaze in colours/{seed}.jpg"] = saved(cv2.applyColorMap(heat, cv2.COLORMAP_JET), "jpeg")
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS)
    assert "6 files" in said
    assert "as a map of gaze or attention" in said
    _, samples, _ = packed(tmp_path / "out", members, capsys, "--boxes", "none")
    assert len(samples) == 3


def test_an_image_of_few_values_is_a_radiograph_only_alone(tmp_path, capsys):
    """Two exposures with one name are two radiographs; a drawing with the name of a radiograph is none."""
    coarse = radiograph(3) // 16 * 16  # 16 grays, as an old scanner has
    members = {"a/1.png": scan(0), "b/1.png": scan(1), "c/2.png": saved(mask(2)), "d/1.png": saved(coarse)}
    _, samples, _ = packed(tmp_path, members, capsys)
    assert len(samples) == 4
    (tmp_path / "with").mkdir()
    _, samples, _ = packed(tmp_path / "with", {**members, "e/2.png": scan(2)}, capsys, "--boxes", "none")
    assert len(samples) == 4


def test_what_may_be_a_mask_is_told_by_its_first_bytes():
    for raw, expected in (
        (saved(mask(0)), True),
        (saved(mask(0), "jpeg"), True),
        (saved(mask(0), "tiff"), True),
        (saved(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)), False),
        (saved(np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8), "jpeg", quality=95), False),
    ):
        assert may_be_mask(raw[:4096], len(raw)) is expected


def test_a_lossy_codecs_noise_is_no_value():
    noisy = read_mask(saved(mask(1, values=(50, 100, 150, 200)), "jpeg", quality=90))
    assert sorted(noisy.values) == [50, 100, 150, 200]
    assert np.abs(np.sort(noisy.boxes, 0) - np.sort(np.array(teeth(1)), 0)).max() <= 1
    assert "a picture" in read_mask(saved(radiograph(1), "jpeg", quality=90)).reason
    for grays in (8, 16, 32, 64):
        assert not read_mask(saved(radiograph(1) // (256 // grays) * (256 // grays))).drawn
