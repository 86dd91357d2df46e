"""The augment room: views against float64 references, purity, independence, and the preview command."""

import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from augment import RECIPES, MultiCrop, ViewConfig, ViewError, fit
from augment.__main__ import RUN_RECIPES, main, recipe_views
from augment.geometry import Levels, Region, warp
from augment.operation_strips import strips
from augment.preview import draw_sheet, draw_views
from augment.resize import MAX_STRETCH

PLAIN = {
    "global_scale": (1.0, 1.0),
    "mirror_probability": 0.0,
    "rotation_probability": 0.0,
    "aspect_jitter": 0.0,
    "brightness": (0.0, 0.0),
    "contrast": (1.0, 1.0),
    "gamma": (1.0, 1.0),
    "blur_probability": 0.0,
    "motion_probability": 0.0,
    "noise_probability": 0.0,
    "local_contrast_probability": 0.0,
    "sharpen_probability": 0.0,
    "border_probability": 0.0,
    "text_probability": 0.0,
    "local_count": 0,
}
"""Settings under which a global view is the image resized."""
SMALL = ViewConfig(global_size=(32, 24), local_size=(16, 12), local_count=4)


def smooth_image(height: int, width: int, waves: float = 3.0) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(float)
    wave = np.sin(waves * 2 * np.pi * x / width + 1) * np.cos(waves * 2 * np.pi * y / height + 0.3)
    return np.round(127.5 + 100 * wave).astype(np.uint8)


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


shapes = st.tuples(st.integers(1, 150), st.integers(1, 150))


# --- the contract of MultiCrop


@settings(max_examples=60, deadline=None)
@given(shape=shapes, key=st.lists(st.integers(0, 2**63), min_size=1, max_size=5), deep=st.booleans())
def test_views_have_their_sizes_on_any_shape(shape: tuple[int, int], key: list[int], deep: bool) -> None:
    image = noise_image(*shape)
    views = MultiCrop(SMALL)(image.astype(np.uint16) * 257 if deep else image, key)
    assert [view.shape for view in views] == [(32, 24)] * 2 + [(16, 12)] * 4
    assert all(view.dtype == (np.uint16 if deep else np.uint8) and view.flags.c_contiguous for view in views)


@settings(max_examples=200, deadline=None)
@given(shape=st.one_of(shapes, st.sampled_from([(110, 26), (26, 110), (1, 1000)])), draw=st.integers(0, 10**6))
def test_no_view_is_stretched_by_more_than_a_third(shape: tuple[int, int], draw: int) -> None:
    for region in MultiCrop(SMALL).regions(shape, (draw,)):
        stretch = (region.width / region.height) / (region.size[1] / region.size[0])
        assert 1 / MAX_STRETCH - 1e-9 <= stretch <= MAX_STRETCH + 1e-9
        shown = min(region.width, shape[1]) * min(region.height, shape[0]) / (shape[0] * shape[1])
        low, high = SMALL.global_scale if region.size == SMALL.global_size else SMALL.local_scale
        slack = (region.width + region.height + 1) / (shape[0] * shape[1])  # an upright region ends at whole pixels
        assert low - slack <= shown <= high + slack or region.width > shape[1] or region.height > shape[0]
        assert abs(region.x - shape[1] / 2) <= shape[1] / 2
        assert abs(region.y - shape[0] / 2) <= shape[0] / 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.float64),
        np.zeros((5, 5, 3), np.uint8),
        np.zeros((0, 5), np.uint8),
        np.full((5, 5), 1.5, np.float32),
        np.full((5, 5), -0.1, np.float32),
        np.full((5, 5), np.nan, np.float32),
    ],
)
def test_an_image_of_another_kind_is_refused_in_one_line(image: np.ndarray) -> None:
    for call in (lambda: MultiCrop(SMALL)(image, (0,)), lambda: fit(image, (32, 24))):
        with pytest.raises(ViewError, match=r"uint8|0 \(black\) to 1") as caught:
            call()
        assert "\n" not in str(caught.value)


def _views_of(samples: list[int]) -> dict[int, list[np.ndarray]]:
    multi_crop = MultiCrop(SMALL)
    return {sample: multi_crop(noise_image(50, 30, sample), (7, 1, 0, sample)) for sample in samples}


