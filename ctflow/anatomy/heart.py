"""The heart shadow between the lungs: presence, transverse width, cardiothoracic ratio, fluid around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Grid, Mask
from ctflow.anatomy.pleura import beside_spine
from ctflow.anatomy.thorax import Polar
from ctflow.anatomy.types import Heart

SOFT_BELOW_MUSCLE_HU = 87.0
"""Blood is brighter than muscle less this; the fat between heart and lung is darker."""

MIN_HEART_ML = 120.0
MIN_WIDTH_MM = 50.0
MIN_COLUMN_ML = 0.4
WATER_DARKNESS_HU = (26.0, 75.0)
"""Water is darker than muscle by a value between these."""

CORE_MM = 26.0
"""Vessels and the anterior junction are thinner than this, the heart is not."""

LEAST_OWN_SHARE = 0.7
"""Fluid takes no more than the rest of the shadow's width."""

STRIP_SHARE = (0.45, 0.75)
STRIP_MM = (-125.0, -60.0)
"""Between midline and wall, and behind the spine's centre: where the right dome rises."""

LOWER_SHARE = 0.72
"""The heart lies in this lower share of the lungs' height."""


def measure_heart(
    grid: Grid,
    lungs: dict[str, Mask],
    space: dict[str, Mask],
    spine: NDArray[np.float64],
    polar: Polar,
    muscle: NDArray[np.float32],
) -> tuple[Heart, Mask]:
    """Find the soft tissue between the lungs in front of the spine and take its widest slice.

    Args:
        grid: Working grid.
        lungs: Aerated lung by side.
        space: Lung, fluid and dense lung by side.
        spine: ``[S, 2]`` row and column of the spine.
        polar: Rays to the wall of the rib cage.
        muscle: HU of muscle per slice.

    Returns:
        The heart, and the mask of its shadow.
    """
    thorax = _thorax_width(lungs, polar)
    shadow = _shadow(grid, lungs, _heart_levels(grid, space, spine, polar), spine, muscle)
    volume = float(shadow.sum()) * grid.voxel_ml
    if volume < MIN_HEART_ML:
        return Heart(present=False, thorax_width_mm=thorax), np.zeros_like(shadow)
    width = _projected_mm(grid, shadow)
    present = width >= MIN_WIDTH_MM and thorax > 0
    return Heart(present, width, thorax, width / thorax if thorax else 0.0), shadow


def without_fluid(grid: Grid, heart: Heart, shadow: Mask, darkness: NDArray[np.float32]) -> Heart:
    """The heart with its own width where fluid around it widens the shadow."""
    own = ndimage.binary_opening(shadow & (darkness < WATER_DARKNESS_HU[0]), grid.disc(CORE_MM / 2))
    width = _projected_mm(grid, own)
    if width < max(MIN_WIDTH_MM, LEAST_OWN_SHARE * heart.width_mm):
        return heart
    return replace(heart, width_mm=width, cardiothoracic_ratio=width / heart.thorax_width_mm)


def _projected_mm(grid: Grid, shadow: Mask) -> float:
    """Width of the projection on the frontal plane: apex and right atrium stand out at different heights."""
    return float((shadow.sum(axis=(0, 1)) * grid.voxel_ml > MIN_COLUMN_ML).sum()) * grid.spacing[2]


def _shadow(
    grid: Grid, lungs: dict[str, Mask], levels: Mask, spine: NDArray[np.float64], muscle: NDArray[np.float32]
) -> Mask:
    """Soft tissue between the inner borders of the two lungs, in front of the spine, rounded by an opening.

    Only slices above the dome count: below, liver and stomach lie beside the heart.
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
    between &= levels[:, None, None]
    soft = between & (grid.smooth > muscle[:, None, None] - SOFT_BELOW_MUSCLE_HU)
    return ndimage.binary_opening(soft, grid.disc(CORE_MM / 2))


def _heart_levels(grid: Grid, space: dict[str, Mask], spine: NDArray[np.float64], polar: Polar) -> Mask:
    """Slices in the lower part of the lungs, but above the right dome.

    The dome rises in the middle of the right half: there a strip holds lung above it, liver below.
    """
    aside, behind = beside_spine(grid, spine)
    reach = polar.wall[:, 0].astype(np.float32)[:, None, None]
    low, high = STRIP_SHARE
    strip = (aside > low * reach) & (aside < high * reach) & (behind > STRIP_MM[0]) & (behind < STRIP_MM[1])
    size = strip.sum(axis=(1, 2))
    filled = (space["right"] & strip).sum(axis=(1, 2)) / np.maximum(size, 1)
    levels = (filled > 0.6) & (size > 0) & space["left"].any(axis=(1, 2))
    present = np.flatnonzero((space["left"] | space["right"]).any(axis=(1, 2)))
    if present.size:
        levels[round(present[0] + LOWER_SHARE * (present[-1] - present[0])) :] = False
    return levels


def _thorax_width(lungs: dict[str, Mask], polar: Polar) -> float:
    """Widest inner extent of the rib cage over the slices that hold both lungs."""
    both = lungs["left"].any(axis=(1, 2)) & lungs["right"].any(axis=(1, 2))
    if not both.any():
        return 0.0
    angles = 2 * np.pi * np.arange(polar.wall.shape[1]) / polar.wall.shape[1]
    x = polar.wall[both] * np.cos(angles)
    return float(np.percentile(x.max(axis=1) - x.min(axis=1), 95))


def pericardial_fluid(
    grid: Grid,
    heart: Mask,
    lung: Mask,
    spine: NDArray[np.float64],
    muscle: NDArray[np.float32],
    darkness: NDArray[np.float32],
) -> float:
    """Millilitres of water density in and around the heart shadow.

    Args:
        grid: Working grid.
        heart: Heart shadow.
        lung: Aerated lung of both sides.
        spine: ``[S, 2]`` row and column of the spine.
        muscle: HU of muscle per slice.
        darkness: HU below muscle of the soft tissue (see ``pleura.tissue_darkness``).
    """
    if not heart.any():
        return 0.0
    _, behind = beside_spine(grid, spine)
    near = ndimage.binary_dilation(heart, grid.disc(20.0)) & ~lung & (behind < -32.0)
    watery = (
        near
        & (darkness > WATER_DARKNESS_HU[0])
        & (darkness < WATER_DARKNESS_HU[1])
        & (grid.smooth > muscle[:, None, None] - 112.0)
    )
    return float(ndimage.binary_opening(watery, iterations=1).sum()) * grid.voxel_ml
