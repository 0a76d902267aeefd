"""Rib cage, diaphragm, lungs and lobes as signed distances over the whole scan."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.phantom.canvas import Array, Box, Canvas
from data_prep.phantom.spec import Anatomy

_LEVELS = (0.0, 0.25, 0.5, 0.7, 0.84, 0.94, 1.0, 1.06)
_WIDTHS = (1.0, 1.0, 0.95, 0.84, 0.66, 0.44, 0.22, 0.1)
_DEPTHS = (1.0, 1.0, 0.95, 0.86, 0.72, 0.54, 0.34, 0.2)
_POWER = 2.4


def _no_volume() -> Array:
    return np.empty((0, 0, 0), np.float32)


@dataclass
class Thorax:
    """The chest's frame.

    Attributes:
        anatomy: The patient.
        heights: Heights of the slices, a vector.
        cage: Signed distance to the inner surface of the rib cage ``[S, R, C]``, mm, negative inside.
        width: Inner half-width of the cage by slice.
        depth: Inner half-depth of the cage by slice.
        middle_y: Centre of the cage by slice.
        spine_x: Spine's centre by slice.
        spine_y: Centre of the vertebral bodies by slice.
        base_z: Lowest point of the lungs.
        diaphragm: Height of the diaphragm's surface ``[R, C]``.
        mediastinum: Signed distance to what keeps the lungs apart.
        lung: Signed distance to the lungs (with pleural space) ``[S, R, C]``; filled by ``close_lungs``.
        lung_alpha: Share of lung in a voxel.
        pleura: Signed distance to the space between cage and diaphragm, mediastinum included.
    """

    anatomy: Anatomy
    heights: Array
    cage: Array
    width: Array
    depth: Array
    middle_y: Array
    spine_x: Array
    spine_y: Array
    base_z: float
    diaphragm: Array
    mediastinum: Array
    lung: Array = field(default_factory=_no_volume)
    lung_alpha: Array = field(default_factory=_no_volume)
    pleura: Array = field(default_factory=_no_volume)

    def at(self, values: Array, z: float) -> float:
        """A by-slice quantity of this frame at a height."""
        return float(np.interp(z, self.heights, values[:, 0, 0]))

    def front_y(self, z: float) -> float:
        """The inner surface of the front chest wall in the midline, at a height."""
        return self.at(self.middle_y - self.depth, z)

    def spine_at(self, z: float) -> tuple[float, float]:
        """Centre (x, y) of the vertebral bodies at a height."""
        return self.at(self.spine_x, z), self.at(self.spine_y, z)

    def keep_out(self, box: Box, distance: Array) -> None:
        """Let the lungs spare a structure."""
        view = self.mediastinum[box]
        np.minimum(view, distance, out=view)

    def close_lungs(self, canvas: Canvas) -> None:
        """Lungs = cage over the diaphragm without the mediastinum."""
        self.pleura = np.maximum(
            self.cage + np.float32(2.5), (self.diaphragm[None] - canvas.z) * np.float32(0.85)
        )
        self.lung = lung = np.maximum(self.pleura, -self.mediastinum)
        self.lung_alpha = canvas.soft(lung)

    def side_sign(self, side: str) -> float:
        """+1 for the right (x grows to the right), −1 for the left."""
        return 1.0 if side == "right" else -1.0

    def side_mask(self, canvas: Canvas, side: str) -> Array:
        """1 on one side of the midline, ``[S, 1, C]``."""
        offset = canvas.x - self.midline
        return ((offset > 0) if side == "right" else (offset <= 0)).astype(np.float32)

    @property
    def midline(self) -> Array:
        """The plane between the lungs by slice, ``[S, 1, 1]``."""
        return self.spine_x

    def fissure_fields(self, x: Array, y: Array, z: Array, side: str) -> tuple[Array, Array]:
        """Signed distances (oblique, horizontal), positive above the fissure."""
        a = self.anatomy
        bow = np.float32(6.0) * np.sin(np.abs(x) * np.float32(0.035))
        slope = 1.02 if side == "right" else 1.1
        height = a.fissure + 0.32 * a.dome_z + (4.0 if side == "left" else 0.0)
        oblique = (z - np.float32(height) - np.float32(slope) * (y - 12.0) - bow) * np.float32(0.7)
        horizontal = (
            z
            - np.float32(0.22 * a.dome_z + 0.5 * a.fissure)
            + np.float32(0.12) * (np.abs(x) - 60.0)
            - 0.1 * y
        )
        return oblique, horizontal

    def in_lobe(self, x: Array, y: Array, z: Array, lobe: str) -> Array:
        """Signed distance to a lobe's fissures, positive inside (lung surface not included)."""
        side = lobe.split()[0]
        oblique, horizontal = self.fissure_fields(x, y, z, side)
        if lobe.endswith("lower lobe"):
            return -oblique
        if side == "left":
            return oblique
        return np.minimum(oblique, horizontal if "upper" in lobe else -horizontal)


