"""Every operation on grays against its formula in float64, at every depth, and as an albumentations transform."""

import json
import math
import random
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter

from augment import (
    RECIPES,
    BurnedInText,
    CollimatorEdge,
    LocalContrast,
    Motion,
    MultiCrop,
    QuantumNoise,
    RegionWarp,
    Sharpening,
    Tone,
    Unsharpness,
    ViewConfig,
    ViewError,
    stacked,
)
from augment.__main__ import RUN_RECIPES, recipe_views
from augment.gray_levels import checked, from_unit, unit
from augment.intensity import GRAINS, WINDOW
from augment.multicrop import operations
from augment.transforms import Operation

OPERATIONS = [Unsharpness, Motion, QuantumNoise, LocalContrast, Sharpening, Tone, CollimatorEdge, BurnedInText]
DEPTHS = {"uint8": (np.uint8, 255), "uint16": (np.uint16, 65535), "float32": (np.float32, 1)}
every_depth = pytest.mark.parametrize("depth", DEPTHS)


def picture(depth: str, height: int = 96, width: int = 72, seed: int = 0) -> np.ndarray:
    """Waves, an edge and noise over most of the range, with all the levels of its depth."""
    dtype, white = DEPTHS[depth]
    y, x = np.mgrid[:height, :width]
    wave = 0.5 + 0.25 * np.sin(9 * x / width) * np.cos(11 * y / height) + 0.15 * (x > width / 2)
    image = np.clip(wave + np.random.default_rng(seed).normal(0, 0.05, wave.shape), 0.02, 0.98) * white
    return image.astype(np.float32) if depth == "float32" else np.rint(image).astype(dtype)


def in_unit(image: np.ndarray) -> np.ndarray:
    """float64 from 0 to 1."""
    return image.astype(np.float64) / {"u1": 255, "u2": 65535, "f4": 1}[image.dtype.str[1:]]


def agrees(operation: Operation, setting: dict, image: np.ndarray, exact: np.ndarray, levels: float) -> None:
    """Within `levels` of 8 bits for uint8; for deeper images within what float32 and one rounding leave."""
    result = operation.apply(image, setting)
    assert result.dtype == image.dtype
    assert result.shape == image.shape
    assert not np.may_share_memory(result, image)
    allowed = {"u1": levels / 255, "u2": 0.6 / 65535 + 3e-6, "f4": 3e-6}[image.dtype.str[1:]]
    assert np.abs(in_unit(result) - np.clip(exact, 0, 1)).max() <= allowed


def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    return convolve1d(convolve1d(x, kernel, axis=0), kernel, axis=1)


# --- each formula, in float64


@every_depth
@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.04])
def test_blur_is_a_gaussian(depth: str, sigma: float) -> None:
    image = picture(depth)
    agrees(Unsharpness(), {"sigma": sigma}, image, gaussian(in_unit(image), max(0.5, sigma * 96)), 1.0)
    wide = picture(depth, 400, 300)
    true = gaussian_filter(in_unit(wide), sigma * 400, mode="reflect", truncate=6)
    assert np.abs(in_unit(Unsharpness().apply(wide, {"sigma": sigma})) - true).max() < 2 / 255


@every_depth
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("pixels", [0.5, 1.5, 2.0, 3.0, 4.7])
def test_motion_is_the_mean_over_its_way(depth: str, across: bool, pixels: float) -> None:
    image = picture(depth)
    fine = 200  # the way in steps of 1/200 pixel, each counted at the pixel it falls on
    way = max(1.5, pixels)
    offsets = np.rint((np.arange(fine) + 0.5) / fine * way - way / 2).astype(int)
    kernel = np.bincount(offsets + 5, minlength=11) / fine
    exact = convolve1d(in_unit(image), kernel, axis=1 if across else 0)
    result = in_unit(Motion().apply(image, {"length": pixels / 96, "across": across}))
    assert np.abs(result - exact).max() < 1 / 255 + 2 / fine


