"""Each operation of a recipe at its extremes, on one crop: what a range really does, to be judged by eye."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from augment.albumentations_extra import build_extra, transformed
from augment.config import ViewConfig
from augment.geometry import Levels, warp
from augment.intensity import (
    GRAINS,
    BurnedInText,
    CollimatorEdge,
    LocalContrast,
    Motion,
    QuantumNoise,
    Sharpening,
    Tone,
    Unsharpness,
)
from augment.resize import fit
from augment.transforms import Operation, RegionWarp

MIDDLE = 0.5
"""The even number that draws the middle of a range, or the centre of the image."""


def strips(image: np.ndarray, config: ViewConfig) -> Iterator[list[tuple[str, np.ndarray]]]:
    """For each operation that `config` uses, captions and views [H, W] (uint8) of `image` (uint8 [h, w]).

    An operation that never happens (probability 0, a range of one neutral value) has no strip.
    """
    yield from _of_geometry(image, config)
    plain = fit(image, config.global_size)
    for name, operation, settings in _of_grays(config):
        if operation.p > 0 and settings:
            yield [(f"{name} {said}", operation.change(plain, 255.0, **setting)) for said, setting in settings]
    for number, entry in enumerate(config.extra):
        extra = build_extra(replace(config, extra=[{**entry, "p": 1.0}]))[0]
        drawn = []
        for seed in range(2):
            rng = np.random.default_rng([number, seed])
            drawn.append((f"{entry['name']} {seed + 1}", transformed(plain, extra, rng)))
        yield drawn


def _of_geometry(image: np.ndarray, config: ViewConfig) -> Iterator[list[tuple[str, np.ndarray]]]:
    levels = Levels(image)

    def view(size: tuple[int, int], u: dict[int, float], **changed: Any) -> np.ndarray:
        neutral: dict[str, Any] = {"scale": (1.0, 1.0), "mirror_probability": 0.0, "rotation_probability": 0.0}
        neutral |= {"aspect_jitter": 0.0, "rotation_degrees": 0.0, "shear": 0.0}
        geometry = RegionWarp(size, **(neutral | changed))
        return warp(levels, geometry.draw([u.get(i, MIDDLE) for i in range(8)], image.shape))

    whole = config.global_size
    yield [(f"global {s:g}", view(whole, {0: 0}, scale=(s, s))) for s in config.global_scale]
    if config.local_count:
        yield [(f"local {s:g}", view(config.local_size, {0: 0}, scale=(s, s))) for s in config.local_scale]
    if config.mirror_probability:
        yield [("mirror", view(whole, {4: 0}, mirror_probability=1.0))]
    if config.rotation_probability and config.rotation_degrees:
        turned = {"rotation_probability": 1.0, "rotation_degrees": config.rotation_degrees}
        yield [(f"{(2 * end - 1) * config.rotation_degrees:+g} deg", view(whole, {6: end}, **turned)) for end in (0, 1)]
    if config.rotation_probability and config.shear:
        sheared = {"rotation_probability": 1.0, "shear": config.shear}
        yield [(f"shear {(2 * end - 1) * config.shear:+g}", view(whole, {7: end}, **sheared)) for end in (0, 1)]
    if jitter := config.aspect_jitter:
        yield [
            (
                f"aspect x{np.exp((2 * end - 1) * jitter):.2f}",
                view(whole, {1: end}, scale=(0.7, 0.7), aspect_jitter=jitter),
            )
            for end in (0, 1)
        ]


def _of_grays(config: ViewConfig) -> Iterator[tuple[str, Operation, list[tuple[str, dict[str, Any]]]]]:
    """(name, operation, [(value, setting)]) at the ends of each range."""

    def ends(limits: tuple[float, float], field: str, **fixed: Any) -> list[tuple[str, dict[str, Any]]]:
        return [(f"{value:g}", {field: value, **fixed}) for value in dict.fromkeys(limits)]

    yield "blur", Unsharpness(p=config.blur_probability), ends(config.blur_sigma, "sigma")
    for way, across in (("across", True), ("down", False)):
        yield f"motion {way}", Motion(p=config.motion_probability), ends(config.motion_length, "length", across=across)
    for grain in GRAINS:
        noise = QuantumNoise(p=config.noise_probability)
        yield f"grain {grain:g} noise", noise, ends(config.noise_strength, "strength", grain=grain, place=(0.3, 0.6))
    yield "local contrast", LocalContrast(p=config.local_contrast_probability), ends(config.local_contrast, "amount")
    yield (
        "sharpening",
        Sharpening(radius=config.sharpen_radius, p=config.sharpen_probability),
        ends(config.sharpen, "amount"),
    )
    neutral = {"brightness": 0.0, "contrast": 1.0, "gamma": 1.0}
    for field, value in neutral.items():
        limits = getattr(config, field)
        if limits != (value, value):
            yield field, Tone(), [(said, neutral | setting) for said, setting in ends(limits, field)]
    for name, side, bright in (("white edge", 0, True), ("black edge", 3, False)):
        widths = [
            (f"{width:g}", {"side": side, "ends": (width, width), "bright": bright}) for width in config.border_width
        ]
        yield name, CollimatorEdge(p=config.border_probability), widths
    letters = [
        ("high", {"text": "R", "corner": (0.1, 0.02), "height": 0.12, "bright": True}),
        ("low", {"text": "36", "corner": (0.9, 0.98), "height": 0.06, "bright": False}),
    ]
    yield "text", BurnedInText(p=config.text_probability), letters
