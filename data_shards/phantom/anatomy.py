"""The anatomy of phantom patients: 32 teeth each, with sizes, shapes, roots and findings of their own.

Mean sizes are those of S. J. Nelson, Wheeler's Dental Anatomy, Physiology and Occlusion, tables of tooth measurements.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FINDINGS = ("sound", "caries", "filling", "root_canal", "crown")
CLUSTERING = 0.35
"""Dirichlet concentration of a patient's findings. Over patients all five are equally common (far more disease than in
any clinic, so that each label has enough crops), but decay and treatment run in mouths, as they do in life."""


class Sizes(NamedTuple):
    """Sizes of a tooth, mm: `width` and `neck` along the arch, `depth` and `neck_depth` along the beam."""

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
    """One root, mm: where it leaves the neck, how far its tip leans and bows, its length, half width and depth."""

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
    chance, deviation = rng.random(8), rng.standard_normal(12)
    stretch = (habit.long,) * 2 + (habit.large,) * 4
    jitter = (1 + 0.05 * deviation[:6]).clip(0.85, 1.15)
    sizes = Sizes(*(float(m * s * j) for m, s, j in zip(mean, stretch, jitter, strict=True)))
    form = FORMS[position - 1]
    form = form._replace(
        relief=form.relief * float(0.6 + 0.6 * chance[0]),
        enamel=form.enamel * float(0.85 + 0.3 * chance[1]),
        end=form.end * float(0.94 + 0.09 * chance[2]),
        cusps=2 if position == 5 and not upper and chance[3] < 0.5 else form.cusps,
    )
    x = edge + sizes.width / 2
    level = 8.3 * habit.long - sizes.crown  # biting edges meet one plane, necks do not
    posterior = position > 3
    return Tooth(
        fdi=((1 if right else 2) if upper else (4 if right else 3)) * 10 + position,
        finding=FINDINGS[min(int(np.searchsorted(np.cumsum(habit.shares), chance[4])), len(FINDINGS) - 1)],
        x=-x if right else x,
        y=0.8 * level + 0.35 * float(deviation[6]),
        tilt=0.045 * float(deviation[7]),
        sizes=sizes,
        form=form,
        roots=_draw_roots(deviation[8:], sizes, upper, position),
        pulp=habit.pulp * float(0.85 + 0.3 * chance[5]),
        site=float(int(3 * chance[6]) - 1) if posterior else (-1.0 if chance[6] < 0.5 else 1.0),
        reach=float(chance[6] * 12 % 1),
        metal=bool(chance[7] < (0.9 if posterior else 0.6)),
    )


def _draw_roots(deviation: NDArray[np.float64], sizes: Sizes, upper: bool, position: int) -> tuple[Root, ...]:
    half, depth, length = sizes.neck / 2, sizes.neck_depth, sizes.root
    bow = [float(b) for b in -0.8 + 0.6 * deviation[:3]]  # tips tend to bow distally
    if position < 6:
        if upper and position == 4:  # buccal and palatal, nearly in line with the beam
            buccal = Root(half * 0.12, 0.5, bow[0], length, half * 0.85, depth / 2)
            palatal = Root(-half * 0.12, -0.5, bow[1], length * 0.95, half * 0.85, depth / 2, lingual=True)
            return buccal, palatal
        return (Root(0.0, 0.0, bow[0], length, half, depth),)
    splay = float({6: 1.5, 7: 0.8, 8: 0.1}[position] + 0.4 * deviation[3])
    thick = depth * (0.55 if upper else 0.9)
    mesial = Root(half * 0.5, splay, bow[0], length, half * 0.52, thick)
    distal = Root(-half * 0.5, -splay, -0.4 * bow[1], length * 0.94, half * 0.50, thick)
    if not upper:
        return mesial, distal
    return mesial, distal, Root(0.0, 0.0, 0.3 * bow[2], length * 1.02, half * 0.5, depth * 0.45, lingual=True)
