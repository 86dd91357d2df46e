"""Any albumentations transform, by the name and the arguments that a recipe gives, tried out before a run starts."""

import random
import warnings
from typing import Any, NamedTuple

import albumentations as A
import numpy as np

from augment.config import ViewConfig, ViewError

TRIALS = 5
"""Draws that a transform gets to change a gray view: a quarter turn leaves it as it is in one of four."""


class Extra(NamedTuple):
    """A transform, and whether it keeps the levels of a deep view."""

    transform: A.BasicTransform
    deep: bool


def build_extra(config: ViewConfig) -> list[Extra]:
    """One transform for each `{name: CLAHE, p: 0.1, ...}` of `config.extra`, tried on gray views of its sizes.

    Raises `ViewError` naming the entry that cannot be made, that fails on one channel, or that does nothing to it:
    many of albumentations' are for colour only.
    """
    built = []
    for i, entry in enumerate(config.extra):
        where = f"views.extra[{i}]"
        always = _built({**entry, "p": 1.0}, where)
        _try(always, config, where)
        built.append(Extra(_built(dict(entry), where), _keeps_levels(always, config)))
    return built


def transformed(view: np.ndarray, extra: Extra, rng: np.random.Generator) -> np.ndarray:
    """`view` [H, W], uint8 or float32, after the transform, which draws from `rng` alone.

    Raises `ViewError` if it fails, if the result is of another size or dtype, and at once, whether it is drawn to
    happen or not, if it would leave a deep view with 256 grays.
    """
    transform, deep = extra
    name = type(transform).__name__
    if view.dtype != np.uint8 and not deep:
        raise ViewError(
            f"views.extra: albumentations' {name} works on 256 grays and this crop has more: leave it out, or pack "
            "the crops with 8 bits"
        )
    transform.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    try:
        result: np.ndarray = transform(image=view)["image"]
    except Exception as error:
        raise ViewError(f"views.extra: {name} fails on a gray view: {_one_line(error)}") from None
    if result.shape != view.shape or result.dtype != view.dtype:
        raise ViewError(
            f"views.extra: {name} made {result.dtype} of {result.shape} from a view that is {view.dtype} of "
            f"{view.shape}: take a transform that keeps both"
        )
    return result


def _built(arguments: dict[str, Any], where: str) -> A.BasicTransform:
    name = arguments.pop("name", None)
    kind = getattr(A, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        raise ViewError(
            f"{where} names '{name}', which is no single transform of albumentations {A.__version__}: give "
            "{name: CLAHE, p: 0.1, ...} with one of its class names (compositions such as OneOf are not taken)"
        )
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations warns of an argument that it does not know, and goes on
            return kind(**tuples)
    except Exception as error:
        raise ViewError(f"{where}: {name} cannot be made with {arguments}: {_one_line(error)}") from None


def _try(transform: A.BasicTransform, config: ViewConfig, where: str) -> None:
    changed = False
    for size in _sizes(config):
        for seed in range(TRIALS):
            rng = np.random.default_rng(seed)
            view = np.rint(255 * _slope(size, rng)).astype(np.uint8)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # such as: the hue of a gray image was left alone
                    changed |= not np.array_equal(transformed(view, Extra(transform, False), rng), view)
            except ViewError as error:
                raise ViewError(f"{where}: {str(error).removeprefix('views.extra: ')}") from None
    if not changed:
        name = type(transform).__name__
        raise ViewError(f"{where}: {name} changes nothing on a gray view, as if it were not there: leave it out")


def _keeps_levels(transform: A.BasicTransform, config: ViewConfig) -> bool:
    """Whether a view of floats off the 256 grays stays off them; one that cannot be transformed does not."""
    rng = np.random.default_rng(0)
    view = _slope(config.global_size, rng).astype(np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = 255 * transformed(view, Extra(transform, True), rng)
    except ViewError:
        return False
    return bool(np.mean(np.abs(result - np.rint(result)) > 0.01) > 0.5)


def _slope(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A gray view [H, W] in 0 to 1: dull, with a slope and noise, as radiographs are."""
    slope = np.add.outer(np.linspace(0, 0.3, size[0]), np.linspace(0.2, 0.4, size[1]))
    return slope + rng.uniform(0, 0.1, size)


def _sizes(config: ViewConfig) -> list[tuple[int, int]]:
    return [config.global_size, *([config.local_size] if config.local_count else [])]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