@every_depth
@pytest.mark.parametrize("amount", [-0.3, 0.5, 1.0])
def test_local_contrast_enlarges_the_difference_to_the_local_mean(depth: str, amount: float) -> None:
    for height, width in ((320, 240), (128, 96), (24, 18)):
        x = in_unit(picture(depth, height, width))
        exact = x + amount * (x - gaussian_filter(x, WINDOW * height, mode="reflect"))
        result = in_unit(LocalContrast().apply(picture(depth, height, width), {"amount": amount}))
        difference = np.abs(result - np.clip(exact, 0, 1))
        # The mean is taken on a small copy and cut off at 3 deviations: an approximation, alike at every depth.
        assert difference.max() < 0.02 * abs(amount) + 1 / 255
        assert difference.mean() < 0.005 * abs(amount) + 0.3 / 255


@every_depth
@pytest.mark.parametrize("amount", [0.3, 1.5])
def test_sharpening_is_unsharp_masking(depth: str, amount: float) -> None:
    image = picture(depth, 320, 240)
    x = in_unit(image)
    exact = x + amount * (x - gaussian(x, 0.004 * 320))
    agrees(Sharpening(), {"amount": amount}, image, exact, 1.0 + amount)


@every_depth
@given(st.floats(-1, 1), st.floats(0.2, 5), st.floats(0.2, 5))
def test_tone_is_its_formula(depth: str, brightness: float, contrast: float, gamma: float) -> None:
    image = picture(depth, 12, 9)
    x = in_unit(image)
    level = x.mean() ** gamma
    exact = (x**gamma - level) * contrast + level + brightness
    setting = {"brightness": brightness, "contrast": contrast, "gamma": gamma}
    agrees(Tone(), setting, image, exact, 0.501)


@every_depth
def test_neutral_tone_changes_nothing(depth: str) -> None:
    image = picture(depth)
    same = Tone().apply(image, {"brightness": 0.0, "contrast": 1.0, "gamma": 1.0})
    np.testing.assert_allclose(in_unit(same), in_unit(image), atol=1e-7)


@every_depth
def test_noise_grows_with_darkness_as_the_square_root_of_dose(depth: str) -> None:
    dtype, white = DEPTHS[depth]
    for gray in (0.25, 0.5, 0.8, 1.0):
        for grain in GRAINS:
            flat = np.full((300, 300), gray * white, dtype)
            noisy = QuantumNoise().apply(flat, {"strength": 0.04, "grain": grain, "place": (0.3, 0.8)})
            level = in_unit(flat)[0, 0]
            rounding = 0.29 / 255 if depth == "uint8" and gray < 1 else 0
            expected = math.hypot(0.04 * math.sqrt(1 - level), rounding)
            assert in_unit(noisy).std() == pytest.approx(expected, rel=0.03, abs=1e-6)
            assert in_unit(noisy).mean() == pytest.approx(level, abs=0.001)


@pytest.mark.parametrize("grain", GRAINS)
def test_the_noise_has_its_grain(grain: float) -> None:
    flat = np.full((400, 400), 0.3, np.float32)
    noise = QuantumNoise().apply(flat, {"strength": 0.04, "grain": grain, "place": (0.0, 0.0)}).astype(float) - 0.3
    noise /= noise.std()
    kernel = np.exp(-(np.arange(-9, 10) ** 2) / (2 * grain**2)) if grain else np.eye(19)[9]
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()  # of white noise smoothed by it
    for neighbours in (noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1]):
        assert neighbours.mean() == pytest.approx(expected, abs=0.03)


def test_noise_larger_than_its_stored_field() -> None:
    image = np.zeros((1200, 700), np.uint8)
    assert QuantumNoise().apply(image, {"strength": 0.04, "grain": 0.0, "place": (0.999, 0.999)}).std() > 1


@pytest.mark.parametrize("size", [(128, 96), (512, 512), (1024, 700)])
def test_no_two_views_have_the_same_noise(size: tuple[int, int]) -> None:
    flat = np.full(size, 0.3, np.float32)
    seen = set()
    for place in np.random.default_rng(0).random((40, 2)):
        seen.add(QuantumNoise().apply(flat, {"strength": 0.02, "grain": 0.6, "place": tuple(place)}).tobytes())
    assert len(seen) == 40


