"""Teeth as nested solids: how many millimetres of each material a beam crosses.

A tooth stands in its own plane: `u` runs mesially and `v` towards the crown (mm), both 0 at the middle of the neck (the
enamel ends there); the beam runs along the third axis. Every part is a stack of lens-shaped slices, so a part is two
numbers per row (half width, depth) and its path length is `depth * sqrt(1 - (offset / half_width)^n)`. Layers are
differences of nested parts: enamel = crown - dentin core, ligament = socket - root, lamina dura = socket wall - socket.
Seen along the wall such a layer is a thin line, as on a real film.
"""

from typing import NamedTuple

import numpy as np

from data_shards.phantom.anatomy import Array, Root, Tooth

LIGAMENT_MM = 0.25
"""Periodontal ligament space; 0.15 to 0.38 mm in life."""

LAMINA_MM = 0.35
"""Lamina dura, the wall of the socket."""


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
    """Path lengths on columns `u` (float32 [w], mm, mesial grows) and rows `v` (float32 [h], mm, crown first)."""
    grid = _Grid(tooth, u, v)
    crown, core = grid.crown(), grid.crown(enamel=1.0)
    root, socket, wall = grid.roots()
    solid = crown + root
    chamber, canals = grid.chamber(), grid.canals()
    pulp = np.minimum(np.maximum(chamber, canals), core + root)
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

    def roots(self) -> tuple[Array, Array, Array]:
        """The roots, their sockets, and those with the lamina dura.

        Of roots side by side the deeper counts, a lingual one is crossed besides; those of a molar join in a trunk.
        """
        size = self.tooth.sizes
        grows = (0.0, LIGAMENT_MM, LIGAMENT_MM + LAMINA_MM)
        rows = self._rows(-self.tooth.length, 0.0)
        v, u = self.v[rows], self.offset[rows]
        outs = (self._blank(), self._blank(), self._blank())
        for root in self.tooth.roots:
            for out, part in zip(outs, _root(root, u, v, grows), strict=True):
                out[rows] = out[rows] + part if root.lingual else np.maximum(out[rows], part)
        for out, grow in zip(outs, grows, strict=True):
            np.minimum(out, size.neck_depth + 2 * grow, out=out)
            if self.tooth.form.square == 4:
                s = np.minimum(-v / (0.3 * size.root + grow), 1)
                depth = (size.neck_depth + 2 * grow) * np.sqrt(1 - s * s)
                out[rows] = np.maximum(out[rows], _lens(u, size.neck / 2 * (1 - 0.1 * s) + grow, depth, 4))
        return outs

    def canals(self) -> Array:
        """The root canals."""
        rows = self._rows(-self.tooth.length, 0.0)
        v, u = self.v[rows], self.offset[rows]
        out = self._blank()
        for root in self.tooth.roots:
            half = min(0.6 * self.tooth.pulp, 0.36 * root.half_width)
            canal = root._replace(half_width=half, depth=0.42 * root.depth, length=root.length * 0.95)
            out[rows] = np.maximum(out[rows], _root(canal, u, v, (0.0,))[0])
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


def _root(root: Root, u: Array, v: Array, grows: tuple[float, ...]) -> list[Array]:
    """One root as a cone with a round tip, widened by each of `grows` mm; `v` at most 0."""
    down = -v / np.float32(root.length)
    cone = 1 - 0.55 * np.minimum(down, 1.1)
    offset = u - (root.start + (root.lean + root.bow * down) * down)
    parts = []
    for grow in grows:
        cap = np.sqrt(1 - np.minimum(-v / np.float32(root.length + grow), 1) ** 6)
        parts.append(_lens(offset, (root.half_width * cone + grow) * cap, (root.depth * cone + 2 * grow) * cap))
    return parts
