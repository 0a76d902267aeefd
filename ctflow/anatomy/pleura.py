"""Pleural fluid by side.

Fluid lies between the aerated lung and the wall of the rib cage, behind and beside, and is darker than
muscle. The chest wall of the same slice is the yardstick of darkness, so that a shifted block of slices
shifts both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Array, Grid, Mask
from ctflow.anatomy.thorax import Rays
from ctflow.anatomy.types import SIDES

MUSCLE_HU = 52.0
"""Where no chest wall is seen, and where the search for its muscle begins."""

MODE_REACH_HU = 50.0
MODE_STEPS = 5
MODE_SLICES = 5

FLUID_BELOW_MUSCLE_HU = (20.0, 85.0)
"""Fluid is darker than the muscle of its slice by a value between these; beyond lies fat."""

CORE_BELOW_MUSCLE_HU = 31.0
"""Where tissue lies clear of air, fluid (10 HU) is darker than muscle by more than this, airless lung (38 HU)
by less."""

CORE_AIR_HU = -150.0
MIN_CORE_SHARE = 0.12
"""Darker voxels hold air; their neighbours may hold some. The share of the rest that an estimate needs."""

MIN_GAP_MM = 5.5
"""Lung and wall of a healthy chest lie closer than this."""

FRONT_MM = -75.0
"""Fluid this far in front of the vertebral bodies' centres is another organ's."""

MIN_POOL_ML = 10.0
MIN_ASIDE_MM = 26.0
MIN_BEHIND_MM = -48.0
NEAR_WALL_MM = 12.0
MIN_NEAR_WALL = 0.1
"""Share of a pool's voxels that lie this near the wall: 0.3 and more in phantoms' pleural pools, none in
fluid round the heart."""

BELOW_LUNG_MM = 20.0

_ANY_NEIGHBOUR = np.ones((3, 3, 3), dtype=bool)


def tissue_hu(grid: Grid, mask: Mask, sigma_mm: float) -> Array:
    """HU averaged over the neighbouring voxels of ``mask`` only (a normalised Gaussian)."""
    sigma = grid.sigma(sigma_mm)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3.0)
    total = ndimage.gaussian_filter(np.where(mask, grid.hu, np.float32(0.0)), sigma, truncate=3.0)
    return total / np.maximum(weight, 1e-3)


def muscle_hu(grid: Grid, body: Mask, wall: Mask) -> NDArray[np.float32]:
    """HU of the muscle of the chest wall per slice: the mode of its soft tissue, found by mean shift.

    A median between fixed bounds would follow a shifted block of slices by a part of the shift only.
    """
    shell = body & ~wall & (grid.smooth > -120.0) & (grid.smooth < 250.0)
    values = np.full(len(shell), np.nan)
    for s in range(len(shell)):
        tissue = grid.smooth[s][shell[s]]
        if tissue.size < 100:
            continue
        mode = MUSCLE_HU
        for _ in range(MODE_STEPS):
            near = tissue[np.abs(tissue - mode) < MODE_REACH_HU]
            mode = float(np.median(near)) if near.size else np.nan
        values[s] = mode
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(shell), MUSCLE_HU, np.float32)
    index = np.arange(len(values))
    line = np.interp(index, index[known], values[known])
    # Ribs disturb single slices; a median leaves the steps between blocks.
    return ndimage.median_filter(line, MODE_SLICES, mode="nearest").astype(np.float32)


def beside_spine(grid: Grid, spine: NDArray[np.float64]) -> tuple[Array, Array]:
    """Millimetres right of and behind the spine's centre line, broadcastable to ``[S, R, C]``."""
    _, rows, columns = grid.hu.shape
    aside = (np.arange(columns)[None, None, :] - spine[:, 1, None, None]) * grid.spacing[2]
    behind = (np.arange(rows)[None, :, None] - spine[:, 0, None, None]) * grid.spacing[1]
    return aside.astype(np.float32), behind.astype(np.float32)


def tissue_darkness(grid: Grid, lung: Mask, rays: Rays, muscle: NDArray[np.float32]) -> Array:
    """HU by which soft tissue inside the rib cage is darker than its slice's muscle, ``[S, R, C]``."""
    return muscle[:, None, None] - tissue_hu(grid, _soft(grid, lung, rays, muscle), 3.0)


def _soft(grid: Grid, lung: Mask, rays: Rays, muscle: NDArray[np.float32]) -> Mask:
    """Neither air nor fat nor bone, inside the rib cage."""
    over = grid.smooth - muscle[:, None, None]
    return (over > -112.0) & (over < 180.0) & (rays.radius < rays.wall + 1.0) & ~lung