@every_depth
@pytest.mark.parametrize("side", range(4))
def test_beyond_the_collimator_edge_all_is_one_gray(depth: str, side: int) -> None:
    image = picture(depth)
    height, width = image.shape
    near, far = 0.1, 0.25
    result = CollimatorEdge().apply(image, {"side": side, "ends": (near, far), "bright": side < 2})
    y, x = np.mgrid[:height, :width]
    along, depth_in, reach = (
        (y / height, x, width),
        (x / width, y, height),
        (y / height, width - 1 - x, width),
        (x / width, height - 1 - y, height),
    )[side]
    beyond = depth_in - (near + (far - near) * along) * reach
    assert np.all(in_unit(result)[beyond < -1.5] == (side < 2))
    np.testing.assert_array_equal(result[beyond > 1.5], image[beyond > 1.5])


@pytest.mark.parametrize("size", [(320, 240), (64, 48), (32, 24)])
def test_the_collimator_edge_is_alike_on_every_side(size: tuple[int, int]) -> None:
    image = np.full(size, 100, np.uint8)
    for width in (0.0, 0.03, 0.1, 0.15):
        painted = [
            CollimatorEdge().apply(image, {"side": side, "ends": (width, width), "bright": False}) for side in range(4)
        ]
        assert [np.sum(p == 0) for p in painted] == [
            round(width * size[1 - side % 2]) * size[side % 2] for side in range(4)
        ]
        np.testing.assert_array_equal(painted[0][:, ::-1], painted[2])
        np.testing.assert_array_equal(painted[1][::-1], painted[3])


@pytest.mark.parametrize("path", sorted([*RECIPES.glob("*.yaml"), *RUN_RECIPES.glob("*.yaml")]), ids=lambda p: p.stem)
def test_no_operation_of_a_recipe_leaves_a_view_as_it_is(path: Path) -> None:
    """At its mildest, in the largest and the smallest views; letters need 48 pixels, and a Tone may draw no change."""
    config = recipe_views(path.stem)
    for size in (config.global_size, config.local_size):
        image = picture("uint8", *size)
        for operation in operations(config):
            for u in ([0.0] * 7, [0.99] * 7):
                if operation.p > 0 and not (isinstance(operation, BurnedInText) and size[0] < 48):
                    changed = operation.change(image, 255.0, **operation.draw(u)) != image
                    assert changed.mean() > 0.001, f"{type(operation).__name__} {size} {u[0]}"


@every_depth
@given(u=st.lists(st.floats(0, 1, exclude_max=True), min_size=7, max_size=7))
@settings(max_examples=30)
def test_text_is_small_and_at_the_top_or_bottom(depth: str, u: list[float]) -> None:
    dtype, white = DEPTHS[depth]
    image = np.full((128, 96), white / 2, dtype)
    setting = BurnedInText().draw(u)
    changed = BurnedInText().apply(image, setting) != image
    rows = np.flatnonzero(changed.any(1))
    assert 3 <= len(rows) <= 0.14 * 128 + 2
    assert 0 < changed.mean() < 0.1
    assert rows.max() < 0.35 * 128 or rows.min() > 0.75 * 128


# --- every depth alike


@every_depth
@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 2), (50, 1), (64, 48, 1)])
def test_every_operation_takes_any_shape(depth: str, kind: type[Operation], shape: tuple[int, ...]) -> None:
    image = picture(depth, *shape[:2]).reshape(shape)
    before = image.copy()
    result = kind().apply(image, kind().draw([0.7] * 7))
    assert result.shape == shape
    assert result.dtype == image.dtype
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_deep_image_keeps_its_levels(kind: type[Operation]) -> None:
    image = picture("uint16", 320, 240)
    result = kind().apply(image, kind().draw([0.9] * 7))
    assert len(np.unique(result)) > 5000


