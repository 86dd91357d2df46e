"""Teeth as nested solids: how many millimetres of each material a beam crosses.

A tooth stands in its own plane: `u` runs mesially and `v` towards the crown (mm), both 0 at the middle of the neck (the
enamel ends there); the beam runs along the third axis. Every part is a stack of lens-shaped slices, so that a part is two
numbers per row (half width, depth) and its path length is `depth * sqrt(1 - (offset / half_width)^n)`. Layers are
differences of nested parts: enamel = crown - dentin core, ligament = socket - root, lamina dura = socket wall - socket.
Seen along the wall such a layer is a thin line, as on a real film.

Mean sizes are those of S. J. Nelson, Wheeler's Dental Anatomy, Physiology and Occlusion, tables of tooth measurements.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FINDINGS = ("sound", "caries", "filling", "root_canal", "crown")
CLUSTERING = 0.35
"""Dirichlet concentration of a patient's findings: all five are equally common over patients, far more disease than in any
clinic so that each label has enough crops, but decay and treatment run in mouths, as they do in life."""

LIGAMENT_MM = 0.25  # periodontal ligament space, 0.15 to 0.38 mm in the literature
LAMINA_MM = 0.35  # lamina dura


class Sizes(NamedTuple):
    """Mean sizes of one kind of tooth, mm: along the arch (`width`, `neck`) and along the beam (`depth`, `neck_depth`)."""

    crown: float
    root: float
    width: float
    neck: float
    depth: float
    neck_depth: float


UPPER = (
    Sizes(10.5, 13.0, 8.5, 7.0, 7.0, 6.0),
    Sizes(9.0, 13.0, 6.5, 5.0, 6.0, 5.0),
    Sizes(10.0, 17.0, 7.5, 5.5, 8.0, 7.0),
    Sizes(8.5, 14.0, 7.0, 5.0, 9.0, 8.0),
    Sizes(8.5, 14.0, 7.0, 5.0, 9.0, 8.0),
    Sizes(7.5, 13.0, 10.0, 8.0, 11.0, 10.0),
    Sizes(7.0, 12.0, 9.0, 7.0, 11.0, 10.0),
    Sizes(6.5, 11.0, 8.5, 6.5, 10.0, 9.5),
)
LOWER = (
    Sizes(9.0, 12.5, 5.0, 3.5, 6.0, 5.3),
    Sizes(9.5, 14.0, 5.5, 4.0, 6.5, 5.8),
    Sizes(11.0, 16.0, 7.0, 5.5, 7.5, 7.0),
    Sizes(8.5, 14.0, 7.0, 5.0, 7.5, 6.5),
    Sizes(8.0, 14.5, 7.0, 5.0, 8.0, 7.0),
    Sizes(7.5, 14.0, 11.0, 9.0, 10.5, 9.0),
    Sizes(7.0, 13.0, 10.5, 8.0, 10.0, 9.0),
    Sizes(7.0, 11.0, 10.0, 7.5, 9.5, 9.0),
)


class Form(NamedTuple):
    """The shape of a crown."""

    widest: float  # share of the height where it is widest
    end: float  # width at the biting edge, share of the widest
    cusps: int
    relief: float  # mm from a cusp's tip to the valleys
    pointed: float  # exponent of a cusp's profile: 1 is a point, 2 a dome
    wedge: float  # share of the depth lost from neck to edge: incisors are shovels, molars blocks
    square: int  # exponent of the lens: 2 is round, 4 is boxy
    enamel: float  # mm at its thickest
    scallop: float  # mm by which the neck line rises between the teeth


INCISOR = Form(0.85, 0.95, 1, 0.35, 2.0, 0.50, 2, 1.0, 1.8)
CANINE = Form(0.60, 0.74, 1, 2.4, 1.3, 0.42, 2, 1.1, 1.5)
PREMOLAR = Form(0.62, 0.80, 1, 1.5, 1.6, 0.15, 2, 1.3, 0.8)
MOLAR = Form(0.66, 0.88, 2, 1.2, 2.0, 0.05, 4, 1.7, 0.4)
FORMS = (INCISOR, INCISOR, CANINE, PREMOLAR, PREMOLAR, MOLAR, MOLAR, MOLAR)


class Root(NamedTuple):
    """One root, mm: where it leaves the neck, how far its tip lies from there, its bow, length, half width and depth."""

    start: float
    lean: float
    bow: float
    length: float
    half_width: float
    depth: float
    lingual: bool = False  # behind the others, so that the beam crosses both


@dataclass(frozen=True)
class Tooth:
    """One tooth of one patient: where it stands in its jaw, its shape, and what was found in it."""

    fdi: int
    finding: str
    x: float
    """Middle of the neck along the arch, mm from the midline, growing from the patient's right to the left."""
    y: float
    """Height of the neck over the jaw's neck line, mm."""
    tilt: float
    """Tangent of the lean in the arch's plane."""
    sizes: Sizes
    form: Form
    roots: tuple[Root, ...]
    pulp: float
    """Width of the pulp against a young adult's."""
    site: float
    """Where along the crown disease or treatment sits: -1 distal, 0 biting surface, 1 mesial."""
    reach: float
    """How far it spreads, 0 to 1."""
    metal: bool
    """Amalgam or gold; else composite or zirconia."""

    @property
    def mesial(self) -> int:
        """1 where mesial is towards growing x, else -1."""
        return 1 if self.fdi // 10 in (1, 4) else -1

    @property
    def length(self) -> float:
        """From the tip of the longest root to the edge, mm."""
        return self.sizes.crown + max(r.length for r in self.roots)


