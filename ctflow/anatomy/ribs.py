"""Ribs counted where they cross the lateral chest wall."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ctflow.anatomy.grid import Grid, Mask
from ctflow.anatomy.thorax import ANGLES, Polar, sample_rays

RIB_HU = 130.0
MIN_DISTANCE_MM = 14.0


def count_ribs(grid: Grid, polar: Polar, lung: Mask) -> dict[str, int]:
    """Peaks of bone along the slices in the wall beside the lungs, per side.

    The brightest HU within 15 mm outside the wall is taken on rays a quarter turn to the side, followed along
    the slices; every peak that stands out is a rib.
    """
    outside = np.arange(0.0, 15.0, 2.5)
    radii = polar.wall[:, :, None] + outside
    brightest = sample_rays(grid, grid.hu, polar, radii).max(axis=2)
    levels = lung.any(axis=(1, 2))
    counts = {}
    for side, angle in (("right", 0), ("left", ANGLES // 2)):
        rays = [(angle + turn) % ANGLES for turn in range(-3, 4)]
        profiles = ndimage.gaussian_filter1d(brightest[:, rays], 0.7, axis=0)
        counts[side] = int(np.median([_peaks(grid, profile[levels]) for profile in profiles.T]))
    return counts


def _peaks(grid: Grid, profile: np.ndarray) -> int:
    """Local maxima above the bone threshold, at least MIN_DISTANCE_MM apart."""
    size = 2 * max(1, round(MIN_DISTANCE_MM / grid.spacing[0] / 2)) + 1
    return (
        int(((ndimage.maximum_filter1d(profile, size) == profile) & (profile > RIB_HU)).sum())
        if profile.size
        else 0
    )
