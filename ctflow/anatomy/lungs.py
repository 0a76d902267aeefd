"""Aerated lungs, separated from the air outside, the trachea and the gut, and split left from right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.body import body_extent
from ctflow.anatomy.grid import Grid, Mask, keep_components
from ctflow.anatomy.types import SIDES

LUNG_HU = -400.0
"""Half way between lung tissue and soft tissue: the border of the aerated lung."""

GAS_BELOW_LUNG_HU = 65.0
GAS_HU = (-940.0, -880.0)
"""Gas in the gut is darker than the right lung of the same slice by the former, within the latter."""

MIN_PART_ML = 12.0
"""Pieces of aerated lung smaller than this are ghosts or gut gas."""

SPLIT_REACH_MM = 48.0
"""The border between the lungs is looked for this far to either side of the midline."""


def find_air(grid: Grid, body: Mask, trachea: Mask, spine: NDArray[np.float64]) -> Mask:
    """Aerated lung of both sides: air inside the body without the trachea and without small pockets."""
    wall = ndimage.binary_dilation(trachea, grid.disc(3.0)) if trachea.any() else trachea
    # The outermost millimetres of the body are skin and partial volume, never lung.
    inner = ndimage.binary_erosion(body, grid.disc(6.0))
    air = (grid.smooth < LUNG_HU) & inner & ~wall
    air = ndimage.binary_opening(air, grid.disc(0.8 * grid.pixel_mm))
    return keep_components(air & ~_gas(grid, air, spine), MIN_PART_ML / grid.voxel_ml)


def _gas(grid: Grid, air: Mask, spine: NDArray[np.float64]) -> Mask:
    """Gas of stomach or gut in ``air``: pockets far below lung density with tissue all round.

    An emphysematous hole is as dark, but has lung around it; a whole lung as dark is too large.
    """
    limit = _gas_limits(grid, air, spine)[:, None, None]
    labels, count = ndimage.label((ndimage.gaussian_filter(grid.hu, 1.0) < limit) & air)
    gas = np.zeros_like(air)
    total = air.sum()
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    reach = max(2, round(9.0 / grid.pixel_mm))
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or not sizes[label] * grid.voxel_ml > MIN_PART_ML / 2 or sizes[label] > 0.35 * total:
            continue
        wide = tuple(slice(max(0, part.start - reach), part.stop + reach) for part in box)
        part = labels[wide] == label
        tissue = grid.smooth[wide] > LUNG_HU
        # How far the pocket's rim reaches depends on how blurred the volume is.
        for rim in (2, 3, 4):
            core = ndimage.binary_dilation(part, iterations=rim)
            shell = ndimage.binary_dilation(core, grid.disc(6.0)) & ~core
            if shell.any() and tissue[shell].mean() > 0.6:
                gas[wide] |= ndimage.binary_dilation(core)
                break
    return gas


def _gas_limits(grid: Grid, air: Mask, spine: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU below which air is gas, per slice: the stomach lies on the left, the right lung is the yardstick."""
    values = np.full(len(air), np.nan)
    for s in range(len(air)):
        column = round(spine[s, 1])
        right = grid.smooth[s, :, column:][air[s, :, column:]]
        if right.size > 60:
            values[s] = np.median(right)
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(air), GAS_HU[1])
    index = np.arange(len(values))
    return np.clip(np.interp(index, index[known], values[known]) - GAS_BELOW_LUNG_HU, *GAS_HU)


def midline(grid: Grid, body: Mask, spine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Column of the body's midline per slice: between the spine and the middle of the outline."""
    first, last = body_extent(body)
    line = 0.7 * spine[:, 1] + 0.3 * (first + last) / 2
    return ndimage.gaussian_filter1d(line, 8.0 / grid.spacing[0], mode="nearest")


def split_columns(grid: Grid, air: Mask, center: NDArray[np.float64]) -> NDArray[np.intp]:
    """The front-to-back path between the lungs that crosses least air, per slice.

    Dynamic programming over rows: a step moves at most one column; crossing air costs 1, leaving the
    midline a little, so that touching lungs are cut where they touch least.

    Args:
        grid: Working grid.
        air: Aerated lung of both sides.
        center: Column of the midline per slice.

    Returns:
        ``[S, R]`` first column that belongs to the patient's right.
    """
    slices, rows, columns = air.shape
    reach = max(3, round(SPLIT_REACH_MM / grid.spacing[2]))
    base = np.clip(center.round().astype(int) - reach, 0, max(0, columns - 2 * reach - 1))
    index = np.minimum(base[:, None] + np.arange(2 * reach + 1), columns - 1)
    thick = ndimage.gaussian_filter1d(air.astype(np.float32), 4.0 / grid.spacing[0], axis=0)
    local = np.take_along_axis(
        thick, np.broadcast_to(index[:, None, :], (slices, rows, index.shape[1])), axis=2
    )
    offset = (index - center[:, None]) / reach
    cost = local + (0.02 + 0.06 * offset**2)[:, None, :]
    total = np.empty_like(cost)
    total[:, 0] = cost[:, 0]
    step = np.empty(cost.shape, dtype=np.int8)
    for row in range(1, rows):
        above = np.pad(total[:, row - 1], ((0, 0), (1, 1)), constant_values=np.inf)
        choices = np.stack([above[:, :-2] + 0.01, above[:, 1:-1], above[:, 2:] + 0.01])
        step[:, row] = choices.argmin(axis=0) - 1
        total[:, row] = cost[:, row] + choices.min(axis=0)
    path = np.empty((slices, rows), dtype=np.intp)
    path[:, -1] = total[:, -1].argmin(axis=1)
    for row in range(rows - 1, 0, -1):
        path[:, row - 1] = path[:, row] + step[np.arange(slices), row, path[:, row]]
    return np.take_along_axis(index, path, axis=1)


def split_lungs(grid: Grid, air: Mask, body: Mask, spine: NDArray[np.float64]) -> dict[str, Mask]:
    """Aerated lung by side.

    A lung may reach over the midline in front of the heart: the cut runs where least air is crossed.

    Returns:
        Masks of ``left`` and ``right``.
    """
    border = split_columns(grid, air, midline(grid, body, spine))
    on_right = np.arange(air.shape[2])[None, None, :] >= border[:, :, None]
    sides = {"left": air & ~on_right, "right": air & on_right}
    return {side: _drop_gas(grid, sides[side]) for side in SIDES}


def _drop_gas(grid: Grid, lung: Mask) -> Mask:
    """Remove parts of a side that are not lung: small against the largest part, and below it (gut gas)."""
    labels, count = ndimage.label(lung)
    if count < 2:
        return lung
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    main = int(sizes.argmax())
    boxes = ndimage.find_objects(labels)
    keep = np.zeros(count + 1, dtype=bool)
    keep[main] = True
    main_mean = float(grid.hu[labels == main].mean())
    lower = boxes[main - 1][0]
    third = lower.start + 0.33 * (lower.stop - lower.start)
    for label in range(1, count + 1):
        if label == main or sizes[label] * grid.voxel_ml < MIN_PART_ML:
            continue
        part = boxes[label - 1][0]
        below = (part.start + part.stop) / 2 < third
        airy = float(grid.hu[boxes[label - 1]][labels[boxes[label - 1]] == label].mean())
        keep[label] = not (below and airy < main_mean + 20.0 and sizes[label] < 0.3 * sizes[main])
    return keep[labels]
