"""Phantom periapical radiographs: deterministic, labelled, with tooth boxes; for the demo, the tests and the benchmarks.

A patient's jaws are solids of enamel, dentin, pulp, bone and restorations (`phantom_anatomy`). A view shines a beam
through a stretch of one jaw: `I = exp(-sum(mu * path))` (Beer-Lambert), scatter, detector blur, Poisson noise, and the
negative log is shown through a window with a gamma, so that dense is bright. Everything is a pure function of
`(seed, patient, view)`.

Effective linear attenuation coefficients are for 40 keV, about the mean energy of 65 kV behind a cheek and a tooth:
`mu = rho * sum(w * mu_rho)` over elements with the NIST XCOM cross sections; tissues as in ICRU Report 44, enamel 96 % and
dentin 70 % hydroxyapatite by weight (rho 2.95 and 2.14), amalgam Hg 50 Ag 30 Sn 12 Cu 8 (rho 11), gold alloy Au 75 Ag 15
Cu 10 (rho 15.5), zirconia ZrO2 (rho 6.05), gutta-percha ZnO 66 BaSO4 12 polyisoprene 22 (rho 2.6), composite with 18 %
strontium glass (rho 2.1).
"""

import csv
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.phantom_anatomy import FINDINGS, Array, Tooth, draw_jaw, tooth_paths

__all__ = ["FINDINGS", "MATERIALS", "Phantom", "Scene", "draw_scene", "expose", "render_crop", "render_radiograph"]

MATERIALS: dict[str, float] = {
    "soft": 0.0285,
    "pulp": 0.0285,
    "decay": 0.0400,
    "bone": 0.128,
    "enamel": 0.283,
    "dentin": 0.164,
    "composite": 0.383,
    "gutta_percha": 1.22,
    "amalgam": 16.0,
    "gold": 19.8,
    "zirconia": 5.14,
}
"""Linear attenuation coefficients per mm at 40 keV, in the order of `Scene.paths`."""

CROP_ASPECT = 5 / 8
"""Width over height of every box: a tooth detector's window, so that its shape says nothing about the tooth."""

LOOSE = (1.03, 1.35)
"""Height of a box over that of the film's teeth."""

DRIFT = 0.1
"""Most by which a box is off its tooth's middle, share of its side; less where it would cut the tooth."""

FILM_MM = 41.0
"""Long side of an intraoral film of size 2."""

SIZES = ((240, 320), (320, 240), (280, 280))
_INDEX = {name: i for i, name in enumerate(MATERIALS)}
_FILM_STREAM, _NOISE_STREAM, _CROP_STREAM, _BONE_STREAM = 2, 3, 4, 5


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


