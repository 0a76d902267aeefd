"""The patient's outline and the spine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Array, Grid, Mask, fill_slices, largest_component
from ctflow.anatomy.types import Body, Spine

BODY_HU = -350.0
"""Half way between air and fat, blurred skin included."""

BONE_LOW_HU, BONE_HIGH_HU = 90.0, 240.0
"""A voxel counts as bone from 0 to 1 between these."""

SPINE_BOX_MM = 31.0
USUAL_DEPTH = 0.75
"""Where the vertebral bodies lie between the front (0) and the back (1) of the body."""

HALF_VERTEBRA_MM = 13.5

SPINE_SCORE = 0.13
"""Mean bone weight a box of SPINE_BOX_MM must reach to hold a vertebra."""


def find_body(grid: Grid) -> Mask:
    """The body with everything inside it: largest soft-tissue object, table cut off, slices filled."""
    solid = grid.smooth > BODY_HU
    core = largest_component(ndimage.binary_opening(solid, grid.disc(7.0)))
    # The opening cuts the table off, but thin chest walls too: they come back, what lies behind does not.
    row = np.arange(solid.shape[1])
    back = np.where(core, row[None, :, None], -1).max(axis=(1, 2))
    whole = largest_component(solid & (row[None, :] <= back[:, None] + 1)[:, :, None])
    filled = fill_slices(core | whole)
    # A wall broken by a ghost or a seam would open the chest to the outside: close it before filling again.
    n = max(1, round(12.0 / grid.pixel_mm))
    wide = np.pad(filled, ((0, 0), (2 * n, 2 * n), (2 * n, 2 * n))).view(np.uint8)
    grown = ndimage.maximum_filter(wide, (1, 2 * n + 1, 2 * n + 1))
    closed = ndimage.minimum_filter(grown, (1, 2 * n + 1, 2 * n + 1))[:, 2 * n : -2 * n, 2 * n : -2 * n]
    return fill_slices(closed.astype(bool))


def body_extent(body: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last body column of every slice, empty slices take their neighbours'."""
    columns = np.asarray(body.any(axis=1))
    first = columns.argmax(axis=1).astype(np.float64)
    last = columns.shape[1] - 1.0 - columns[:, ::-1].argmax(axis=1)
    empty = ~np.asarray(columns.any(axis=1))
    if empty.any() and not empty.all():
        index = np.arange(len(empty))
        first[empty] = np.interp(index[empty], index[~empty], first[~empty])
        last[empty] = np.interp(index[empty], index[~empty], last[~empty])
    return first, last


def describe_body(grid: Grid, body: Mask) -> Body:
    """Volume and extents of the body mask."""
    per_slice = np.asarray(body.any(axis=(1, 2)))
    if not per_slice.any():
        return Body(present=False)
    columns = np.asarray(body.any(axis=1))[per_slice].sum(axis=1) * grid.spacing[2]
    rows = np.asarray(body.any(axis=2))[per_slice].sum(axis=1) * grid.spacing[1]
    volume = float(body.sum()) * grid.voxel_ml
    return Body(
        present=volume > 1000.0,
        volume_ml=volume,
        width_mm=float(np.percentile(columns, 90)),
        depth_mm=float(np.percentile(rows, 90)),
    )


def bone_weight(hu: Array) -> Array:
    """0 for soft tissue, 1 for bone, linear between."""
    return np.clip((hu - BONE_LOW_HU) / (BONE_HIGH_HU - BONE_LOW_HU), 0.0, 1.0)


