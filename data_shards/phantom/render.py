"""Phantom periapical radiographs: deterministic, labelled, boxed; for the demo, the tests and the benchmarks.

A patient's jaws are solids of enamel, dentin, pulp, bone and restorations (`phantom_anatomy`, `phantom_solids`). A
view shines a beam through a stretch of one jaw (`phantom_scene`): `I = exp(-sum(mu * path))` (Beer-Lambert). Here the
film is exposed: detector blur, scatter, Poisson noise, and the negative log shown through a window with a gamma, so
that dense is bright. Everything is a pure function of `(seed, patient, view)`.
"""

import csv
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.phantom.anatomy import FINDINGS, Array
from data_shards.phantom.scene import MATERIALS, Scene, draw_scene

__all__ = [
    "FINDINGS",
    "MATERIALS",
    "Phantom",
    "draw_scene",
    "expose",
    "render_crop",
    "render_radiograph",
    "write_archive",
]

CROP_ASPECT = 5 / 8
"""Width over height of every box: a detector's window, whose shape says nothing about the tooth."""

LOOSE = (1.03, 1.3)
"""Height of a box over that of the film's teeth."""

DRIFT = 0.09
"""Most by which a box is off its tooth's middle, share of its side; less where it would cut the tooth."""

_NOISE_STREAM, _CROP_STREAM = 4, 5


@dataclass(frozen=True)
class Phantom:
    """One radiograph and what is on it."""

    image: NDArray[np.uint8]
    """[H, W], dense is bright."""
    boxes: NDArray[np.float64]
    """[n, 4]: x0, y0, x1, y1 in pixels of each tooth that is wholly visible."""
    fdi: NDArray[np.int64]
    """[n], 11 to 48."""
    finding: list[str]
    """[n], each one of `FINDINGS`."""