class Habit(NamedTuple):
    """What all teeth of one patient share."""

    large: float
    """Width and depth of the teeth against the mean."""
    long: float
    """Height of crowns and roots against the mean."""
    pulp: float
    """Width of the pulps: it shrinks with age."""
    shares: NDArray[np.float64]
    """[5]: how often each of `FINDINGS` occurs."""


def draw_habit(seed: int, patient: int) -> Habit:
    """What all teeth of one patient share."""
    rng = np.random.default_rng([seed, patient, 0])
    large, long, pulp = (float(f) for f in rng.normal(1.0, (0.05, 0.07, 0.2)).clip(0.7, 1.3))
    return Habit(large, long, pulp, rng.dirichlet([CLUSTERING] * len(FINDINGS)))


def draw_jaw(seed: int, patient: int, upper: bool) -> list[Tooth]:
    """The 16 teeth of one jaw of a patient, from the right third molar to the left one; the same in every view."""
    habit = draw_habit(seed, patient)
    rng = np.random.default_rng([seed, patient, 1, int(upper)])
    teeth: list[Tooth] = []
    for right in (True, False):
        edge = 0.0
        quadrant = []
        for position in range(1, 9):
            tooth = _draw_tooth(rng, habit, upper, right, position, edge)
            edge = abs(tooth.x) + tooth.sizes.width / 2 + float(rng.normal(0.0, 0.15))
            quadrant.append(tooth)
        teeth += quadrant[::-1] if right else quadrant
    return teeth


