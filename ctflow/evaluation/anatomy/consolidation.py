"""Consolidation by side: airless lung, about as bright as muscle, surrounded by lung or bulging into it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.evaluation.anatomy.grid import Grid, Mask
from ctflow.evaluation.anatomy.pleura import beside_spine
from ctflow.evaluation.anatomy.thorax import Rays

DENSE_HU = -25.0
"""Airless lung and organs lie above, the fat between them below."""

ORGAN_MM = 42.0
"""Heart, liver and spleen hold a cube of this size; a consolidation that touches them bulges out of it."""

MIN_THICKNESS_MM = 10.0
BULGE_THICKNESS_MM = 15.0
MIN_PART_ML = 3.0
MAX_PART_ML = 700.0
MIN_ASIDE_MM = 28.0
MIN_UNDER_LUNG = 0.6


def find_consolidation(
    grid: Grid, lung: Mask, fluid: Mask, rays: Rays, spine: NDArray[np.float64]
) -> dict[str, Mask]:
    """Dense lung of either side.

    Args:
        grid: Working grid.
        lung: Aerated lung of both sides.
        fluid: Pleural fluid of both sides.
        rays: Distances to the wall by voxel.
        spine: ``[S, 2]`` row and column of the spine.

    Returns:
        Masks of ``left`` and ``right``; air in the bronchi of a consolidation is part of it.
    """
    aside, _ = beside_spine(grid, spine)
    wet = ndimage.binary_dilation(fluid, iterations=2) if fluid.any() else fluid
    inside = (rays.radius < rays.wall - 1.0) & ~lung & ~wet
    dense = inside & (grid.smooth > DENSE_HU)
    dense = _open(grid, dense, MIN_THICKNESS_MM)
    bulge = _open(grid, dense & ~_open(grid, dense, ORGAN_MM), BULGE_THICKNESS_MM)
    found = _parts(grid, dense, lung, aside) | _parts(grid, bulge, lung, aside)
    if not found.any():
        return {"left": found, "right": found}
    # Opening took the rim, and bronchi the inside.
    rim = ndimage.binary_dilation(found, iterations=2) & inside & (grid.smooth > -350.0)
    filled = ndimage.binary_closing(found | rim, iterations=2) & ~wet
    return {"left": filled & (aside < 0), "right": filled & (aside >= 0)}


def _open(grid: Grid, mask: Mask, mm: float) -> Mask:
    """Morphological opening by a box of ``mm``, separable and therefore fast."""
    size = tuple(max(2, round(mm / s)) for s in grid.spacing)
    shrunk = ndimage.minimum_filter(mask.view(np.uint8), size, mode="constant")
    # An even box is not centred: shift the dilation the other way.
    origin = tuple(-1 if n % 2 == 0 else 0 for n in size)
    return ndimage.maximum_filter(shrunk, size, mode="constant", origin=origin).astype(bool)


def _parts(grid: Grid, dense: Mask, lung: Mask, aside: NDArray[np.float32]) -> Mask:
    """The connected parts that lie beside the mediastinum with lung above them."""
    labels, count = ndimage.label(dense)
    keep = np.zeros(count + 1, dtype=bool)
    height = np.where(lung.any(axis=0), len(lung) - 1 - lung[::-1].argmax(axis=0), -1)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == label
        volume = part.sum() * grid.voxel_ml
        if not MIN_PART_ML <= volume <= MAX_PART_ML:
            continue
        slices, rows, columns = np.nonzero(part)
        slices, rows, columns = slices + box[0].start, rows + box[1].start, columns + box[2].start
        under = float((height[rows, columns] > slices).mean())
        distance = abs(float(aside[slices, 0, columns].mean()))
        keep[label] = under >= MIN_UNDER_LUNG and distance >= MIN_ASIDE_MM
    return keep[labels]
