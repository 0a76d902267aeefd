"""Nodules: compact dense spots inside the lungs; vessels are elongated, ribs and hila lie outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.evaluation.anatomy.grid import Array, Grid, Mask
from ctflow.evaluation.anatomy.types import Nodule

SCALES_MM = (2.6, 4.0, 6.2, 9.5)
"""Gaussian widths of the blob filter; a ball of diameter d answers most at d / 3.5."""

MIN_ANSWER_HU = 90.0
"""Scale-normalised answer a spot must reach."""

MIN_ROUNDNESS = 0.45
"""Least over largest curvature at the spot: 1 for a ball, near 0 for a vessel."""

SOLID_HU = 30.0
MIN_DIAMETER_MM, MAX_DIAMETER_MM = 4.0, 40.0


@dataclass(frozen=True)
class _Spot:
    voxel: tuple[int, int, int]
    sigma_mm: float
    answer: float
    roundness: float


def find_nodules(grid: Grid, lungs: dict[str, Mask], space: Mask, exclude: Mask) -> tuple[Nodule, ...]:
    """Blobs of several sizes within ``space``, strongest first, each place counted once.

    Args:
        grid: Working grid.
        lungs: Aerated lung by side.
        space: Voxels inside the rib cage that belong to either lung's space.
        exclude: Fluid and consolidation, where no nodule can be told apart.
    """
    both = lungs["left"] | lungs["right"]
    if not both.any():
        return ()
    box = ndimage.find_objects(both.astype(np.int8))[0]
    hu = np.clip(grid.hu[box], -1000.0, 100.0)
    # Everything that is not lung or a spot within it counts as lung, so that walls give no answer.
    inside = _closed(grid, both)[box] & space[box]
    background = float(np.median(hu[both[box]])) if both[box].any() else -850.0
    flat = np.where(inside, hu, background).astype(np.float32)
    spots = [spot for sigma in SCALES_MM for spot in _spots(grid, flat, inside & ~exclude[box], sigma)]
    spots.sort(key=lambda spot: -spot.answer)
    offset = np.array([part.start for part in box])
    nodules: list[Nodule] = []
    for spot in spots:
        nodule = _measure(grid, flat, background, spot, offset, lungs)
        if nodule is None:
            continue
        if all(_distance(nodule, other) > 0.6 * (nodule.diameter_mm + other.diameter_mm) for other in nodules):
            nodules.append(nodule)
    return tuple(sorted(nodules, key=lambda nodule: -nodule.diameter_mm))


def _closed(grid: Grid, lungs: Mask) -> Mask:
    """The lungs with vessels and spots inside them filled."""
    reach = 14.0
    distance = ndimage.distance_transform_edt(~lungs, sampling=grid.spacing)
    grown = distance <= reach
    back = ndimage.distance_transform_edt(grown, sampling=grid.spacing)
    return np.asarray((back > reach - 0.5) | lungs)


def _spots(grid: Grid, flat: Array, allowed: Mask, sigma_mm: float) -> list[_Spot]:
    """Local maxima of the scale-normalised blob filter that curve downwards in all directions."""
    smooth = ndimage.gaussian_filter(flat, grid.sigma(sigma_mm), mode="nearest")
    sz, sy, sx = grid.spacing
    second = [
        (np.roll(smooth, 1, axis) + np.roll(smooth, -1, axis) - 2 * smooth) / step**2
        for axis, step in enumerate((sz, sy, sx))
    ]
    answer = -(second[0] + second[1] + second[2]) * sigma_mm**2 / 3.0
    peak = ndimage.maximum_filter(answer, size=3) == answer
    peak &= allowed & (answer > MIN_ANSWER_HU / 3.0)
    peak[[0, -1]] = False
    spots = []
    for z, y, x in zip(*np.nonzero(peak), strict=True):
        if not (0 < y < flat.shape[1] - 1 and 0 < x < flat.shape[2] - 1):
            continue
        near = smooth[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
        curvature = -np.linalg.eigvalsh(_hessian(near, grid.spacing)) * sigma_mm**2
        roundness = float(curvature.min() / max(curvature.max(), 1e-6))
        if roundness > MIN_ROUNDNESS:
            spots.append(_Spot((int(z), int(y), int(x)), sigma_mm, float(answer[z, y, x]), roundness))
    return spots


def _hessian(near: Array, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Second derivatives at the middle of a 3x3x3 neighbourhood, per square millimetre."""
    hessian = np.zeros((3, 3))
    middle = (1, 1, 1)
    for i in range(3):
        step = np.eye(3, dtype=int)[i]
        up, down = tuple(middle + step), tuple(middle - step)
        hessian[i, i] = (near[up] + near[down] - 2 * near[middle]) / spacing[i] ** 2
        for j in range(i):
            other = np.eye(3, dtype=int)[j]
            mixed = (
                near[tuple(middle + step + other)]
                + near[tuple(middle - step - other)]
                - near[tuple(middle + step - other)]
                - near[tuple(middle - step + other)]
            )
            hessian[i, j] = hessian[j, i] = mixed / (4 * spacing[i] * spacing[j])
    return hessian


def _measure(
    grid: Grid,
    flat: Array,
    background: float,
    spot: _Spot,
    offset: NDArray[np.int_],
    lungs: dict[str, Mask],
) -> Nodule | None:
    """Diameter from the mass of the connected spot at half its height; None where it is no compact spot."""
    reach = np.maximum(2, np.ceil(3.2 * spot.sigma_mm / np.asarray(grid.spacing)).astype(int))
    low = np.maximum(np.asarray(spot.voxel) - reach, 0)
    high = np.minimum(np.asarray(spot.voxel) + reach + 1, flat.shape)
    window = flat[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    seed = tuple(np.asarray(spot.voxel) - low)
    peak = float(window[seed])
    labels, _ = ndimage.label(window > (peak + background) / 2)
    if labels[seed] == 0:
        return None
    part = labels == labels[seed]
    position = np.argwhere(part) * np.asarray(grid.spacing)
    volume = part.sum() * grid.voxel_ml * 1000.0
    ring = ndimage.binary_dilation(part)
    mass = float(np.clip(window[ring] - background, 0, None).sum()) * grid.voxel_ml * 1000.0
    solid = min(volume, mass / (SOLID_HU - background)) if peak < SOLID_HU - 250 else volume
    diameter = float(np.cbrt(6.0 * max(solid, 1.0) / np.pi))
    if len(position) > 3:
        spread = np.sqrt(np.linalg.eigvalsh(np.cov(position.T)).clip(0.1))
        if spread[-1] > 1.9 * max(spread[0], 0.3 * max(grid.spacing)):
            return None
    if not MIN_DIAMETER_MM <= diameter <= MAX_DIAMETER_MM:
        return None
    center = np.argwhere(part).mean(axis=0) + low + offset
    voxel = grid.to_volume(center)
    volume_spacing = [s / f for s, f in zip(grid.spacing, grid.factors, strict=True)]
    z, y, x = (v * s for v, s in zip(voxel, volume_spacing, strict=True))
    return Nodule(voxel, (z, y, x), diameter, _side(center, lungs), peak - background)


def _side(center: NDArray[np.float64], lungs: dict[str, Mask]) -> str:
    """The side with more aerated lung in the neighbourhood of a point."""
    box = tuple(slice(max(0, int(c) - n), int(c) + n + 1) for c, n in zip(center, (3, 8, 8), strict=True))
    return max(lungs, key=lambda side: int(lungs[side][box].sum()))


def _distance(one: Nodule, other: Nodule) -> float:
    return float(np.linalg.norm(np.subtract(one.center_mm, other.center_mm)))
