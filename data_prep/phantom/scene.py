"""The volume that findings are drawn into, and the choice of their places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.phantom.canvas import Array, Box, Canvas
from data_prep.phantom.lungs import lung_points
from data_prep.phantom.mediastinum import Mediastinum
from data_prep.phantom.spec import Finding
from data_prep.phantom.thorax import Thorax

WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass
class Scene:
    """The volume that findings are drawn into.

    Attributes:
        canvas: The image.
        thorax: Lungs and cage.
        mediastinum: Heart and vessels.
        wants_masks: Whether to fill ``masks``.
        masks: Share of each voxel by finding's name.
        occupied: Share of each voxel that hides what lies in it ``[S, R, C]``.
        reserve_only: Findings only mark ``occupied`` and are not painted.
    """

    canvas: Canvas
    thorax: Thorax
    mediastinum: Mediastinum
    wants_masks: bool = False
    masks: dict[str, Array] = field(default_factory=dict)
    occupied: Array | None = None
    reserve_only: bool = False

    def keep_mask(self, finding: Finding, box: Box, alpha: Array) -> None:
        """Add a finding's share of its voxels to the masks."""
        if self.wants_masks and not self.reserve_only:
            name = finding.label.lower().replace(" ", "_")
            whole = self.masks.setdefault(name, np.zeros(self.canvas.hu.shape, np.float32))
            np.maximum(whole[box], alpha, out=whole[box])

    def occupy(self, box: Any, alpha: Array) -> None:
        """Mark voxels that later findings must not be placed in."""
        if self.occupied is None:
            self.occupied = np.zeros(self.canvas.hu.shape, np.float32)
        self.occupied[box] = np.maximum(self.occupied[box], alpha)

    def free(self, box: Box) -> Array | np.float32:
        """Share of each voxel that nothing hides."""
        return np.float32(1.0) if self.occupied is None else 1.0 - self.occupied[box]

    def lung_share(self, box: Box, side: str) -> Array:
        """Share of lung of one side (``both`` for either) over a box."""
        share = self.thorax.lung_alpha[box]
        return (
            share if side == "both" else share * self.thorax.side_mask(self.canvas, side)[box[0], :, box[2]]
        )

    def fill_lung(self, where: Any, alpha: Array, hu: float) -> None:
        """Replace lung by a tissue; at the lung's edge only the voxel's share of lung is replaced."""
        view = self.canvas.hu[where]
        usual = np.float32(self.thorax.anatomy.lung_hu + 15.0)
        here = np.where(self.thorax.lung_alpha[where] > 0.97, view, np.minimum(view, usual))
        self.canvas.hu[where] = view + alpha * (np.float32(hu) - here)

    def cover_lung(self, box: Box, alpha: Array) -> None:
        """Take from the lungs what a structure of the mediastinum pushes away."""
        self.thorax.lung_alpha[box] *= 1.0 - alpha

    def place(self, rng: np.random.Generator, finding: Finding, depth: float) -> np.ndarray:
        """A free point (x, y, z) of the finding's lobe, as deep as can be had up to ``depth`` mm."""
        assert finding.side
        for wanted in (depth, 0.7 * depth, 0.4 * depth, 1.0):
            for lobe in (finding.lobe,) if wanted > 1.0 else (finding.lobe, None):
                points = lung_points(self.canvas, self.thorax, rng, finding.side, 40, wanted, lobe)
                free = [point for point in points if self._is_free(point, min(wanted, 0.6 * depth))]
                if free:
                    return free[0].astype(float)
        points = lung_points(self.canvas, self.thorax, rng, finding.side, 12, -1e3)
        return points[0].astype(float)

    def _is_free(self, point: np.ndarray, reach: float) -> bool:
        if self.occupied is None:
            return True
        box = self.canvas.around(point, reach)
        return float(self.occupied[box].max(initial=0.0)) < 0.3


def mean_index(alpha: Array, box: Box) -> list[float] | None:
    """Centre of mass (slice, row, column) of a share over a box."""
    total = float(alpha.sum())
    if total <= 0:
        return None
    center = []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        profile = alpha.sum(axis=others)
        center.append(
            round(float((profile * np.arange(len(profile))).sum() / total) + (box[axis].start or 0), 1)
        )
    return center