def test_views_do_not_depend_on_order_process_or_global_state() -> None:
    here = _views_of(list(range(6)))
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    backwards = _views_of(list(range(5, -1, -1)))
    with get_context("spawn").Pool(1) as pool:
        there = pool.apply(_views_of, ([4, 0, 5],))
    for other in (backwards, there):
        for sample, views in other.items():
            for view, expected in zip(views, here[sample], strict=True):
                np.testing.assert_array_equal(view, expected)


def test_a_multi_crop_can_be_sent_to_a_worker() -> None:
    image, multi_crop = noise_image(50, 30), MultiCrop(SMALL)
    for view, same in zip(multi_crop(image, (2,)), pickle.loads(pickle.dumps(multi_crop))(image, (2,)), strict=True):
        np.testing.assert_array_equal(view, same)


def test_every_part_of_the_key_and_every_view_draws_anew() -> None:
    image, multi_crop = noise_image(50, 30), MultiCrop(SMALL)
    first = [(r.x, r.y) for r in multi_crop.regions(image.shape, (1, 2, 3, 4))]
    assert len(set(first)) == len(first)
    for key in [
        (0, 2, 3, 4),
        (1, 0, 3, 4),
        (1, 2, 0, 4),
        (1, 2, 3, 0),
        (1, 2, 3),
        (1, 2, 3, 4, 0),
        (1, 2, 3, 4 + 2**32),
    ]:
        assert not set(first) & {(r.x, r.y) for r in multi_crop.regions(image.shape, key)}


def test_a_view_does_not_depend_on_how_many_others_there_are() -> None:
    image = noise_image(50, 30)
    few = MultiCrop(ViewConfig(global_size=(32, 24), local_size=(16, 12), local_count=1))(image, (5,))
    for view, same in zip(few, MultiCrop(SMALL)(image, (5,)), strict=False):
        np.testing.assert_array_equal(view, same)