def _draw_tooth(rng: np.random.Generator, habit: Habit, upper: bool, right: bool, position: int, edge: float) -> Tooth:
    mean = (UPPER if upper else LOWER)[position - 1]
    jitter = rng.normal(1.0, 0.05, 6).clip(0.85, 1.15)
    stretch = (habit.long,) * 2 + (habit.large,) * 4
    sizes = Sizes(*(float(m * s * j) for m, s, j in zip(mean, stretch, jitter, strict=True)))
    quadrant = (1 if right else 2) if upper else (4 if right else 3)
    form = FORMS[position - 1]
    form = form._replace(
        relief=form.relief * float(rng.uniform(0.6, 1.2)),
        enamel=form.enamel * float(rng.uniform(0.85, 1.15)),
        end=form.end * float(rng.uniform(0.94, 1.03)),
        cusps=2 if position == 5 and not upper and rng.random() < 0.5 else form.cusps,
    )
    x = edge + sizes.width / 2
    level = 8.3 * habit.long - sizes.crown  # biting edges meet one plane, necks do not
    return Tooth(
        fdi=quadrant * 10 + position,
        finding=str(rng.choice(FINDINGS, p=habit.shares)),
        x=-x if right else x,
        y=0.8 * level + float(rng.normal(0.0, 0.35)),
        tilt=float(rng.normal(0.0, 0.045)),
        sizes=sizes,
        form=form,
        roots=_draw_roots(rng, sizes, upper, position),
        pulp=habit.pulp * float(rng.uniform(0.85, 1.15)),
        site=float(rng.choice([-1.0, 0.0, 1.0])) if position > 3 else float(rng.choice([-1.0, 1.0])),
        reach=float(rng.uniform(0.0, 1.0)),
        metal=bool(rng.random() < (0.9 if position > 3 else 0.6)),
    )


def _draw_roots(rng: np.random.Generator, sizes: Sizes, upper: bool, position: int) -> tuple[Root, ...]:
    half, depth, length = sizes.neck / 2, sizes.neck_depth, sizes.root
    bow = -0.8 + rng.normal(0.0, 0.6, 3)  # tips tend to bow distally
    if position < 6:
        main = Root(0.0, 0.0, float(bow[0]), length, half, depth)
        if upper and position == 4:  # buccal and palatal, nearly in line with the beam
            part = main._replace(half_width=half * 0.85, depth=depth / 2, start=half * 0.12, lean=0.5)
            return part, part._replace(
                start=-half * 0.12, lean=-0.5, bow=float(bow[1]), length=length * 0.95, lingual=True
            )
        return (main,)
    splay = float({6: 1.5, 7: 0.8, 8: 0.1}[position] + rng.normal(0.0, 0.4))
    thick = depth * (0.55 if upper else 0.9)
    roots = (
        Root(half * 0.5, splay, float(bow[0]), length, half * 0.52, thick),
        Root(-half * 0.5, -splay, -0.4 * float(bow[1]), length * 0.94, half * 0.50, thick),
    )
    if upper:
        roots += (Root(0.0, 0.0, 0.3 * float(bow[2]), length * 1.02, half * 0.5, depth * 0.45, lingual=True),)
    return roots


class ToothPaths(NamedTuple):
    """Path lengths through one tooth and its socket, each float32 [h, w], mm."""

    materials: dict[str, Array]
    """Of the tooth itself, by material; those it does not hold are left out."""
    solid: Array
    """Through the tooth as a whole, restorations included."""
    ligament: Array
    lamina: Array
    socket: Array
    """Tooth, ligament and lamina dura together: the spongy bone that is not there."""


def tooth_paths(tooth: Tooth, u: Array, v: Array) -> ToothPaths:
    """Path lengths on columns `u` (float32 [w], mm, mesial of the neck) and rows `v` (float32 [h], mm, falling: crown first)."""
    grid = _Grid(tooth, u, v)
    crown, core = grid.crown(), grid.crown(enamel=1.0)
    root = grid.roots(0.0)
    solid = crown + root
    chamber, canals = grid.chamber(), grid.canals()
    pulp = np.minimum(np.maximum(chamber, canals), core + root)
    socket, wall = grid.roots(LIGAMENT_MM), grid.roots(LIGAMENT_MM + LAMINA_MM)
    materials = {"enamel": crown - core, "dentin": core + root - pulp, "pulp": pulp}
    if tooth.finding == "crown":
        prepared = grid.crown(cut=0.8)
        cap = (grid.crown(grow=0.15) - prepared) * grid.above_margin()
        solid = np.maximum(solid, cap)
        materials["dentin"] = np.maximum(np.minimum(prepared, solid - cap) + root - pulp, 0)
        del materials["enamel"]
        materials["gold" if tooth.metal else "zirconia"] = cap
    elif tooth.finding == "root_canal":
        filling = np.minimum(canals, pulp)
        access = grid.cavity(0.0, 0.2) * np.float32(0.6)
        materials = {name: path * (1 - access) for name, path in materials.items()}
        materials["pulp"] = np.zeros_like(pulp)
        materials["gutta_percha"] = filling
        materials["composite"] = np.maximum(pulp - filling, 0) + access * crown
    elif tooth.finding != "sound":
        material, depth = (
            ("decay", 0.8) if tooth.finding == "caries" else ("amalgam", 0.5) if tooth.metal else ("composite", 0.85)
        )
        share = grid.cavity(tooth.site, tooth.reach) * np.float32(depth)
        materials = {name: path * (1 - share) for name, path in materials.items()}
        materials[material] = share * solid
    return ToothPaths(materials, solid, socket - root, wall - socket, wall)


