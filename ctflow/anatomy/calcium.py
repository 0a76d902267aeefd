"""Calcium in vessel walls, and metal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Grid, Mask
from ctflow.anatomy.pleura import beside_spine
from ctflow.anatomy.thorax import Rays
from ctflow.anatomy.types import Calcification

METAL_HU = 1200.0
"""Brighter than any bone on the working grid."""

CALCIUM_ABOVE_BLOOD_HU = 90.0
CALCIUM_ABOVE_ENHANCED_HU = 150.0
"""Enhanced blood is uneven: veins are brighter than arteries."""

MIN_CALCIUM_HU = 170.0
MAX_PLAQUE_ML = 3.0
AORTA_ASIDE_MM = 48.0
"""Beyond lie calcified nodules."""


def measure_calcium(
    grid: Grid, body: Mask, heart: Mask, rays: Rays, spine: NDArray[np.float64], blood_hu: float, lung: Mask
) -> Calcification:
    """Bright spots inside the rib cage that are not bone, split into heart and other vessels.

    Args:
        grid: Working grid.
        body: Filled body mask.
        heart: Heart shadow.
        rays: Distances to the wall by voxel.
        spine: ``[S, 2]`` row and column of the spine.
        blood_hu: HU of blood, more than 45 with contrast medium.
        lung: Aerated lung of both sides.

    Returns:
        The calcification.
    """
    aside, behind = beside_spine(grid, spine)
    enhanced = blood_hu > 90.0
    limit = max(
        MIN_CALCIUM_HU, blood_hu + (CALCIUM_ABOVE_ENHANCED_HU if enhanced else CALCIUM_ABOVE_BLOOD_HU)
    )
    # Bone is met whole, so that its size tells it from a plaque.
    labels, count = ndimage.label((grid.hu > limit) & body, np.ones((3, 3, 3), dtype=bool))
    if count == 0:
        return Calcification()
    region = (rays.radius < rays.wall - 8.0) & (np.abs(aside) < 100.0)
    area = lung.sum(axis=(1, 2))
    region &= (area > 0.25 * area.max())[:, None, None]
    # Neither vertebrae, nor what the wall leaves of the sternum.
    region &= ~((np.abs(aside) < 16.0) & (behind > -22.0)) & (behind < 5.0)
    region &= ~((np.abs(aside) < 22.0) & (behind < -60.0) & (rays.wall - rays.radius < 24.0))
    flat = labels.ravel()
    sizes = np.bincount(flat, minlength=count + 1)
    within = np.bincount(flat, region.ravel(), minlength=count + 1)
    near_air = np.bincount(flat, ndimage.binary_dilation(lung).ravel(), minlength=count + 1)
    keep = (sizes * grid.voxel_ml <= MAX_PLAQUE_ML) & (within > 0.7 * sizes) & (near_air < 0.6 * sizes)
    # A lead or a catheter is part of a piece with metal.
    keep &= np.bincount(flat, (grid.hu > METAL_HU).ravel(), minlength=count + 1) == 0
    keep[0] = False
    plaque = keep[labels]
    in_heart = ndimage.binary_erosion(ndimage.binary_dilation(heart, iterations=2), iterations=1)
    coronary = plaque & in_heart & (behind < -45.0)
    aorta = plaque & ~coronary & (np.abs(aside) < AORTA_ASIDE_MM)
    return Calcification(float(aorta.sum()) * grid.voxel_ml, float(coronary.sum()) * grid.voxel_ml)


def metal_ml(grid: Grid, body: Mask) -> float:
    """Millilitres of material brighter than any bone, anywhere in the body."""
    return float(((grid.hu > METAL_HU) & body).sum()) * grid.voxel_ml