def test_operations_are_independent_of_each_other_and_between_views() -> None:
    """Mirror, blur, noise and a bright shift at one half each: every pair of events must factorise."""
    size = (24, 18)
    ramp = np.tile(np.linspace(40, 120, size[1]).astype(np.uint8), (size[0], 1))
    ramp[:, size[1] // 2] += 60  # a line that blur flattens
    config = ViewConfig(
        **PLAIN
        | {
            "global_size": size,
            "mirror_probability": 0.5,
            "brightness": (-0.1, 0.1),
            "blur_probability": 0.5,
            "blur_sigma": (0.1, 0.1),
            "noise_probability": 0.5,
            "noise_strength": (0.02, 0.02),
        }
    )
    multi_crop, events = MultiCrop(config), []
    for sample in range(1500):
        row: list[bool] = []
        for view in multi_crop(ramp, (0, sample)):
            gray = view.astype(float)
            mean = gray.mean(0)
            row += [
                bool(mean[:4].mean() > mean[-4:].mean()),  # mirrored
                bool(np.abs(np.diff(mean, 2)).max() < 40),  # blurred
                bool(gray.std(0).mean() > 1),  # noisy
                bool(gray.mean() > ramp.mean()),  # brightened
            ]
        events.append(row)
    happened = np.array(events, float)
    assert np.all(np.abs(happened.mean(0) - 0.5) < 0.06), happened.mean(0)
    correlation = np.corrcoef(happened.T) - np.eye(happened.shape[1])
    assert np.abs(correlation).max() < 4 / math.sqrt(len(happened)), correlation.round(3)


def test_all_operations_and_their_settings_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether each operation happens, the tone and the warp, in two views of a sample: no two go together."""
    always = {f"{name}_probability": 0.5 for name in ("blur", "motion", "noise", "local_contrast", "sharpen")}
    always |= {"border_probability": 0.5, "text_probability": 0.5}
    multi_crop = MultiCrop(ViewConfig(global_size=(8, 6), local_count=0, **always))
    seen: dict[str, float] = {}
    for _, operation in multi_crop._operations:
        name, draw = type(operation).__name__, operation.draw

        def noted(u: list[float], name: str = name, draw: Callable = draw) -> dict:
            seen[f"{name} happens"] = 1.0
            seen[f"{name} number"] = u[0]
            return draw(u)

        monkeypatch.setattr(operation, "draw", noted)
        monkeypatch.setattr(operation, "change", lambda image, white, **setting: image)
    rows: list[dict[str, float]] = []
    monkeypatch.setattr(
        "augment.multicrop.warp", lambda levels, region: rows.append(dict(seen)) or seen.clear() or region
    )
    image, samples = noise_image(40, 30), 3000
    for sample in range(samples):
        multi_crop(image, (3, sample))
    # What was noted before a warp belongs to the view before it.
    regions = [region for sample in range(samples) for region in multi_crop.regions(image.shape, (3, sample))]
    names = [f"{type(o).__name__} happens" for _, o in multi_crop._operations if o.p < 1] + ["Tone number"]
    drawn = np.array([[row.get(name, 0.0) for name in names] for row in rows[1:]])
    turned = [[region.mirrored, region.angle != 0, region.x, region.height] for region in regions[:-1]]
    both = np.concatenate([drawn, turned], axis=1)
    pairs = np.concatenate([both[::2][: len(both) // 2], both[1::2][: len(both) // 2]], axis=1)  # two views of a sample
    correlation = np.corrcoef(pairs.T) - np.eye(pairs.shape[1])
    assert np.abs(correlation).max() < 5 / math.sqrt(len(pairs)), np.abs(correlation).max()
    assert np.abs(both[:, :7].mean(0) - 0.5).max() < 0.04


def test_a_setting_of_one_operation_leaves_the_draws_of_the_others() -> None:
    image = noise_image(64, 48)
    base = {"global_size": (32, 24), "local_count": 0, "border_probability": 1.0}
    narrow = MultiCrop(ViewConfig(border_width=(0.0, 0.0), **base))(image, (9,))
    without = MultiCrop(ViewConfig(**base | {"border_probability": 0.0}))(image, (9,))
    for a, b in zip(without, narrow, strict=True):
        np.testing.assert_array_equal(a, b)


# --- geometry


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(60, 120),
    width=st.integers(40, 120),
    zoom=st.floats(0.15, 0.8),
    angle=st.floats(-0.5, 0.5),
    mirrored=st.booleans(),
    shear=st.floats(-0.3, 0.3),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    depth=st.sampled_from([(np.uint8, 1.0), (np.uint16, 257.0), (np.float32, 1 / 255)]),
)
def test_warp_is_bilinear_to_a_gray_level(
    height: int,
    width: int,
    zoom: float,
    angle: float,
    mirrored: bool,
    shear: float,
    place: tuple[float, float],
    depth: tuple[type, float],
) -> None:
    image, size = smooth_image(height, width), (80, 60)
    region = Region(place[0] * width, place[1] * height, zoom * 60, zoom * 80 * 1.2, angle, mirrored, size, shear)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    across = (columns / size[1] - 0.5) * region.width * (-1 if mirrored else 1)
    down = (rows / size[0] - 0.5) * region.height
    across = across + shear * down
    x = region.x + across * np.cos(angle) - down * np.sin(angle)
    y = region.y + across * np.sin(angle) + down * np.cos(angle)
    expected = map_coordinates(image.astype(float), [y - 0.5, x - 0.5], order=1, mode="reflect")
    drawn = warp(Levels((image * depth[1]).astype(depth[0])), region)
    assert drawn.dtype == depth[0]
    assert np.abs(drawn / depth[1] - expected).max() <= 1.0
    corners = [[x[0, 0], y[0, 0]], [x[0, -1], y[0, -1]], [x[-1, -1], y[-1, -1]], [x[-1, 0], y[-1, 0]]]
    np.testing.assert_allclose(region.corners, corners, atol=1.5 * zoom)


@pytest.mark.parametrize(
    ("shape", "exact"), [((32, 24), 0), ((16, 12), 0), ((20, 14), 0), ((64, 48), 1), ((96, 72), 1)]
)
@pytest.mark.parametrize("depth", [1, 257])
def test_plain_settings_give_the_plain_resize(shape: tuple[int, int], exact: int, depth: int) -> None:
    """An enlarged upright view is to the bit what `fit` shows, so training and evaluation resize alike."""
    image = noise_image(*shape) if depth == 1 else noise_image(*shape).astype(np.uint16) * np.uint16(depth)
    view = MultiCrop(ViewConfig(**PLAIN | {"global_size": (32, 24)}))(image, (1,))[0]
    assert np.abs(view.astype(int) - fit(image, (32, 24))).max() <= exact * depth


@pytest.mark.parametrize("shape", [(110, 26), (26, 110), (151, 77), (77, 151), (300, 203)])
def test_plain_settings_show_what_fit_shows_at_any_shape(shape: tuple[int, int]) -> None:
    image = smooth_image(*shape, waves=1.0)
    view = MultiCrop(ViewConfig(**PLAIN | {"global_size": (64, 48)}))(image, (1,))[0]
    difference = np.abs(view.astype(int) - fit(image, (64, 48)))
    assert difference.mean() < 2.5
    assert difference.max() < 16


@pytest.mark.parametrize("shrink", [1.8, 2.0, 2.6, 3.5, 4.7, 9.4])
def test_detail_finer_than_the_views_pixels_is_averaged(shrink: float) -> None:
    size = (64, 48)
    height, width = round(size[0] * shrink), round(size[1] * shrink)
    region = Region(width / 2, height / 2, width, height, 0.0, False, size)
    y = np.arange(height) + 0.5
    for cycles in (0.75, 1.5):  # per pixel of the view; a view shows at most 0.5
        if cycles / shrink >= 0.5:
            continue
        wave = np.round(127.5 + 100 * np.sin(2 * np.pi * cycles * y * size[0] / height + 1))
        image = np.repeat(wave[:, None], width, axis=1).astype(np.uint8)
        aliased = warp(Levels(image), region).std() / image.std()
        plain = cv2.warpAffine(image, region.matrix, size[::-1], flags=cv2.WARP_INVERSE_MAP).std() / image.std()
        assert aliased < 0.5
        assert aliased < 0.75 * plain


# --- fit


@settings(max_examples=80, deadline=None)
@given(shape=shapes, size=st.tuples(st.integers(1, 80), st.integers(1, 80)), gray=st.integers(0, 255))
def test_fit_gives_the_size_and_keeps_a_flat_image(shape: tuple[int, int], size: tuple[int, int], gray: int) -> None:
    fitted = fit(np.full(shape, gray, np.uint8), size)
    assert fitted.shape == size
    assert fitted.dtype == np.uint8
    assert np.all(fitted == gray)


def test_fit_fills_a_narrow_image_by_reflection() -> None:
    image = noise_image(96, 12)
    fitted = fit(image, (96, 54))
    assert fitted.shape == (96, 54)
    extended = np.concatenate([np.concatenate([image, image[:, ::-1]], axis=1)] * 4, axis=1)  # period 24
    shown = extended[:, 24 - 14 : 24 - 14 + 41]  # 54 / 1.33 = 40.6 columns, 14 of them to the left
    np.testing.assert_array_equal(fitted, cv2.resize(shown, (54, 96), interpolation=cv2.INTER_LINEAR))


def test_fit_returns_its_own_array() -> None:
    image = noise_image(32, 24)
    fitted = fit(image, (32, 24))
    np.testing.assert_array_equal(fitted, image)
    assert not np.may_share_memory(fitted, image)


# --- configuration, preview, command line


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_size": (0, 3)},
        {"global_count": 0},
        {"local_scale": (0.5, 0.2)},
        {"mirror_probability": 1.5},
        {"aspect_jitter": 0.5},
        {"gamma": (0.0, 1.0)},
        {"blur_sigma": (-1.0, 0.1)},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ViewError, match=f"views.{next(iter(wrong))} is"):
        ViewConfig(**wrong)  # type: ignore[arg-type]


def test_every_recipe_says_why_beside_each_figure() -> None:
    for path in RECIPES.glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert all("#" in line for line in lines if ":" in line and not line.startswith(("#", "views:")))


def test_every_operation_has_a_strip_and_one_that_is_off_has_none() -> None:
    image = smooth_image(110, 60)
    captions = [[caption for caption, _ in strip] for strip in strips(image, ViewConfig())]
    assert [c[0].rstrip("-+.0123456789 x") for c in captions] == [
        "global", "local", "mirror", "-10 deg", "shear", "aspect", "blur", "motion across", "motion down",
        "grain 0 noise", "grain 0.6 noise", "grain 1 noise", "local contrast", "sharpening", "brightness",
        "contrast", "gamma", "white edge", "black edge", "text high",
    ]  # fmt: skip
    assert list(strips(image, ViewConfig(**PLAIN)))[1:] == []
    by_name = {caption: view for strip in strips(image, ViewConfig()) for caption, view in strip}
    plain = fit(image, (320, 240))
    for caption, view in by_name.items():
        if caption != "global 1":
            assert view.shape != plain.shape or np.any(view != plain), caption
    bright = by_name["brightness 0.1"].astype(int) - plain
    assert np.median(bright) == pytest.approx(25.5, abs=0.5)


def test_an_extra_transform_has_its_strip() -> None:
    config = ViewConfig(**PLAIN | {"extra": [{"name": "CLAHE", "p": 0.01}]})  # type: ignore[arg-type]
    captions = [caption for strip in strips(smooth_image(110, 60), config) for caption, _ in strip]
    assert captions == ["global 1", "global 1", "CLAHE 1", "CLAHE 2"]


def test_every_row_and_view_of_a_sheet_is_drawn() -> None:
    images = [noise_image(50, 30), noise_image(40, 90)]
    sheet = draw_views(images, MultiCrop(SMALL), [(0,), (1,)])
    whole = draw_sheet([image.astype(np.uint16) * 257 for image in images], MultiCrop(SMALL), [(0,), (1,)])
    assert whole.shape[0] > sheet.shape[0] + 3 * 200
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3
    assert sheet.shape[2] == 3
    assert sheet.shape[0] > 2 * 200
    half = sheet.shape[0] // 2
    assert all(part.std() > 20 for part in (sheet[:half], sheet[half:]))


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1), (4000, 3000)])
def test_a_sheet_of_any_crop_stays_a_sheet(shape: tuple[int, int]) -> None:
    sheet = draw_sheet([noise_image(*shape)], MultiCrop(SMALL), [(0,)])
    assert max(sheet.shape) < 8000


def test_preview_writes_a_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), smooth_image(110, 26))
    out = tmp_path / "new" / "sheet.png"
    (tmp_path / "mine.yaml").write_text("views: {local_count: 3, extra: [{name: CLAHE}]}\n")
    command = [sys.executable, "-m", "augment", "preview", str(tmp_path / "a.png"), "--views", "periapical"]
    command += ["--recipe", str(tmp_path / "mine.yaml")]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sheet = cv2.imread(str(out))
    assert sheet is not None
    assert sheet.shape[0] > 400
    assert sheet.std() > 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "--out", "s.png", "--recipe", "nowhere"], "no recipe 'nowhere'"),
        (["a.png", "--out", "s.png", "--recipe", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["a.png", "--out", "s.png", "--recipe", "a.txt"], "a.txt is no YAML file of settings"),
        (["a.png", "--out", "s.png", "--views", "bitewing"], "no recipe 'bitewing'"),
        (["a.txt", "--out", "s.png"], "a.txt is not an image"),
        (["none.png", "--out", "s.png"], "cannot read none.png"),
        (["empty", "--out", "s.png"], "no .tar shard in empty"),
        (["a.png", "--out", "s.gif"], "ends in .png"),
        (["a.png", "--out", "a.txt/s.png"], "cannot write"),
        (["a.png", "--out", "s.png", "--count", "0"], "--count 0"),
    ],
)
def test_preview_says_a_mistake_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), smooth_image(20, 20))
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["preview", *arguments])
    assert stopped.value.code == 2
    said_in_all = capsys.readouterr().err
    assert said in said_in_all
    assert said_in_all.count("\n") == 1


@pytest.mark.parametrize("path", sorted([*RECIPES.glob("*.yaml"), *RUN_RECIPES.glob("*.yaml")]), ids=lambda p: p.stem)
def test_the_views_of_every_recipe_are_read(path: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8")).get("views", {})
    views = recipe_views(path.stem)
    for name, value in written.items():
        assert getattr(views, name) == (tuple(value) if isinstance(value, list) else value)


def test_an_image_of_twelve_bits_is_drawn_as_bright_as_one_of_eight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = smooth_image(80, 60)
    sheets = []
    for name, pixels in (("shallow", image), ("deep", np.rint(image * (4095 / 255)).astype(np.uint16))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        main(["preview", str(tmp_path / f"{name}.png"), "--recipe", "smoke", "--out", str(tmp_path / "sheet.png")])
        sheets.append(cv2.imread(str(tmp_path / "sheet.png")))
    assert "deep.png is taken to have 12 bits" in capsys.readouterr().out
    assert abs(sheets[0].mean() - sheets[1].mean()) < 1


def test_a_wrong_field_of_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for views, said in [
        ("{colour: 1}", "colour"),
        ("{global_count: few}", "global_count"),
        ("{gamma: [0, 1]}", "gamma"),
    ]:
        (tmp_path / "mine.yaml").write_text(f"views: {views}\n")
        with pytest.raises(SystemExit):
            recipe_views(str(tmp_path / "mine.yaml"))
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
