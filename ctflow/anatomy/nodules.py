"""Nodules: compact dense spots inside the lungs; vessels are elongated, ribs and hila lie outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.consolidation import between_lung, open_box
from ctflow.anatomy.grid import Array, Grid, Mask
from ctflow.anatomy.pleura import beside_spine
from ctflow.anatomy.thorax import Rays
from ctflow.anatomy.types import Nodule

SCALES_MM = (2.6, 4.0, 6.2, 9.5)
"""Gaussian widths of the blob filter; a ball of diameter d answers most at d / 3.5."""

MIN_ANSWER_HU = 55.0
"""Scale-normalised answer a spot must reach."""

MOST_SPOTS = 200
ORGAN_HU = -25.0
ORGAN_MM = 38.0
MEDIASTINUM_ASIDE_MM = 24.0
"""Nearer to the midline lie the great vessels."""

MAX_SHELL = 0.13
"""Brightness of the shell round a spot relative to its peak: a vessel leaves through it on two sides."""

MIN_ROUNDNESS = 0.45
"""Least over largest curvature at the spot: 1 for a ball, near 0 for a vessel."""

SOLID_HU = 30.0
MIN_DIAMETER_MM, MAX_DIAMETER_MM = 4.5, 33.0
CONTRAST_AT_MM = (10.0, 13.0)
MIN_CONTRAST_HU = (420.0, 560.0)
"""The least contrast rises between these diameters: partial volume lowers that of small nodules only, and a
large spot with less is ground glass."""

MAX_ELONGATION = 1.9
MIN_BALL_SCORE = 0.44
"""A ball scores near 0.9 in ``_ball_score``, forks and bends of vessels mostly below this."""

MIN_FILL = 0.36
"""Share of its box that a spot fills: 0.52 for a ball, little for a fork of vessels."""


@dataclass(frozen=True)
class _Spot:
    voxel: tuple[int, int, int]
    sigma_mm: float
    answer: float
    roundness: float


def find_nodules(
    grid: Grid,
    lungs: dict[str, Mask],
    exclude: Mask,
    rays: Rays,
    spine: NDArray[np.float64],
) -> tuple[Nodule, ...]:
    """Blobs of several sizes within the lungs, strongest first, each place counted once.

    Args:
        grid: Working grid.
        lungs: Aerated lung by side.
        exclude: Fluid and consolidation, where no nodule can be told apart.
        rays: Distances to the wall by voxel.
        spine: ``[S, 2]`` row and column of the spine.

    Returns:
        The nodules, largest first.
    """
    both = lungs["left"] | lungs["right"]
    if not both.any():
        return ()
    box = ndimage.find_objects(both.astype(np.int8))[0]
    lung, space = both[box], _space(grid, both, rays)[box] & ~exclude[box]
    lateral = np.abs(beside_spine(grid, spine)[0]) > MEDIASTINUM_ASIDE_MM
    inside = space & lateral[box[0], :, box[2]]
    background = float(np.median(grid.hu[box][lung]))
    # Everything outside the spots counts as lung, so that walls and domes give no answer.
    flat = np.where(space | lung, np.clip(grid.hu[box], -1000.0, 100.0), background).astype(np.float32)
    spots = [spot for sigma in SCALES_MM for spot in _spots(grid, flat, inside, sigma)]
    spots.sort(key=lambda spot: -spot.answer)
    offset = np.array([part.start for part in box])
    nodules: list[Nodule] = []
    for spot in spots[:MOST_SPOTS]:
        nodule = _measure(grid, flat, background, spot, offset, lungs)
        if nodule is None:
            continue
        if all(
            _distance(nodule, other) > 0.6 * (nodule.diameter_mm + other.diameter_mm) for other in nodules
        ):
            nodules.append(nodule)
    return tuple(sorted(nodules, key=lambda nodule: -nodule.diameter_mm))


def _space(grid: Grid, lung: Mask, rays: Rays) -> Mask:
    """Voxels inside the rib cage between lung above and below that are not an organ."""
    dense = (grid.smooth > ORGAN_HU) & (rays.radius < rays.wall) & ~lung
    organ = open_box(grid, dense, ORGAN_MM)
    organ = ndimage.maximum_filter(organ.view(np.uint8), grid.size(15.0)).astype(bool)
    return (rays.radius < rays.wall) & between_lung(lung) & ~organ


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
    peak &= allowed & (answer > MIN_ANSWER_HU)
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
    """Diameter from the mass of the connected spot at half its height; None if the spot is not compact."""
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
    volume = part.sum() * grid.voxel_ml * 1000.0
    mass = (
        float(np.clip(window[ndimage.binary_dilation(part)] - background, 0, None).sum())
        * grid.voxel_ml
        * 1000.0
    )
    elongation = _elongation(grid, part)
    if elongation > MAX_ELONGATION:
        return None
    if part.sum() < MIN_FILL * np.prod(np.ptp(np.argwhere(part), axis=0) + 1):
        return None
    # A small spot's peak is lowered by partial volume, its mass is not; a calcified one is brighter.
    solid = mass / (SOLID_HU - background)
    diameter = float(np.cbrt(6.0 * (solid if peak < SOLID_HU + 50.0 else volume) / np.pi))
    at_half = float(np.cbrt(6.0 * volume / np.pi))
    if peak - background < np.interp(diameter, CONTRAST_AT_MM, MIN_CONTRAST_HU):
        return None
    if not MIN_DIAMETER_MM <= diameter <= MAX_DIAMETER_MM or not 0.65 < diameter / at_half < 1.5:
        return None
    middle = np.argwhere(part).mean(axis=0)
    shell = _shell(grid, flat, middle + low, diameter / 2, background) / (peak - background)
    if shell > MAX_SHELL or _ball_score(spot.roundness, elongation, shell) < MIN_BALL_SCORE:
        return None
    center = middle + low + offset
    voxel = grid.to_volume(center)
    volume_spacing = [s / f for s, f in zip(grid.spacing, grid.factors, strict=True)]
    z, y, x = (v * s for v, s in zip(voxel, volume_spacing, strict=True))
    return Nodule(voxel, (z, y, x), diameter, _side(center, lungs), peak - background)


def _ball_score(roundness: float, elongation: float, shell: float) -> float:
    """How much a spot is like a ball: round, compact and alone, each weighed against the others.

    1 for a ball in empty lung. One weak property is forgiven, all three together are a vessel's.
    """
    return roundness - 0.25 * (elongation - 1.0) - 1.5 * shell


def _elongation(grid: Grid, part: Mask) -> float:
    """Longest over shortest spread of a part's voxels; a voxel's own size counts as spread."""
    position = np.argwhere(part) * np.asarray(grid.spacing)
    own = np.diag(np.square(grid.spacing)) / 12.0
    covariance = np.cov(position.T, bias=True) + own if len(position) > 1 else own
    spread = np.sqrt(np.linalg.eigvalsh(covariance))
    return float(spread[-1] / spread[0])


def _shell(
    grid: Grid, flat: Array, middle: NDArray[np.float64], radius_mm: float, background: float
) -> float:
    """Mean HU over the background, outside 1.3 radii and a voxel, inside two voxels more."""
    inner = 1.3 * radius_mm + 0.6 * max(grid.spacing)
    outer = inner + 1.3 * max(grid.spacing)
    reach = [int(np.ceil(outer / s)) for s in grid.spacing]
    low = [max(0, int(m) - n) for m, n in zip(middle, reach, strict=True)]
    high = [int(m) + n + 2 for m, n in zip(middle, reach, strict=True)]
    window = flat[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    axes = [
        (np.arange(n) + a - m) * s for n, a, m, s in zip(window.shape, low, middle, grid.spacing, strict=True)
    ]
    distance = np.sqrt(
        axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    )
    values = window[(distance > inner) & (distance < outer)]
    return float(np.clip(values - background, 0.0, None).mean()) if values.size else 0.0


def _side(center: NDArray[np.float64], lungs: dict[str, Mask]) -> str:
    """The side with more aerated lung in the neighbourhood of a point."""
    box = tuple(slice(max(0, int(c) - n), int(c) + n + 1) for c, n in zip(center, (3, 8, 8), strict=True))
    return max(lungs, key=lambda side: int(lungs[side][box].sum()))


def _distance(one: Nodule, other: Nodule) -> float:
    return float(np.linalg.norm(np.subtract(one.center_mm, other.center_mm)))
