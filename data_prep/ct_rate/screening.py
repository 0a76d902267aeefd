"""Is it a whole chest? Lung, its two sides and its extent, measured coarsely on the prepared volume."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.ct_rate.geometry import Spacing

LUNG_HU = -500.0
OUTSIDE_HU = -930.0
"""Mean below which air at the border of a crop lies outside the body."""
GAS_HU = -975.0
"""Median at or below which a pocket of air is gas (bowel, stomach, a pneumothorax), no lung."""
COARSE_MM = 3.0
MIN_LUNG_ML, MIN_LUNG_SHARE = 250.0, 0.03
MIN_SIDE_ML, MIN_SIDE_RATIO = 100.0, 0.15
MIN_COVERAGE_MM = 160.0
MAX_CUT = 0.35
"""Lung area of an end slice over the largest slice's, above which the lungs go on beyond it."""
MAX_BORDER = 0.5
"""Share of tissue on one side of the image, above which the body goes on beyond it."""
VALLEY = 0.4
"""Least depth of the mediastinum in the profile of lung over columns, as a share of the lower hump."""
MIN_AIR_POCKET_ML = 5.0


def screen(
    hu: NDArray[np.int16], spacing: Spacing, coverage_mm: float
) -> tuple[dict[str, Any], list[list[str]]]:
    """Measure lung and coverage.

    Args:
        hu: Int16 HU ``[slices, rows, columns]``, S,P,R, without columns and rows of padding.
        spacing: Its millimetres.
        coverage_mm: Extent of the scan before any crop.

    Returns:
        Measurements by name, and ``[code, detail]`` flags.
    """
    steps = [max(1, round(COARSE_MM / s)) for s in spacing]
    coarse = hu[:: steps[0], :: steps[1], :: steps[2]]
    voxel_ml = float(np.prod([n * s for n, s in zip(steps, spacing, strict=True)])) / 1000.0
    border = _border_tissue(coarse)
    cropped = [f"{name} {value:.0%}" for name, value in border.items() if value > MAX_BORDER]
    lung, body = _lung_and_body(coarse, voxel_ml, bool(cropped))
    total = float(lung.sum()) * voxel_ml
    sides = _two_sides(lung.sum((0, 1)))
    left, right = (n * voxel_ml for n in sides) if sides else (None, None)
    areas = lung.sum((1, 2)) / max(1, lung.sum((1, 2)).max())
    share = lung.sum() / max(1, body.sum())
    measured = {
        "lung_ml": round(total),
        "lung_left_ml": None if left is None else round(left),
        "lung_right_ml": None if right is None else round(right),
        "coverage_mm": round(coverage_mm, 1),
        "lung_cut_below": round(float(areas[0]), 3),
        "lung_cut_above": round(float(areas[-1]), 3),
        "border_tissue": {name: round(value, 3) for name, value in border.items()},
    }
    flags = []
    if total < MIN_LUNG_ML or share < MIN_LUNG_SHARE:
        flags.append(["not_chest", f"{total:.0f} ml of lung, {share:.1%} of the body"])
    elif left is None or right is None:
        flags.append(["one_lung", f"{total:.0f} ml of lung on one side"])
    elif min(left, right) < max(MIN_SIDE_ML, MIN_SIDE_RATIO * max(left, right)):
        flags.append(["one_lung", f"left {left:.0f} ml, right {right:.0f} ml"])
    cut = [name for name, area in (("below", areas[0]), ("above", areas[-1])) if area > MAX_CUT]
    if coverage_mm < MIN_COVERAGE_MM or cut:
        ends = f", lungs cut {' and '.join(cut)}" if cut else ""
        flags.append(["short_coverage", f"{coverage_mm:.0f} mm{ends}"])
    if cropped:
        flags.append(["cropped_field", f"tissue on the image border: {', '.join(cropped)}"])
    return measured, flags


def _two_sides(profile: NDArray[np.int64]) -> tuple[float, float] | None:
    """Lung voxels left and right of the mediastinum, from the lung in each column (patient left first).

    The mediastinum is a valley between two humps; None where there is one hump only, and so one lung.
    """
    smooth = ndimage.uniform_filter1d(profile.astype(np.float64), 3, mode="constant")
    before, after = np.maximum.accumulate(smooth), np.maximum.accumulate(smooth[::-1])[::-1]
    lower = np.minimum(before, after)
    valley = int(np.argmax(lower - smooth))
    if lower[valley] - smooth[valley] <= VALLEY * lower[valley]:
        return None
    left = float(profile[:valley].sum()) + 0.5 * float(profile[valley])
    return left, float(profile.sum()) - left


def _lung_and_body(
    coarse: NDArray[np.int16], voxel_ml: float, cropped: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Air inside the body, small pockets left out, and the body with its lungs; each ``[s, r, c]``.

    Air that reaches the border of its slice is outside, but in a crop only if it is thinner than lung.
    """
    air = coarse < LUNG_HU
    inside = np.zeros_like(air)
    body = np.zeros_like(air)
    for k, plane in enumerate(air):
        labels, count = ndimage.label(plane)
        edge = np.zeros(count + 1, bool)
        for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            edge[side] = True
        edge[0] = False
        if cropped:
            touching = np.flatnonzero(edge)
            edge[touching] = ndimage.mean(coarse[k], labels, touching) < OUTSIDE_HU
        outside = edge[labels]
        inside[k] = plane & ~outside
        body[k] = ~outside
    labels, count = ndimage.label(inside)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml
    sizes[0] = 0.0
    lung = sizes >= MIN_AIR_POCKET_ML
    lung[lung] = ndimage.median(coarse, labels, np.flatnonzero(lung)) > GAS_HU
    return lung[labels], body


def _border_tissue(coarse: NDArray[np.int16]) -> dict[str, float]:
    """Share of tissue on each of the four sides of the image, over all slices."""
    sides = {
        "front": coarse[:, 0],
        "back": coarse[:, -1],
        "left": coarse[:, :, 0],
        "right": coarse[:, :, -1],
    }
    return {name: float((side > LUNG_HU).mean()) for name, side in sides.items()}