def expose(transmission: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A film of the share of the beam that gets through: uint8 [H, W] of float32 [H, W] in 0 to 1."""
    blur, scatter = rng.uniform(0.6, 1.3), rng.uniform(0.02, 0.07)  # pixels; share of the beam
    photons = _log_uniform(rng, 800, 8000)  # per pixel of the open beam
    light = cv2.GaussianBlur(transmission, (0, 0), blur)
    light = (1 - scatter) * light + np.float32(scatter * light.mean())
    light += np.sqrt(light / np.float32(photons)) * rng.standard_normal(light.shape, np.float32)
    density = -np.log(np.maximum(light, np.float32(1 / photons)))
    low, high = np.percentile(density[::4, ::4], (1.0, 97.0))  # the window: metal may go white, enamel may not
    low += rng.uniform(-0.3, 0.2)
    high = np.clip(high, 2.3, 2.9) * rng.uniform(1.0, 1.2)
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in density.shape)
    tilt = rng.normal(0, 0.06, 2).astype(np.float32)  # a beam off the film's middle shades it
    shown = (density - np.float32(low)) / np.float32(high - low)
    shown += tilt[0] * rows[:, None] + tilt[1] * columns[None, :]
    levels = np.clip(shown * 1023, 0, 1023).astype(np.uint16)
    gamma = _log_uniform(rng, 0.5, 1.2)
    table = np.round(255 * np.linspace(0, 1, 1024) ** gamma).astype(np.uint8)
    return table[levels]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def render_radiograph(seed: int, patient: int, view: int = 0) -> Phantom:
    """One radiograph with a box for each tooth that is wholly on it (at least one)."""
    scene = draw_scene(seed, patient, view)
    rng = np.random.default_rng([seed, patient, _NOISE_STREAM, view])
    image = expose(scene.project(np.exp(-scene.line_integral())), rng)
    boxes, kept = _boxes(scene, rng)
    fdi = np.array([scene.teeth[i].fdi for i in kept], np.int64)
    return Phantom(image, boxes, fdi, [scene.teeth[i].finding for i in kept])


def _boxes(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.float64], list[int]]:
    """A window of fixed shape around every tooth that is wholly on the film, and which teeth those are."""
    height, width = scene.shape
    corners = [(*o.min(axis=0), *(o.max(axis=0) + 1)) for o in scene.outlines]
    whole = [i for i, (x0, y0, x1, y1) in enumerate(corners) if min(x0, y0) >= 0 and x1 <= width and y1 <= height]
    usual = float(np.mean([corners[i][3] - corners[i][1] for i in whole])) if whole else 0.0
    boxes, kept = [], []
    for i in whole:
        x0, y0, x1, y1 = corners[i]
        loose, *drift = rng.uniform((LOOSE[0], -1, -1), (LOOSE[1], 1, 1))
        room = min(height, width / CROP_ASPECT)
        needed = 1.02 * max(y1 - y0, (x1 - x0) / CROP_ASPECT)
        if needed > room:
            continue
        tall = min(max(usual * loose, needed), room)
        wide = tall * CROP_ASPECT
        left = np.clip((x0 + x1 - wide) / 2 + DRIFT * wide * drift[0], max(x1 - wide, 0), min(x0, width - wide))
        top = np.clip((y0 + y1 - tall) / 2 + DRIFT * tall * drift[1], max(y1 - tall, 0), min(y0, height - tall))
        boxes.append((left, top, left + wide, top + tall))
        kept.append(i)
    return np.array(boxes, np.float64).reshape(-1, 4), kept


def render_crop(seed: int, patient: int, view: int = 0) -> tuple[NDArray[np.uint8], int, str]:
    """One tooth of a radiograph: image uint8 [h, w], FDI number, finding."""
    phantom = render_radiograph(seed, patient, view)
    i = int(np.random.default_rng([seed, patient, _CROP_STREAM, view]).integers(len(phantom.boxes)))
    x0, y0, x1, y1 = (round(float(edge)) for edge in phantom.boxes[i])
    return phantom.image[y0:y1, x0:x1].copy(), int(phantom.fdi[i]), phantom.finding[i]


def write_archive(path: Path, *, patients: int, seed: int, views: int = 1, workers: int = 1) -> None:
    """Write a zip of `radiographs/p<patient>-<view>.png` and `boxes.csv` (image,x0,y0,x1,y1,fdi,finding).

    The bytes depend on `patients`, `seed` and `views` only. Raises ValueError for a count below 1.
    """
    for name, count in (("patients", patients), ("views", views), ("workers", workers)):
        if count < 1:
            raise ValueError(f"phantom archive: {name} is {count}; ask for at least 1")
    if seed < 0:
        raise ValueError(f"phantom archive: seed is {seed}; give 0 or more")
    jobs = [(patient, view) for patient in range(patients) for view in range(views)]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("image", "x0", "y0", "x1", "y1", "fdi", "finding"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for (patient, view), (png, phantom) in zip(jobs, _rendered(seed, jobs, workers), strict=True):
            member = f"radiographs/p{patient:05d}-{view}.png"
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), png)
            for box, fdi, finding in zip(phantom.boxes, phantom.fdi, phantom.finding, strict=True):
                rows.writerow((member, *(f"{edge:.2f}" for edge in box), int(fdi), finding))
        archive.writestr(zipfile.ZipInfo("boxes.csv", (1980, 1, 1, 0, 0, 0)), table.getvalue())


def _rendered(seed: int, jobs: list[tuple[int, int]], workers: int) -> Iterator[tuple[bytes, Phantom]]:
    if workers == 1:
        yield from map(partial(_encoded, seed), jobs)
        return
    # spawn: a fork of a process that already runs threads (torch, OpenCV) can hang
    with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        yield from pool.map(partial(_encoded, seed), jobs, chunksize=8)


def _encoded(seed: int, job: tuple[int, int]) -> tuple[bytes, Phantom]:
    phantom = render_radiograph(seed, *job)
    ok, png = cv2.imencode(".png", phantom.image, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    if not ok:
        raise OSError("phantom archive: OpenCV could not encode a PNG; check the installation of opencv")
    return png.tobytes(), phantom