def find_spine(grid: Grid, body: Mask) -> tuple[Spine, NDArray[np.float64]]:
    """Follow the densest block of bone through the posterior midline.

    Returns:
        The spine, and its centre ``[S, 2]`` as (row, column) of the working grid in every slice (a guess
        from the body's outline without a spine).
    """
    slices, rows, columns = grid.hu.shape
    first, last = body_extent(body)
    middle = (first + last) / 2
    occupied = np.asarray(body.any(axis=2))
    front = occupied.argmax(axis=1).astype(np.float64)
    depth = np.maximum(rows - 1.0 - occupied[:, ::-1].argmax(axis=1) - front, 1.0)
    weight = bone_weight(grid.hu) * body
    box = ndimage.uniform_filter(weight, (1, *grid.size(SPINE_BOX_MM)[1:]), mode="constant")
    score = ndimage.gaussian_filter1d(box, 14.0 / grid.spacing[0], axis=0)
    r, c = np.ogrid[:rows, :columns]
    offset = (c[None] - middle[:, None, None]) * grid.spacing[2]
    # An enhanced aorta is as bright as bone, but further forward and to the side.
    forward = (r[None] - front[:, None, None]) / depth[:, None, None] - USUAL_DEPTH
    ranked = (score * np.exp(-0.5 * (offset / 20.0) ** 2 - 0.5 * (forward / 0.11) ** 2)).reshape(slices, -1)
    best = ranked.argmax(axis=1)
    found = score.reshape(slices, -1)[np.arange(slices), best] > SPINE_SCORE
    center = np.stack([front + USUAL_DEPTH * depth, middle], axis=1)
    if found.any():
        index = np.arange(slices)
        spots = np.stack(np.unravel_index(best, (rows, columns)), axis=1)
        for axis in range(2):
            center[:, axis] = np.interp(index, index[found], spots[found, axis])
    center = _steady(grid, center)
    center[:, 0] = _steady(grid, _vertebra_rows(grid, weight, center)[:, None])[:, 0]
    inside = body.any(axis=(1, 2))
    coverage = float(found[inside].mean()) if inside.any() else 0.0
    line = np.clip(center.round().astype(int), 0, [rows - 1, columns - 1])
    spine = Spine(
        present=coverage >= 0.7,
        coverage=coverage,
        center=tuple(grid.to_volume((s, *center[s])) for s in range(slices)),
        mean_hu=float(grid.smooth[np.arange(slices), line[:, 0], line[:, 1]].mean()),
    )
    return spine, center


def _steady(grid: Grid, line: NDArray[np.float64]) -> NDArray[np.float64]:
    """A line ``[S, n]`` without single outliers, smoothed along the slices."""
    window = max(3, 2 * round(20.0 / grid.spacing[0]) + 1)
    line = ndimage.median_filter(line, (window, 1), mode="nearest")
    return ndimage.gaussian_filter1d(line, 8.0 / grid.spacing[0], axis=0, mode="nearest")


def _vertebra_rows(grid: Grid, weight: Array, center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row of the vertebral bodies' centres: half a body behind the first bone met from the front.

    The block of bone found before may be centred on the arch; the front of the vertebral body is the sharpest
    landmark. Rows are looked through from 30 mm before to 30 mm behind the block's centre.
    """
    rows = weight.shape[1]
    half = max(1, round(6.0 / grid.spacing[2]))
    columns = np.clip(
        center[:, 1].round().astype(int)[:, None] + np.arange(-half, half + 1), 0, weight.shape[2] - 1
    )
    strip = np.take_along_axis(weight, columns[:, None, :].repeat(rows, axis=1), axis=2).mean(axis=2)
    strip = ndimage.gaussian_filter1d(strip, 8.0 / grid.spacing[0], axis=0)
    offset = (np.arange(rows)[None] - center[:, :1]) * grid.spacing[1]
    bone = (strip > 0.2) & (offset > -30.0) & (offset < 30.0)
    # A lasting run of bone: a calcified vessel in front is thinner.
    run = max(2, round(9.0 / grid.spacing[1]))
    lasting = ndimage.minimum_filter1d(bone.astype(np.uint8), run, axis=1, origin=-((run - 1) // 2)) > 0
    first = lasting.argmax(axis=1)
    return np.where(lasting.any(axis=1), first + HALF_VERTEBRA_MM / grid.spacing[1], center[:, 0])
