"""What stands in the beam: a stretch of a phantom patient's jaw, as millimetres of each material per ray.

Effective linear attenuation coefficients are for 40 keV, about the mean energy of 65 kV behind a cheek and a tooth:
`mu = rho * sum(w * mu_rho)` over elements with the NIST XCOM cross sections. Tissues as in ICRU Report 44; enamel 96 %
and dentin 70 % hydroxyapatite by weight (rho 2.95 and 2.14); decay mostly water; amalgam Hg 50 Ag 30 Sn 12 Cu 8
(rho 11); gold alloy Au 75 Ag 15 Cu 10 (rho 15.5); zirconia ZrO2 (rho 6.05); gutta-percha ZnO 66 BaSO4 12
polyisoprene 22 (rho 2.6); composite with 18 % strontium oxide (rho 2.1).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_shards.phantom.anatomy import Array, Tooth, draw_jaw
from data_shards.phantom.solids import tooth_paths

Points = NDArray[np.float64]

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

SITES = ((1, 2), (3,), (4, 5), (6, 7, 8))
SITE_SHARES = (0.05, 0.45, 0.08, 0.42)
"""How often a view is centred on an incisor, canine, premolar, molar; neighbours come along, so this evens them out."""

SHAPES = ((240, 320), (320, 240), (280, 280))
"""(H, W) of films, pixels; each side varies by 8 %."""

FILM_MM = 41.0
"""Long side of an intraoral film of size 2."""

USUAL_LENGTH_MM = 21.5
"""Films are scaled so that teeth of every kind are about as long on them: size shall say nothing about kind."""

_VIEW_STREAM, _BONE_STREAM = 2, 3
_INDEX = {name: i for i, name in enumerate(MATERIALS)}


@dataclass(frozen=True)
class Scene:
    """A stretch of one jaw before the beam, and the beam's geometry."""

    paths: Array
    """[len(MATERIALS), h, w]: mm of each material per ray, in the plane of the arch (crowns up)."""
    film: Points
    """[2, 3]: maps pixels (x, y) of that plane to pixels of the film."""
    shape: tuple[int, int]
    """(H, W) of the film."""
    teeth: tuple[Tooth, ...]
    """All teeth of the stretch, also those cut by the film's edge."""
    outlines: tuple[Points, ...]
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
        film = cv2.warpAffine(rays, self.film, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return film.astype(np.float32, copy=False)


def draw_scene(seed: int, patient: int, view: int = 0) -> Scene:
    """What stands in the beam in one view of one patient: a site in the mouth, and how film and tube are held there."""
    rng = np.random.default_rng([seed, patient, _VIEW_STREAM, view])
    upper = bool(rng.random() < 0.5)
    jaw = draw_jaw(seed, patient, upper)
    position = rng.choice(SITES[rng.choice(len(SITES), p=SITE_SHARES)])
    centre = int(8 - position if rng.random() < 0.5 else 7 + position)
    tooth = jaw[centre]
    height, width = (int(side) for side in SHAPES[rng.integers(len(SHAPES))] * rng.uniform(0.92, 1.08, 2))

    angle, stretch, shear = np.radians(rng.uniform(-15, 15)), rng.uniform(0.9, 1.12), rng.uniform(-0.08, 0.08)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1.0, shear], [0.0, -stretch if upper else stretch]])  # upper roots point up
    middle = np.array([tooth.x, tooth.length / 2 - tooth.y - tooth.sizes.crown]) + rng.uniform(-2, 2, 2)
    tall = float(np.mean([t.length for t in jaw[max(centre - 1, 0) : centre + 2]]))
    magnification = np.exp(rng.uniform(np.log(0.75), np.log(1.35))) * USUAL_LENGTH_MM / tall
    scale = max(height, width) / FILM_MM * magnification  # pixels per mm
    scale = min(scale, _largest_scale(linear, tooth, middle, height, width))

    reach = np.abs(np.linalg.inv(linear)) @ np.array([width, height]) / (2 * scale) + 0.5
    x, down = (np.arange(m - r, m + r, 1 / scale) for m, r in zip(middle, reach, strict=True))
    film = np.column_stack((linear, np.array([width, height]) / 2 - linear @ (reach * scale)))
    paths, teeth, silhouettes = _fill(seed, patient, upper, jaw, x.astype(np.float32), (-down).astype(np.float32))
    outlines = tuple(points @ film[:, :2].T + film[:, 2] for points in silhouettes)
    return Scene(paths, film, (height, width), teeth, outlines)


def _largest_scale(linear: Points, tooth: Tooth, middle: Points, height: int, width: int) -> float:
    """Most pixels per mm at which the whole tooth and a box around it are still on the film."""
    side, top = tooth.sizes.width / 2 + 2.0, tooth.y + tooth.sizes.crown + 0.5
    corners = np.array([(tooth.x + s, -y) for s in (-side, side) for y in (top, top - tooth.length - 1.0)])
    across, along = np.abs((corners - middle) @ linear.T).max(axis=0)
    return float(0.98 * min(width / (2 * across), height / (2.5 * along), width / (2 * along)))


def _fill(
    seed: int, patient: int, upper: bool, jaw: list[Tooth], x: Array, y: Array
) -> tuple[Array, tuple[Tooth, ...], list[Points]]:
    """Teeth, then bone around their sockets, then gum and cheek; columns `x`, rows `y` (mm, crownwards)."""
    paths = np.zeros((len(MATERIALS), len(y), len(x)), np.float32)
    socket = np.zeros(paths.shape[1:], np.float32)
    lamina = np.zeros_like(socket)
    teeth: list[Tooth] = []
    silhouettes: list[Points] = []
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
            silhouettes.append(points + np.array([first, top]))
    _fill_bone(seed, patient, upper, jaw, x, y, socket, lamina, paths)
    return paths, tuple(teeth), silhouettes


def _silhouette(solid: NDArray[np.bool_]) -> Points:
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
