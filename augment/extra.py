"""Any albumentations transform, by the name and the arguments that a recipe gives, tried out before a run starts."""

import random
import warnings
from typing import Any

import albumentations as A
import numpy as np

from augment.config import ViewConfig, ViewError

TRIALS = 5
"""Draws that a transform gets to change a gray view: a quarter turn leaves it as it is in one of four."""


def build_extra(config: ViewConfig) -> list[A.BasicTransform]:
    """One transform for each `{name: CLAHE, p: 0.1, ...}` of `config.extra`, tried on gray views of its sizes.

    Raises `ViewError` naming the entry that cannot be made, that fails on one channel, or that does nothing to it:
    many of albumentations' are for colour only.
    """
    built = []
    for i, entry in enumerate(config.extra):
        where = f"views.extra[{i}]"
        transform = _built(dict(entry), where)
        if transform.p > 0:
            _try(_built({**entry, "p": 1.0}, where), config, where)
        built.append(transform)
    return built


def transformed(view: np.ndarray, transform: A.BasicTransform, rng: np.random.Generator) -> np.ndarray:
    """`view` [H, W], uint8 or float32, after `transform`, which draws from `rng` alone.

    Raises `ViewError` if the result is of another size or dtype, or has lost the levels of a deep view.
    """
    transform.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    result: np.ndarray = transform(image=view)["image"]
    name = type(transform).__name__
    if result.shape != view.shape or result.dtype != view.dtype:
        raise ViewError(
            f"views.extra: {name} made {result.dtype} of {result.shape} from a view that is {view.dtype} of "
            f"{view.shape}: take a transform that keeps both"
        )
    if view.dtype != np.uint8:
        grays = len(np.unique(result))
        if grays <= 256 < len(np.unique(view)):
            remedy = "leave it out, or pack the crops with 8 bits"
            raise ViewError(f"views.extra: {name} left {grays} grays of a deep view: {remedy}")
    return result


def _built(arguments: dict[str, Any], where: str) -> A.BasicTransform:
    name = arguments.pop("name", None)
    kind = getattr(A, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        raise ViewError(
            f"{where} names '{name}', which is no transform of albumentations {A.__version__}: give "
            "{name: CLAHE, p: 0.1, ...} with one of its class names"
        )
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations warns of an argument that it does not know, and goes on
            return kind(**tuples)
    except Exception as error:
        raise ViewError(f"{where}: {name} cannot be made with {arguments}: {_one_line(error)}") from None


def _try(transform: A.BasicTransform, config: ViewConfig, where: str) -> None:
    name, changed = type(transform).__name__, False
    for size in (config.global_size, config.local_size):
        for seed in range(TRIALS):
            rng = np.random.default_rng(seed)
            view = rng.integers(0, 256, size, np.uint8)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)  # such as: the hue of a gray image was left alone
                    changed |= not np.array_equal(transformed(view, transform, rng), view)
            except ViewError:
                raise
            except Exception as error:
                raise ViewError(f"{where}: {name} fails on a gray view: {_one_line(error)}") from None
    if not changed:
        raise ViewError(f"{where}: {name} changes nothing on a gray view, as if it were not there: leave it out")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
