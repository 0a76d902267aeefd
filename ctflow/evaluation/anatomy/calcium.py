"""Calcium in vessel walls, and metal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.evaluation.anatomy.grid import Grid, Mask
from ctflow.evaluation.anatomy.pleura import beside_spine
from ctflow.evaluation.anatomy.thorax import Rays
from ctflow.evaluation.anatomy.types import Calcification

METAL_HU = 1200.0
"""Brighter than any bone on the working grid."""

CALCIUM_ABOVE_BLOOD_HU = 90.0
MIN_CALCIUM_HU = 170.0
MAX_PLAQUE_ML = 3.0


def measure_calcium(
    grid: Grid, body: Mask, heart: Mask, rays: Rays, spine: NDArray[np.float64], blood_hu: float, lung: Mask
) -> tuple[Calcification, float]:
    """Bright spots inside the rib cage that are no bone, split into heart and other vessels; and metal.

    Args:
        grid: Working grid.
        body: Filled body mask.
        heart: Heart shadow.
        rays: Distances to the wall by voxel.
        spine: ``[S, 2]`` row and column of the spine.
        blood_hu: HU of blood, more than 45 with contrast medium.
        lung: Aerated lung of both sides.

    Returns:
        The calcification, and millilitres of metal.
    """
    metal = float(((grid.hu > METAL_HU) & body).sum()) * grid.voxel_ml
    aside, behind = beside_spine(grid, spine)
    limit = max(MIN_CALCIUM_HU, blood_hu + CALCIUM_ABOVE_BLOOD_HU)
    region = (rays.radius < rays.wall - 8.0) & (np.abs(aside) < 110.0) & lung.any(axis=(1, 2))[:, None, None]
    region &= ~((np.abs(aside) < 26.0) & (behind > -19.0)) & (behind < 25.0)
    bright = region & (grid.hu > limit)
    labels, count = ndimage.label(bright, np.ones((3, 3, 3), dtype=bool))
    if count == 0:
        return Calcification(), metal
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * grid.voxel_ml
    near_air = np.bincount(labels.ravel(), ndimage.binary_dilation(lung).ravel(), minlength=count + 1)
    keep = (sizes <= MAX_PLAQUE_ML) & (near_air * grid.voxel_ml < 0.6 * sizes)
    keep[0] = False
    plaque = keep[labels]
    in_heart = ndimage.binary_erosion(ndimage.binary_dilation(heart, iterations=2), iterations=1)
    coronary = plaque & in_heart & (behind < -45.0)
    return (
        Calcification(
            aorta_ml=float((plaque & ~coronary).sum()) * grid.voxel_ml,
            coronary_ml=float(coronary.sum()) * grid.voxel_ml,
        ),
        metal,
    )