@settings(max_examples=25)
@given(key=st.integers(0, 10**6), shape=st.sampled_from([(110, 26), (110, 60), (300, 200)]))
def test_a_view_means_the_same_at_every_depth(key: int, shape: tuple[int, int]) -> None:
    """All operations on: 8 bits differ by their own rounding, which sharpening enlarges; deep ones hardly at all."""
    config = ViewConfig(global_size=(64, 48), local_size=(32, 24), text_probability=0.0, border_probability=0.0)
    image = picture("uint8", *shape, seed=key)
    shallow = MultiCrop(config)(image, (key,))
    deep = MultiCrop(config)(image.astype(np.uint16) * 257, (key,))
    real = MultiCrop(config)(image.astype(np.float32) / np.float32(255), (key,))
    for a, b, c in zip(shallow, deep, real, strict=True):
        assert np.abs(in_unit(b) - in_unit(c)).max() < 2e-4  # a warp of uint16 rounds its result to 1/65535
        difference = np.abs(in_unit(a) - in_unit(b))
        assert difference.mean() < 1.5 / 255
        assert difference.max() < 12 / 255


def test_twelve_bits_stored_in_sixteen_are_raised_to_them() -> None:
    image = picture("uint16") >> 4
    config = ViewConfig(global_size=(64, 48), local_size=(32, 24))
    raised = np.rint(image * (65535 / 4095)).astype(np.uint16)
    for a, b in zip(MultiCrop(config)(image, (4,), bits=12), MultiCrop(config)(raised, (4,)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ViewError, match="11 bits holds the gray"):
        checked(image, 11)


@every_depth
def test_unit_and_back(depth: str) -> None:
    image = picture(depth)
    np.testing.assert_array_equal(from_unit(unit(image), image.dtype), image)


def test_images_of_one_depth_stack_as_they_are_and_of_several_as_floats() -> None:
    shallow, deep = picture("uint8"), picture("uint16")
    np.testing.assert_array_equal(stacked([shallow, shallow]), np.stack([shallow, shallow]))
    mixed = stacked([shallow, deep])
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, [in_unit(shallow), in_unit(deep)], atol=1e-7)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_wrong_image_is_refused(kind: type[Operation]) -> None:
    for image in (np.zeros((5, 5), np.int32), np.zeros((5, 5, 3), np.uint8)):
        with pytest.raises(ViewError):
            kind().apply(image, kind().draw([0.5] * 7))


# --- extra transforms, by name


def extra(*entries: dict, **more: object) -> ViewConfig:
    return ViewConfig(global_size=(64, 48), local_size=(32, 24), local_count=2, extra=list(entries), **more)  # type: ignore[arg-type]


def test_an_extra_transform_is_applied_and_drawn_from_its_own_stream() -> None:
    image = picture("uint8")
    plain = MultiCrop(extra())(image, (1,))
    flipped = MultiCrop(extra({"name": "VerticalFlip", "p": 1.0}))(image, (1,))
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a[::-1], b)
    two = MultiCrop(extra({"name": "VerticalFlip", "p": 0.5}, {"name": "HorizontalFlip", "p": 0.5}))
    happened = []
    for sample in range(500):
        for view, start in zip(two(image, (sample,)), MultiCrop(extra())(image, (sample,)), strict=True):
            happened.append([np.array_equal(view, start[::v, ::h]) for v in (1, -1) for h in (1, -1)])
    assert np.all(np.sum(happened, 1) == 1)
    assert np.abs(np.mean(happened, 0) - 0.25).max() < 0.03  # coinciding streams would leave two of the four at 0