def build_thorax(canvas: Canvas, anatomy: Anatomy) -> Thorax:
    """Cage, spine line and diaphragm of a patient on a grid; the lungs are closed later."""
    a = anatomy
    base_z = a.dome_z - a.dome_drop - 52.0
    level = np.clip((canvas.z - base_z) / (a.apex_z - base_z), 0.0, 1.06)
    width = (np.interp(level, _LEVELS, _WIDTHS) * a.half_width).astype(np.float32)
    depth = (np.interp(level, _LEVELS, _DEPTHS) * a.half_depth).astype(np.float32)
    spine_x = (a.scoliosis * np.sin(canvas.z / 70.0)).astype(np.float32)
    bend = np.where(canvas.z > -25.0, 1.0, 0.45) * ((canvas.z + 25.0) / 100.0) ** 2
    spine_y = (a.half_depth - 12.0 - a.kyphosis * bend).astype(np.float32)
    middle_y = spine_y + 14.0 - depth
    dx = np.abs((canvas.x - spine_x * np.float32(0.5)) / width)
    dy = np.abs((canvas.y - middle_y) / depth)
    py = dy**_POWER
    share = np.clip(dy * dy, 0.0, 1.0)
    scale = (width * (1.0 - share) + depth * share) / np.float32(_POWER)
    cage = dx**_POWER + (py - 1.0)
    cage *= scale
    np.maximum(cage, (canvas.z - np.float32(a.apex_z)) * np.float32(1.0), out=cage)
    return Thorax(
        anatomy=anatomy,
        heights=canvas.z[:, 0, 0],
        cage=cage,
        width=width,
        depth=depth,
        middle_y=middle_y,
        spine_x=spine_x,
        spine_y=spine_y,
        base_z=base_z,
        diaphragm=_diaphragm(canvas, a),
        mediastinum=np.full(canvas.hu.shape, 1e3, np.float32),
    )


def _diaphragm(canvas: Canvas, a: Anatomy) -> Array:
    """Height of the two domes over the image plane; deepest at the back, joined smoothly in the middle."""
    x, y = canvas.x[0], canvas.y[0]
    front = (y + 12.0) / a.half_depth
    fall = np.where(front > 0, 62.0, 24.0) * front**2
    heights = []
    for side, top in ((1.0, a.dome_z), (-1.0, a.dome_z - a.dome_drop)):
        offset = (x * side - 0.46 * a.half_width) / (0.54 * a.half_width)
        heights.append(top - 26.0 * offset**2 * np.where(offset > 0, 1.0, 0.35))
    share = np.clip((x + 32.0) / 64.0, 0.0, 1.0)
    share = share * share * (3.0 - 2.0 * share)
    return (share * heights[0] + (1.0 - share) * heights[1] - fall).astype(np.float32)
