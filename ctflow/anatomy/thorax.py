"""The inner wall of the rib cage, in polar coordinates around the middle of the chest.

Fluid and dense lung lie between the aerated lung and this wall, so the wall must be known without the lung's
help: the ribs show it directly, the healthy parts of the lungs tell how far inside the ribs it runs, and the
other side of the chest helps where no rib is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Array, Grid, Mask

ANGLES = 120
RADIUS_STEP_MM = 2.5
RADIUS_MAX_MM = 240.0
RIB_HU = 140.0
BLOOD_MARGIN_HU = 35.0
"""Ribs are brighter than RIB_HU and, where blood is enhanced, than blood by this much."""

SEEN_MM = 45.0
"""A ray that meets lung this far out shows the wall itself."""

RIB_REACH_MM = 14.0
"""Ribs run obliquely: those of the slices this far above and below complete the ring."""

WALL_MARGIN_MM = 3.0

MIRROR_TOLERANCE_MM = 6.0
"""The two halves of a chest differ by about this."""


@dataclass(frozen=True)
class Polar:
    """Rays from the middle of the chest, angle 0 towards the patient's right, a quarter turn to the back.

    Attributes:
        origin: ``[S, 2]`` row and column of the rays' origin.
        lung: ``[S, A]`` mm to the outermost aerated lung, 0 where there is none.
        body: ``[S, A]`` mm to the skin.
        wall: ``[S, A]`` mm to the inner wall of the rib cage.
    """

    origin: NDArray[np.float64]
    lung: NDArray[np.float64]
    body: NDArray[np.float64]
    wall: NDArray[np.float64]


def trace_wall(grid: Grid, body: Mask, lungs: Mask, spine: NDArray[np.float64]) -> Polar:
    """Measure rays and estimate the inner wall in every slice (see the module's text)."""
    slices, rows, columns = grid.hu.shape
    _, sy, sx = grid.spacing
    origin = _origins(grid, lungs, spine)
    radii = np.arange(0.0, RADIUS_MAX_MM, RADIUS_STEP_MM)
    theta = 2 * np.pi * np.arange(ANGLES) / ANGLES
    row = origin[:, 0, None, None] + np.sin(theta)[:, None] * radii / sy
    column = origin[:, 1, None, None] + np.cos(theta)[:, None] * radii / sx
    r = np.clip(np.rint(row), 0, rows - 1).astype(np.intp)
    c = np.clip(np.rint(column), 0, columns - 1).astype(np.intp)
    s = np.arange(slices)[:, None, None]
    off = (row < 0) | (row > rows - 1) | (column < 0) | (column > columns - 1)
    lung = _outermost(lungs[s, r, c] & ~off, radii)
    skin = _outermost(body[s, r, c] & ~off, radii)
    threshold = max(RIB_HU, blood_hu(grid, lungs, spine) + BLOOD_MARGIN_HU)
    bone = (grid.smooth[s, r, c] > threshold) & ~off
    seen = np.maximum(lung, _mirror(lung) - MIRROR_TOLERANCE_MM)
    rib = _inner_bone(grid, bone, radii, seen, skin)
    return Polar(origin=origin, lung=lung, body=skin, wall=_wall(grid, rib, lung, skin))


def sample_rays(grid: Grid, values: Array, polar: Polar, radii: NDArray[np.float64]) -> Array:
    """Nearest-voxel ``values`` at ``radii`` mm ``[S, A, K]`` along every ray, clamped to the grid."""
    slices, rows, columns = values.shape
    theta = 2 * np.pi * np.arange(ANGLES) / ANGLES
    row = polar.origin[:, 0, None, None] + np.sin(theta)[:, None] * radii / grid.spacing[1]
    column = polar.origin[:, 1, None, None] + np.cos(theta)[:, None] * radii / grid.spacing[2]
    r = np.clip(np.rint(row), 0, rows - 1).astype(np.intp)
    c = np.clip(np.rint(column), 0, columns - 1).astype(np.intp)
    return values[np.arange(slices)[:, None, None], r, c]


def _origins(grid: Grid, lungs: Mask, spine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Middle of the chest: the spine's column, and half way through the lungs from front to back."""
    occupied = np.asarray(lungs.any(axis=2))
    present = np.asarray(occupied.any(axis=1))
    origin = np.stack([spine[:, 0] - 60.0 / grid.spacing[1], spine[:, 1]], axis=1)
    if present.any():
        index = np.arange(len(present))
        first = occupied.argmax(axis=1)[present]
        last = (occupied.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1))[present]
        middle = np.median((first + last) / 2 - spine[present, 0])
        origin[:, 0] = ndimage.gaussian_filter1d(spine[:, 0], 3.0)[index] + middle
    return origin


def blood_hu(grid: Grid, lungs: Mask, spine: NDArray[np.float64]) -> float:
    """HU of the bright part of the soft tissue between the lungs: about 45, more with contrast medium."""
    column = np.arange(lungs.shape[2])
    inner = lungs.any(axis=2)
    first = lungs.argmax(axis=2)
    last = lungs.shape[2] - 1 - lungs[:, :, ::-1].argmax(axis=2)
    ahead = np.arange(lungs.shape[1])[None] < (spine[:, 0] - 30.0 / grid.spacing[1])[:, None]
    between = (
        (column > first[:, :, None]) & (column < last[:, :, None]) & (inner & ahead)[:, :, None] & ~lungs
    )
    values = grid.smooth[between]
    values = values[values > 0.0]
    return float(np.percentile(values, 85)) if values.size > 200 else 45.0


def _outermost(mask: Mask, radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest radius at which each ray meets ``mask`` ``[S, A, K]``; 0 where it never does."""
    last = mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)
    return np.where(mask.any(axis=2), radii[last] + RADIUS_STEP_MM / 2, 0.0)


def _inner_bone(
    grid: Grid,
    bone: Mask,
    radii: NDArray[np.float64],
    seen: NDArray[np.float64],
    skin: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Inner surface of the ring of ribs, NaN where no bone is met. ``bone`` is ``[S, A, K]``.

    Bone is looked for outside what either lung already shows to be inside the cage, so that an enhanced heart
    or aorta is not taken for it.
    """
    reach = 2 * round(RIB_REACH_MM / grid.spacing[0]) + 1
    near = np.maximum(seen - 5.0, 0.5 * skin)[:, :, None]
    shell = (radii >= near) & (radii < skin[:, :, None] - 5.0)
    hit = ndimage.maximum_filter(
        (bone & shell).astype(np.uint8), (reach, 3, 1), mode=("nearest", "wrap", "nearest")
    )
    return np.where(hit.any(axis=2), radii[hit.argmax(axis=2)], np.nan)


def _wall(
    grid: Grid, rib: NDArray[np.float64], lung: NDArray[np.float64], skin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Combine ribs, healthy lung and mirror symmetry into one smooth radius per ray."""
    seen = np.maximum(lung, _mirror(lung) - MIRROR_TOLERANCE_MM)
    gap = rib - lung
    healthy = np.isfinite(gap) & (lung > 0.5 * skin) & (gap < 15.0)
    inset = float(np.median(gap[healthy])) if healthy.sum() > 50 else WALL_MARGIN_MM
    estimate = rib - inset
    estimate[estimate > np.maximum(seen, 0.35 * skin) + 90.0] = np.nan
    estimate = np.where(np.isfinite(estimate), estimate, _mirror(estimate))
    # Where lung is seen on either side, ribs further out are another structure's (scapula, breast, clavicle).
    far = (seen > SEEN_MM) & ~(estimate < seen + 20.0)
    estimate = np.where(far & ~_behind(), seen, estimate)
    estimate = np.where(np.isfinite(estimate), estimate, np.where(seen > SEEN_MM, seen, np.nan))
    window = (2 * round(10.0 / grid.spacing[0]) + 1, 5)
    valid = np.isfinite(estimate)
    usual = np.where(valid, estimate, 0.78 * skin)
    median = ndimage.median_filter(np.pad(usual, ((0, 0), (4, 4)), mode="wrap"), window, mode="nearest")[
        :, 4:-4
    ]
    sigma = (6.0 / grid.spacing[0], 1.0)
    smooth = ndimage.gaussian_filter(median, sigma, mode=("nearest", "wrap"))
    limit = skin - 8.0
    outer = np.minimum(smooth, limit)
    # Upwards of its widest part the cage only narrows: clavicles and shoulder blades are not its wall.
    widest = int(np.argmax(np.where(seen.max(axis=1) > 0, np.median(seen, axis=1), 0.0)))
    for s in range(widest + 1, len(outer)):
        outer[s] = np.minimum(outer[s], np.maximum(outer[s - 1] + 0.5, seen[s]))
    return np.maximum(outer, np.minimum(lung, limit))


def _behind() -> NDArray[np.bool_]:
    """Rays that run to the back half, where fluid collects and a gap to the ribs is not a mistake."""
    return np.sin(2 * np.pi * np.arange(ANGLES) / ANGLES)[None, :] > -0.2


def _mirror(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Swap left and right: angle a to pi - a."""
    index = (ANGLES // 2 - np.arange(ANGLES)) % ANGLES
    return values[:, index]


@dataclass(frozen=True)
class Rays:
    """Polar measurements brought back to the voxels of the working grid, ``[S, R, C]`` each.

    Attributes:
        radius: mm from the middle of the chest.
        wall: mm to the wall on the voxel's ray.
        lung: mm to the outermost aerated lung on the voxel's ray.
    """

    radius: Array
    wall: Array
    lung: Array


def to_voxels(grid: Grid, polar: Polar) -> Rays:
    """Interpolate the rays to every voxel."""
    slices, rows, columns = grid.hu.shape
    _, sy, sx = grid.spacing
    y = ((np.arange(rows)[None, :, None] - polar.origin[:, 0, None, None]) * sy).astype(np.float32)
    x = ((np.arange(columns)[None, None, :] - polar.origin[:, 1, None, None]) * sx).astype(np.float32)
    angle = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi)) % ANGLES
    low = angle.astype(np.int32)
    share = angle - low
    flat = np.arange(slices, dtype=np.int32)[:, None, None] * ANGLES
    first, second = flat + low % ANGLES, flat + (low + 1) % ANGLES

    def spread(values: NDArray[np.float64]) -> Array:
        table = values.astype(np.float32).ravel()
        return table[first] * (1 - share) + table[second] * share

    return Rays(radius=np.sqrt(y * y + x * x), wall=spread(polar.wall), lung=spread(polar.lung))