def test_an_extra_transform_is_as_deterministic_as_the_rest() -> None:
    config = extra(
        {"name": "CLAHE", "p": 0.5, "clip_limit": [1, 3]},
        {"name": "GaussNoise", "p": 0.5},
        {"name": "GridDistortion", "p": 0.5},
        {"name": "ElasticTransform", "p": 0.5},
    )
    image = picture("uint8")
    first = MultiCrop(config)(image, (7, 1))
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    MultiCrop(config)(image, (8, 1))
    for a, b in zip(first, MultiCrop(config)(image, (7, 1)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "Clahe"}, "names 'Clahe'"),
        ({"p": 1.0}, "names 'None'"),
        ({"name": "OneOf"}, "compositions such as OneOf are not taken"),
        ({"name": "CLAHE", "clip_limits": [1, 3]}, "clip_limits"),
        ({"name": "CLAHE", "p": 2.0}, "CLAHE cannot be made"),
        ({"name": "RandomFog"}, "RandomFog fails on a gray view"),
        ({"name": "ToGray"}, "ToGray"),
        ({"name": "NoOp"}, "NoOp changes nothing"),
        ({"name": "AutoContrast"}, "AutoContrast changes nothing"),  # so it is, in albumentations 2.0.8
        ({"name": "Resize", "height": 20, "width": 20}, "Resize made uint8 of"),
    ],
)
def test_a_wrong_extra_transform_is_named(entry: dict, said: str) -> None:
    with pytest.raises(ViewError, match=r"views\.extra") as caught:
        MultiCrop(extra(entry))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["CLAHE", "Equalize", "MedianBlur", "ImageCompression"])
def test_an_extra_transform_that_loses_levels_is_refused_at_the_first_deep_crop(name: str) -> None:
    multi_crop = MultiCrop(extra({"name": name, "p": 0.01}))
    multi_crop(picture("uint8", 300, 200), (0,))
    with pytest.raises(ViewError, match=f"{name} works on 256 grays"):
        multi_crop(picture("uint16", 300, 200), (0,))


@pytest.mark.parametrize("name", ["RandomGamma", "GaussianBlur", "GridDistortion", "VerticalFlip", "GaussNoise"])
def test_an_extra_transform_that_keeps_levels_is_taken_at_every_depth(name: str) -> None:
    multi_crop = MultiCrop(extra({"name": name, "p": 1.0}))
    assert len(np.unique(multi_crop(picture("uint16", 300, 200), (0,))[0])) > 1000


def test_a_size_that_no_view_has_is_not_tried() -> None:
    config = ViewConfig(global_size=(64, 48), local_count=0, extra=[{"name": "RandomResizedCrop", "size": [64, 48]}])
    assert MultiCrop(config)(picture("uint8"), (0,))[0].shape == (64, 48)


# --- as albumentations transforms


def test_transforms_compose_and_follow_set_random_state() -> None:
    image = picture("uint8", 60, 40)
    transforms = [
        RegionWarp((32, 24)),
        A.HorizontalFlip(p=0.5),
        Unsharpness(p=1.0),
        Motion(p=1.0),
        QuantumNoise(p=1.0),
        LocalContrast(p=1.0),
        Sharpening(p=1.0),
        Tone(),
        CollimatorEdge(p=1.0),
        BurnedInText(p=1.0),
    ]

    def drawn(seed: int) -> np.ndarray:
        composed = A.Compose(transforms)
        rng, py_rng = np.random.default_rng(seed), random.Random(seed)
        for transform in composed.transforms:
            transform.set_random_state(rng, py_rng)
        return np.asarray(composed(image=image)["image"])

    assert drawn(1).shape == (32, 24)
    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert np.any(drawn(1) != drawn(2))


@pytest.mark.parametrize("transform", [RegionWarp((32, 24)), *(kind() for kind in OPERATIONS)])
def test_transforms_can_be_written_down_and_read_back(transform: A.BasicTransform) -> None:
    written = A.to_dict(A.Compose([transform]))
    again = A.from_dict(json.loads(json.dumps(written)))
    assert json.dumps(A.to_dict(again)) == json.dumps(written)


def test_a_mask_takes_the_same_warp_and_keeps_its_labels() -> None:
    mask = np.zeros((120, 90), np.uint8)
    mask[30:90, 20:50] = 7
    transform = RegionWarp((64, 48), p=1.0)
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    result = transform(image=mask * 30, mask=mask)
    assert set(np.unique(result["mask"])) == {0, 7}
    agree = (result["image"] > 105) == (result["mask"] == 7)
    assert agree.mean() > 0.97
