"""The heart shadow between the lungs: presence, transverse width, cardiothoracic ratio, fluid around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.evaluation.anatomy.grid import Grid, Mask
from ctflow.evaluation.anatomy.pleura import beside_spine
from ctflow.evaluation.anatomy.thorax import Polar
from ctflow.evaluation.anatomy.types import Heart

SOFT_HU = -35.0
"""Blood and muscle lie above; the fat between heart and lung below."""

MIN_HEART_ML = 120.0
MIN_WIDTH_MM = 50.0
CORE_MM = 26.0
"""Vessels and the anterior junction are thinner than this, the heart is not."""

LOWER_SHARE = 0.72
"""The heart lies in this lower share of the lungs' height."""


def measure_heart(
    grid: Grid, lungs: dict[str, Mask], border: NDArray[np.intp], spine: NDArray[np.float64], polar: Polar
) -> tuple[Heart, Mask]:
    """Find the soft tissue between the lungs in front of the spine and take its widest slice.

    Args:
        grid: Working grid.
        lungs: Aerated lung by side.
        border: ``[S, R]`` first column of the right side.
        spine: ``[S, 2]`` row and column of the spine.
        polar: Rays to the wall of the rib cage.

    Returns:
        The heart, and the mask of its shadow.
    """
    thorax = _thorax_width(lungs, polar)
    shadow = _shadow(grid, lungs, spine)
    volume = float(shadow.sum()) * grid.voxel_ml
    if volume < MIN_HEART_ML:
        return Heart(present=False, thorax_width_mm=thorax), np.zeros_like(shadow)
    widths = ndimage.median_filter(_widths(shadow), 3, mode="nearest") * grid.spacing[2]
    width = float(widths.max())
    present = width >= MIN_WIDTH_MM and thorax > 0
    return Heart(present, width, thorax, width / thorax if thorax else 0.0), shadow


def _shadow(grid: Grid, lungs: dict[str, Mask], spine: NDArray[np.float64]) -> Mask:
    """Soft tissue between the inner borders of the two lungs, in front of the spine, rounded by an opening.

    Only slices above both domes count: where either lung no longer reaches forward beside the heart, liver or
    stomach lies next to it.
    """
    left, right = lungs["left"], lungs["right"]
    columns = left.shape[2]
    column = np.arange(columns)
    inner_left = columns - 1 - left[:, :, ::-1].argmax(axis=2)
    inner_right = right.argmax(axis=2)
    flanked = left.any(axis=2) & right.any(axis=2)
    _, behind = beside_spine(grid, spine)
    flanked &= behind[:, :, 0] < -20.0
    between = (column > inner_left[:, :, None]) & (column < inner_right[:, :, None]) & flanked[:, :, None]
    between &= _heart_levels(lungs)[:, None, None]
    soft = between & (grid.smooth > SOFT_HU)
    return ndimage.binary_opening(soft, grid.disc(CORE_MM / 2))


def _heart_levels(lungs: dict[str, Mask]) -> Mask:
    """Slices in the lower share of the lungs in which each lung is at least half as large as at its largest."""
    levels = np.ones(len(lungs["left"]), dtype=bool)
    present = np.zeros(len(levels), dtype=bool)
    for mask in lungs.values():
        area = mask.sum(axis=(1, 2)).astype(float)
        levels &= area >= 0.5 * area.max() if area.max() else False
        present |= area > 0
    if not present.any():
        return present
    low, high = np.flatnonzero(present)[[0, -1]]
    levels[round(low + LOWER_SHARE * (high - low)) :] = False
    return levels


def _widths(shadow: Mask) -> NDArray[np.float64]:
    """Columns covered by each slice's shadow."""
    columns = shadow.any(axis=1)
    first = columns.argmax(axis=1)
    last = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    return np.where(columns.any(axis=1), last - first, 0).astype(np.float64)


def _thorax_width(lungs: dict[str, Mask], polar: Polar) -> float:
    """Widest inner extent of the rib cage over the slices that hold both lungs."""
    both = lungs["left"].any(axis=(1, 2)) & lungs["right"].any(axis=(1, 2))
    if not both.any():
        return 0.0
    angles = 2 * np.pi * np.arange(polar.wall.shape[1]) / polar.wall.shape[1]
    x = polar.wall[both] * np.cos(angles)
    return float(np.percentile(x.max(axis=1) - x.min(axis=1), 95))


def pericardial_fluid(
    grid: Grid, heart: Mask, lung: Mask, spine: NDArray[np.float64], muscle: NDArray[np.float32]
) -> float:
    """Millilitres of water density within and at the rim of the heart shadow."""
    if not heart.any():
        return 0.0
    _, behind = beside_spine(grid, spine)
    near = ndimage.binary_dilation(heart, grid.disc(14.0)) & ~lung & (behind < -30.0)
    darkness = muscle[:, None, None] - ndimage.gaussian_filter(grid.hu, 1.0)
    watery = near & (darkness > 26.0) & (darkness < 75.0)
    return float(ndimage.binary_opening(watery, iterations=1).sum()) * grid.voxel_ml