class _Grid:
    """The parts of one tooth on one grid; rows above the neck and below it are computed apart."""

    def __init__(self, tooth: Tooth, u: Array, v: Array) -> None:
        self.tooth, self.u, self.v = tooth, u[None, :], v[:, None]
        self.offset = self.u - np.float32(tooth.tilt * tooth.mesial) * self.v

    def _rows(self, lowest: float, highest: float) -> slice:
        top, bottom = np.searchsorted(-self.v[:, 0], (-highest, -lowest))
        return slice(int(top), int(bottom))

    def _blank(self) -> Array:
        return np.zeros(self.offset.shape, np.float32)

    def crown(self, enamel: float = 0.0, grow: float = 0.0, cut: float = 0.0) -> Array:
        """The crown without `enamel` (0 or 1) of its enamel, widened by `grow` mm or ground down by `cut` mm."""
        size, form = self.tooth.sizes, self.tooth.form
        rows = self._rows(0.0, size.crown + 0.5)
        v, u = self.v[rows], self.offset[rows]
        z = np.clip(v / size.crown, 0, 1)
        rise = 1 - np.square(1 - np.minimum(z / form.widest, 1))
        fall = np.square(np.maximum(z - form.widest, 0) / (1 - form.widest))
        half = (size.neck + (size.width - size.neck) * rise) / 2 * (1 - (1 - form.end) * fall)
        depth = (size.neck_depth + (size.depth - size.neck_depth) * rise) * (1 - form.wedge * z)
        thin = form.enamel * enamel * np.minimum(np.sqrt(2 * z), 1) * (1 - 0.2 * form.wedge) + cut * np.minimum(
            4 * z, 1
        )
        drop = form.relief * self._cusps(0.9 * size.crown)
        below = (size.crown - 1.1 * (form.enamel * enamel + cut) + grow - drop) - v  # mm under the biting surface
        edge = np.clip(below / np.float32(2.0 if form.square == 4 else 1.2), 0, 1)
        out = self._blank()
        out[rows] = _lens(u, half - thin + grow, depth - 1.6 * thin + 2 * grow, form.square) * np.sqrt(
            edge * (2 - edge)
        )
        return out

    def _cusps(self, height: float) -> Array:
        """How far each column lies from its cusp's tip, 0 to 1, float32 [1, w]."""
        form, size = self.tooth.form, self.tooth.sizes
        across = np.clip((self.u - self.tooth.tilt * self.tooth.mesial * height) / (size.width / 2), -1, 1)
        return np.abs(2 * np.mod((across + 1) / 2 * form.cusps, 1) - 1) ** form.pointed

    def above_margin(self) -> Array:
        """1 above the margin of a crown, which rises between the teeth, 0 below; float32 [h, w]."""
        x = self.offset / np.float32(self.tooth.sizes.neck / 2)
        return np.clip((self.v - np.float32(self.tooth.form.scallop) * np.minimum(x * x, 1) - 0.3) * 4, 0, 1)

    def roots(self, grow: float) -> Array:
        """All roots, widened by `grow` mm: side by side the deeper counts, a lingual one is crossed besides; molars join."""
        size = self.tooth.sizes
        rows = self._rows(-self.tooth.length, grow)
        v, u = self.v[rows], self.offset[rows]
        front = back = np.zeros_like(u)
        for root in self.tooth.roots:
            if root.lingual:
                back = _root(root, u, v, grow)
            else:
                front = np.maximum(front, _root(root, u, v, grow))
        total = np.minimum(front + back, size.neck_depth + 2 * grow) if len(self.tooth.roots) > 1 else front
        if self.tooth.form.square == 4:
            s = np.clip(-v / (0.3 * size.root + grow), 0, 1)
            trunk_depth = (size.neck_depth + 2 * grow) * np.sqrt(1 - s * s)
            total = np.maximum(total, _lens(u, size.neck / 2 * (1 - 0.1 * s) + grow, trunk_depth, 4))
        out = self._blank()
        out[rows] = total
        return out

    def canals(self) -> Array:
        """The root canals."""
        rows = self._rows(-self.tooth.length, 0.0)
        v, u = self.v[rows], self.offset[rows]
        out = self._blank()
        for root in self.tooth.roots:
            half = min(0.6 * self.tooth.pulp, 0.36 * root.half_width)
            canal = root._replace(half_width=half, depth=0.42 * root.depth, length=root.length * 0.95)
            out[rows] = np.maximum(out[rows], _root(canal, u, v, 0.0))
        return out

    def chamber(self) -> Array:
        """The pulp chamber, wide in molars."""
        size = self.tooth.sizes
        floor, roof = 0.15 * size.root, 0.42 * size.crown
        rows = self._rows(-floor, roof)
        v = self.v[rows]
        taper = np.sqrt(np.clip(1 - np.square(np.where(v > 0, v / roof, v / floor)), 0, 1))
        half = size.neck * (0.30 if self.tooth.form.square == 4 else 0.15) * self.tooth.pulp
        out = self._blank()
        out[rows] = _lens(self.offset[rows], half * taper, size.neck_depth * 0.42 * taper)
        return out

    def cavity(self, site: float, reach: float) -> Array:
        """Where the crown is decayed or replaced, 0 to 1 with a soft edge and an uneven outline, float32 [h, w]."""
        size = self.tooth.sizes
        radius = min(1.8 + 1.2 * reach, 0.5 * size.width)
        middle_u = site * (size.width / 2 - 0.5 * radius)
        middle_v = size.crown * 0.6 if site else size.crown - 0.3 * self.tooth.form.relief - 0.4 * radius
        du = (self.offset - np.float32(middle_u)) / np.float32(radius * (1.0 if site else 1.25))
        dv = (self.v - np.float32(middle_v)) / np.float32(radius * 1.15)
        uneven = 0.22 * np.sin(2.6 * du + 7 * reach) * np.sin(2.3 * dv + 11 * reach)
        return np.clip((1 - np.sqrt(du * du + dv * dv) + uneven) * 2.5, 0, 1).astype(np.float32)


def _lens(offset: Array, half_width: Array, depth: Array, square: int = 2) -> Array:
    """Path length through lens-shaped slices: 0 at the silhouette, `depth` in the middle."""
    x = offset * (1 / np.maximum(half_width, 1e-3)).astype(np.float32)
    x *= x
    if square == 4:
        x *= x
    np.subtract(1, x, out=x)
    np.maximum(x, 0, out=x)
    np.sqrt(x, out=x)
    x *= np.maximum(depth, 0)
    return x


def _root(root: Root, u: Array, v: Array, grow: float) -> Array:
    """One root as a cone with a round tip, widened by `grow` mm."""
    down = np.clip(-v / root.length, 0, 1.1)
    cap = np.sqrt(1 - np.clip(-v / (root.length + grow), 0, 1) ** 6)
    cone = 1 - 0.55 * down
    centre = root.start + root.lean * down + root.bow * down * down
    return _lens(u - centre, (root.half_width * cone + grow) * cap, (root.depth * cone + 2 * grow) * cap)