@dataclass(frozen=True)
class Scene:
    """A stretch of one jaw before the beam, and the beam's geometry."""

    paths: Array
    """[len(MATERIALS), h, w]: mm of each material per ray, in the plane of the arch (crowns up)."""
    film: NDArray[np.float64]
    """[2, 3]: maps pixels (x, y) of that plane to pixels of the film."""
    shape: tuple[int, int]
    """(H, W) of the film."""
    teeth: tuple[Tooth, ...]
    """All teeth of the stretch, also those cut by the film's edge."""
    outlines: tuple[NDArray[np.float64], ...]
    """Per tooth [k, 2]: points (x, y) of its silhouette in film pixels."""

    def line_integral(self) -> Array:
        """sum(mu * path) per ray, float32 [h, w], in the plane of the arch; no unit."""
        total = np.zeros(self.paths.shape[1:], np.float32)
        for mu, path in zip(MATERIALS.values(), self.paths, strict=True):
            total += np.float32(mu) * path
        return total

    def project(self, rays: Array) -> Array:
        """A map over the arch's plane as it falls on the film, float32 [H, W]."""
        height, width = self.shape
        return cv2.warpAffine(rays, self.film, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def draw_scene(seed: int, patient: int, view: int = 0) -> Scene:
    """What stands in the beam in one view of one patient."""
    rng = np.random.default_rng([seed, patient, _FILM_STREAM, view])
    upper = bool(rng.random() < 0.5)
    jaw = draw_jaw(seed, patient, upper)
    kind = rng.choice(4, p=(0.20, 0.16, 0.26, 0.38))  # so that the four types come out about equally often
    position = rng.choice(((1, 2), (3,), (4, 5), (6, 7, 8))[kind])
    centre = int(8 - position if rng.random() < 0.5 else 7 + position)
    height, width = (int(s) for s in SIZES[rng.integers(len(SIZES))] * rng.uniform(0.92, 1.08, 2))
    tooth = jaw[centre]
    tall = float(np.mean([t.length for t in jaw[max(centre - 1, 0) : centre + 2]]))
    usual = 21.5  # so that the size of a crop says nothing about the tooth
    angle, stretch, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(0.9, 1.12), rng.uniform(-0.08, 0.08)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array(
        [[1.0, shear], [0.0, -stretch if upper else stretch]]
    )  # mm right and rootwards to the film
    magnification = np.exp(rng.uniform(np.log(0.75), np.log(1.35)))
    middle = np.array([tooth.x, -(tooth.y + tooth.sizes.crown - tooth.length / 2)]) + rng.uniform(-2, 2, 2)
    scale = min(
        max(height, width) / FILM_MM * usual / tall * magnification, _largest(linear, tooth, middle, height, width)
    )
    half = np.abs(np.linalg.inv(linear)) @ np.array([width, height]) / (2 * scale)
    low, high = middle - half - 0.5, middle + half + 0.5
    columns = np.arange(low[0], high[0], 1 / scale, dtype=np.float64)
    rows = np.arange(low[1], high[1], 1 / scale, dtype=np.float64)
    offset = np.array([width, height]) / 2 - linear @ ((middle - low) * scale)
    film = np.column_stack((linear, offset))
    paths, teeth, silhouettes = _fill(seed, patient, upper, jaw, columns.astype(np.float32), (-rows).astype(np.float32))
    outlines = tuple(points @ film[:, :2].T + film[:, 2] for points in silhouettes)
    return Scene(paths, film, (height, width), teeth, outlines)


def _largest(linear: NDArray[np.float64], tooth: Tooth, middle: NDArray[np.float64], height: int, width: int) -> float:
    """Most pixels per mm at which the whole tooth and its box are still on the film."""
    side, crown = tooth.sizes.width / 2 + 2.0, tooth.y + tooth.sizes.crown + 0.5
    corners = np.array([(tooth.x + s, -y) for s in (-side, side) for y in (crown, crown - tooth.length - 1.0)])
    reach = np.abs((corners - middle) @ linear.T).max(axis=0)
    tall = 2.5 * reach[1]
    return float(min(width / 2 / reach[0], height / 2 / reach[1], height / tall, width / (tall * CROP_ASPECT))) * 0.98


def _fill(
    seed: int, patient: int, upper: bool, jaw: list[Tooth], x: Array, y: Array
) -> tuple[Array, tuple[Tooth, ...], list[NDArray[np.float64]]]:
    """Teeth, then bone around their sockets, then gum and cheek, on columns `x` and rows `y` (mm, y grows crownwards)."""
    paths = np.zeros((len(MATERIALS), len(y), len(x)), np.float32)
    socket = np.zeros(paths.shape[1:], np.float32)
    lamina = np.zeros_like(socket)
    teeth: list[Tooth] = []
    silhouettes: list[NDArray[np.float64]] = []
    for tooth in jaw:
        reach = tooth.sizes.width / 2 + 3.2
        first, last = np.searchsorted(x, (tooth.x - reach, tooth.x + reach))
        top, bottom = np.searchsorted(-y, (-(tooth.y + tooth.sizes.crown + 1.5), -(tooth.y - tooth.length)))
        if first >= last or top >= bottom:
            continue
        window = (slice(top, bottom), slice(first, last))
        part = tooth_paths(tooth, (x[window[1]] - tooth.x) * tooth.mesial, y[window[0]] - tooth.y)
        for name, path in part.materials.items():
            paths[_INDEX[name]][window] += path
        paths[_INDEX["soft"]][window] += part.ligament
        lamina[window] += part.lamina
        socket[window] = np.maximum(socket[window], part.socket)
        points = _silhouette(part.solid > 0.3)
        if len(points):
            teeth.append(tooth)
            silhouettes.append(points + (first, top))
    _fill_bone(seed, patient, upper, jaw, x, y, socket, lamina, paths)
    return paths, tuple(teeth), silhouettes


def _silhouette(solid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Leftmost and rightmost pixel of every row, [k, 2] as (x, y)."""
    rows = np.flatnonzero(solid.any(axis=1))
    left = solid[rows].argmax(axis=1)
    right = solid.shape[1] - 1 - solid[rows, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack((left, rows)), np.column_stack((right, rows))]).astype(np.float64)


def _fill_bone(
    seed: int,
    patient: int,
    upper: bool,
    jaw: list[Tooth],
    x: Array,
    y: Array,
    socket: Array,
    lamina: Array,
    paths: Array,
) -> None:
    """Add alveolar bone below its crest, the sinus or the mandibular canal, the gum and the cheek to `paths`."""
    rng = np.random.default_rng([seed, patient, _BONE_STREAM, int(upper)])
    loss = min(1.4 + rng.exponential(0.7), 3.5)
    necks = np.interp(x, [t.x for t in jaw], [t.y for t in jaw])
    wave = 0.4 * np.sin(x * rng.uniform(0.3, 0.7) + rng.uniform(0, 6))
    below = (necks - loss + wave).astype(np.float32)[None, :] - y[:, None]  # mm under the crest
    full = (7.0 + 3.5 * np.clip(np.abs(x) / 30, 0, 1) + rng.normal(0, 0.6)).astype(np.float32)[None, :]
    rise = np.clip(below / 4, 0, 1)
    ridge = full * np.sqrt(rise * (2 - rise)) * (1 + 0.008 * np.maximum(below, 0))
    plates = np.minimum(ridge, np.float32(rng.uniform(1.8, 2.8)))
    spongy = np.maximum(ridge - plates - socket, 0)
    fraction = _trabeculae(rng, x, y)
    inside = np.clip(below / 0.6, 0, 1)
    bone = plates + spongy * fraction + lamina * inside
    if upper:
        floor = -(14.5 + rng.normal(0, 1.0)) + 1.5 * np.sin(x / rng.uniform(3.5, 6) + rng.uniform(0, 6))
        cavity = floor.astype(np.float32)[None, :] - y[:, None]
        posterior = np.clip((np.abs(x) - 20) / 6, 0, 1).astype(np.float32)[None, :]
        bone *= 1 - 0.55 * posterior * np.clip(cavity / 1.5, 0, 1)
        bone += 1.2 * posterior * np.exp(-np.square(cavity / 0.35))
    else:
        course = (-(18.0 + rng.normal(0, 0.8)) + 0.06 * (np.abs(x) - 30)).astype(np.float32)[None, :] - y[:, None]
        posterior = np.clip((np.abs(x) - 18) / 5, 0, 1).astype(np.float32)[None, :]
        bone *= 1 - 0.3 * posterior * (np.abs(course) < 1.3)
        bone += 0.5 * posterior * np.exp(-np.square((np.abs(course) - 1.4) / 0.25))
    paths[_INDEX["bone"]] += bone
    gum = 3.5 * np.clip((below + 3.0) / 2, 0, 1)
    cheek = rng.uniform(6, 12) + rng.uniform(-0.15, 0.15) * x[None, :] * 0.5 + rng.uniform(-0.1, 0.35) * below * 0.5
    paths[_INDEX["soft"]] += gum + np.maximum(cheek, 3.0) + spongy * (1 - fraction)


def _trabeculae(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Share of the spongy bone that is mineral: band-limited noise fixed to the patient, float32 [h, w]."""
    per_mm = 4
    noise = rng.standard_normal((44 * per_mm, 124 * per_mm), np.float32)
    fine = cv2.GaussianBlur(noise, (0, 0), 1.1, sigmaY=0.8)
    coarse = cv2.GaussianBlur(noise, (0, 0), 3.0)
    texture = (fine - coarse) * 3.2 + 2.0 * coarse
    scale = (x[1] - x[0]) * per_mm
    place = np.array([[scale, 0, (x[0] + 62) * per_mm], [0, scale, (14 - y[0]) * per_mm]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    texture = cv2.warpAffine(texture, place, (len(x), len(y)), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.clip(0.27 + 0.10 * texture, 0.04, 0.8)


def expose(transmission: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A film of the share of the beam that gets through, [H, W]: blur, scatter, quantum noise, negative log, window, gamma."""
    blur, scatter = rng.uniform(0.6, 1.3), rng.uniform(0.02, 0.07)
    photons = np.exp(rng.uniform(np.log(800), np.log(8000)))  # per pixel of the open beam
    light = cv2.GaussianBlur(transmission, (0, 0), blur)
    light = (1 - scatter) * light + np.float32(scatter * light.mean())
    light += np.sqrt(light / np.float32(photons)) * rng.standard_normal(light.shape, np.float32)
    density = -np.log(np.maximum(light, np.float32(1 / photons)))
    low, high = np.percentile(density[::4, ::4], (1.0, 97.0))
    low += rng.uniform(-0.3, 0.2)
    high = np.clip(high, 2.3, 2.9) * rng.uniform(1.0, 1.2)
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in density.shape)
    tilt = rng.normal(0, 0.06, 2).astype(np.float32)
    shown = (density - np.float32(low)) / np.float32(high - low)
    shown += tilt[0] * rows[:, None] + tilt[1] * columns[None, :]
    levels = np.clip(shown * 1023, 0, 1023).astype(np.uint16)
    gamma = np.exp(rng.uniform(np.log(0.5), np.log(1.2)))
    table = np.round(255 * np.linspace(0, 1, 1024) ** gamma).astype(np.uint8)
    return table[levels]


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
        tall = max(usual * loose, (y1 - y0) * 1.02, (x1 - x0) * 1.02 / CROP_ASPECT)
        wide = tall * CROP_ASPECT
        if tall > height or wide > width:
            continue
        left = np.clip((x0 + x1 - wide) / 2 + DRIFT * wide * drift[0], max(x1 - wide, 0), min(x0, width - wide))
        top = np.clip((y0 + y1 - tall) / 2 + DRIFT * tall * drift[1], max(y1 - tall, 0), min(y0, height - tall))
        boxes.append((left, top, left + wide, top + tall))
        kept.append(i)
    return np.array(boxes, np.float64).reshape(-1, 4), kept


def render_crop(seed: int, patient: int, view: int = 0) -> tuple[NDArray[np.uint8], int, str]:
    """One tooth of a radiograph: image uint8 [h, w], FDI number, finding."""
    phantom = render_radiograph(seed, patient, view)
    i = int(np.random.default_rng([seed, patient, _CROP_STREAM, view]).integers(len(phantom.boxes)))
    x0, y0, x1, y1 = (int(round(float(edge))) for edge in phantom.boxes[i])
    return phantom.image[y0:y1, x0:x1].copy(), int(phantom.fdi[i]), phantom.finding[i]


def write_archive(path: Path, *, patients: int, seed: int, views: int = 1, workers: int = 1) -> None:
    """Write a zip of `radiographs/p<patient>-<view>.png` and `boxes.csv` (image,x0,y0,x1,y1,fdi,finding).

    The bytes depend on `patients`, `seed` and `views` only. Raises ValueError for a count below 1.
    """
    for name, count in (("patients", patients), ("views", views), ("workers", workers)):
        if count < 1:
            raise ValueError(f"phantom archive: {name} is {count}; ask for at least 1")
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
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_encoded, seed), jobs, chunksize=8)


def _encoded(seed: int, job: tuple[int, int]) -> tuple[bytes, Phantom]:
    phantom = render_radiograph(seed, *job)
    ok, png = cv2.imencode(".png", phantom.image, (cv2.IMWRITE_PNG_COMPRESSION, 3))
    if not ok:
        raise OSError("phantom archive: OpenCV could not encode a PNG; check the installation of opencv")
    return png.tobytes(), phantom