def core_darkness(grid: Grid, lung: Mask, rays: Rays, muscle: NDArray[np.float32]) -> tuple[Array, Mask]:
    """HU below muscle of the tissue that lies clear of air, and where enough of it is near.

    The edges of a consolidation and of the bronchi in it are part air and therefore as dark as fluid; away
    from them the two differ by 28 HU.

    Returns:
        ``[S, R, C]`` each; the first counts only where the second holds.
    """
    air = ndimage.binary_dilation((grid.smooth < CORE_AIR_HU) | lung)
    core = _soft(grid, lung, rays, muscle) & ~air
    sigma = grid.sigma(3.5)
    share = ndimage.gaussian_filter(core.astype(np.float32), sigma, truncate=2.5)
    total = ndimage.gaussian_filter(np.where(core, grid.hu, np.float32(0.0)), sigma, truncate=2.5)
    return muscle[:, None, None] - total / np.maximum(share, 1e-3), share > MIN_CORE_SHARE


def find_fluid(
    grid: Grid,
    lung: Mask,
    rays: Rays,
    spine: NDArray[np.float64],
    muscle: NDArray[np.float32],
    darkness: Array,
) -> dict[str, Mask]:
    """Fluid of either side: thin layers on rays that also meet lung, and pools anywhere behind.

    Args:
        grid: Working grid.
        lung: Aerated lung of both sides.
        rays: Distances to wall and lung by voxel.
        spine: ``[S, 2]`` row and column of the spine.
        muscle: HU of muscle per slice.
        darkness: From ``tissue_darkness``.

    Returns:
        Masks of ``left`` and ``right``.
    """
    aside, behind = beside_spine(grid, spine)
    reference = muscle[:, None, None]
    low, high = FLUID_BELOW_MUSCLE_HU
    core, sure = core_darkness(grid, lung, rays, muscle)
    thin = (darkness > low) & (darkness < high) & (grid.smooth < reference - 8.0)
    thick = (core > CORE_BELOW_MUSCLE_HU) & (core < high)
    watery = _soft(grid, lung, rays, muscle) & np.where(sure, thick, thin)
    watery &= ~((np.abs(aside) < 22.0) & (behind > -17.0)) & (behind > FRONT_MM) & (np.abs(aside) > 15.0)
    watery &= _levels(grid, lung)[:, None, None]
    gap = (rays.lung > 25.0) & (rays.radius > rays.lung) & (rays.wall - rays.lung > MIN_GAP_MM)
    pool = ndimage.binary_opening(watery, grid.disc(1.3 * grid.pixel_mm))
    fluid = _plausible(grid, (watery & gap) | pool, rays, aside, behind)
    # The voxels at the border to fat and collapsed lung are part fluid.
    edge = (
        ndimage.binary_dilation(fluid)
        & ~lung
        & (grid.smooth > reference - 150.0)
        & (grid.smooth < reference - 7.0)
        & ~(sure & (core < CORE_BELOW_MUSCLE_HU))
    )
    fluid |= edge
    return {"left": fluid & (aside < 0), "right": fluid & (aside >= 0)}


def _levels(grid: Grid, lung: Mask) -> Mask:
    """Slices in which pleural fluid can lie: from a little below the lowest lung to the apices."""
    present = np.flatnonzero(lung.any(axis=(1, 2)))
    levels = np.zeros(len(lung), dtype=bool)
    if present.size:
        levels[max(0, present[0] - round(BELOW_LUNG_MM / grid.spacing[0])) : present[-1]] = True
    return levels


def _plausible(grid: Grid, fluid: Mask, rays: Rays, aside: Array, behind: Array) -> Mask:
    """Keep connected parts that are large enough and lie beside the mediastinum, behind, along the wall."""
    labels, count = ndimage.label(fluid, _ANY_NEIGHBOUR)
    keep = np.zeros(count + 1, dtype=bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == label
        if part.sum() * grid.voxel_ml < MIN_POOL_ML:
            continue
        slices, rows, columns = (n + b.start for n, b in zip(np.nonzero(part), box, strict=True))
        near = (rays.wall[box][part] - rays.radius[box][part] < NEAR_WALL_MM).mean()
        keep[label] = (
            float(np.abs(aside[slices, 0, columns]).mean()) > MIN_ASIDE_MM
            and float(behind[slices, rows, 0].mean()) > MIN_BEHIND_MM
            and float(near) > MIN_NEAR_WALL
        )
    return keep[labels]


def volumes_ml(grid: Grid, masks: dict[str, Mask]) -> dict[str, float]:
    """Millilitres of each side's mask."""
    return {side: float(masks[side].sum()) * grid.voxel_ml for side in SIDES}
