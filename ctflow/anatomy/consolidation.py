"""Consolidation by side: airless lung, about as bright as muscle, surrounded by lung or bulging into it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import Grid, Mask, fill_small_holes
from ctflow.anatomy.pleura import beside_spine
from ctflow.anatomy.thorax import Rays

DENSE_BELOW_MUSCLE_HU = 77.0
"""Airless lung and organs are brighter than muscle less this, the fat between them darker."""

ORGAN_MM = 42.0
"""Heart, liver and spleen hold a cube of this size; a consolidation that touches them bulges out of it."""

MIN_THICKNESS_MM = 10.0
BULGE_THICKNESS_MM = 15.0
MIN_PART_ML = 4.0
MAX_PART_ML = 700.0
NODULE_MM = 23.0
"""Smaller parts (their rim is already off) are nodules."""

MIN_ASIDE_MM = 28.0
MIN_BULGE_ASIDE_MM = 52.0
"""Hila and great vessels bulge out of the mediastinum nearer to the midline."""

MIN_BETWEEN_LUNG = 0.15
"""Share of a part's voxels with lung above and below them: none of liver, spleen and stomach."""

SHELL_VOXELS = 2
MIN_AIRY, MIN_BULGE_AIRY, MOST_AIRY = 0.35, 0.4, 0.5
"""Share of air in the shell two voxels off a part: high for lung's own, low for a corner of heart or hilum.
With the last, lung above and below is not asked for: a consolidation may fill the lung to its edge."""

MIN_AIRY_BENEATH = 0.25
"""Instead, this share of its columns must end in air: those of liver and stomach end in themselves."""

AIRY_HU = -350.0
BRONCHUS_MM2 = 160.0
"""A bronchus, cut across, is at most this large."""


def find_consolidation(
    grid: Grid,
    lung: Mask,
    fluid: Mask,
    rays: Rays,
    spine: NDArray[np.float64],
    muscle: NDArray[np.float32],
) -> dict[str, Mask]:
    """Dense lung of either side.

    Args:
        grid: Working grid.
        lung: Aerated lung of both sides.
        fluid: Pleural fluid of both sides.
        rays: Distances to the wall by voxel.
        spine: ``[S, 2]`` row and column of the spine.
        muscle: HU of muscle per slice.

    Returns:
        Masks of ``left`` and ``right``; air in the bronchi of a consolidation is part of it.
    """
    aside, _ = beside_spine(grid, spine)
    between = between_lung(lung)
    inside = (rays.radius < rays.wall - 1.0) & ~fluid
    dense = inside & ~lung & (grid.smooth > muscle[:, None, None] - DENSE_BELOW_MUSCLE_HU)
    dense = open_box(grid, fill_small_holes(grid, dense, BRONCHUS_MM2) & inside, MIN_THICKNESS_MM)
    bulge = open_box(grid, dense & ~open_box(grid, dense, ORGAN_MM), BULGE_THICKNESS_MM)
    found = _parts(grid, dense, between, aside, MIN_ASIDE_MM, MIN_AIRY)
    found |= _parts(grid, bulge, between, aside, MIN_BULGE_ASIDE_MM, MIN_BULGE_AIRY)
    if not found.any():
        return {"left": found, "right": found}
    rim = ndimage.binary_dilation(found, iterations=2) & inside & (grid.smooth > AIRY_HU)  # opening took it
    filled = fill_small_holes(grid, ndimage.binary_closing(found | rim), BRONCHUS_MM2) & inside
    return {"left": filled & (aside < 0), "right": filled & (aside >= 0)}


def open_box(grid: Grid, mask: Mask, mm: float) -> Mask:
    """Morphological opening by a box of ``mm``, separable and therefore fast."""
    size = tuple(max(2, round(mm / s)) for s in grid.spacing)
    shrunk = ndimage.minimum_filter(mask.view(np.uint8), size, mode="constant")
    # An even box is not centred: shift the dilation the other way.
    origin = tuple(-1 if n % 2 == 0 else 0 for n in size)
    return ndimage.maximum_filter(shrunk, size, mode="constant", origin=origin).astype(bool)


def _parts(
    grid: Grid, dense: Mask, between: Mask, aside: NDArray[np.float32], min_aside_mm: float, min_airy: float
) -> Mask:
    """The connected parts that lie beside the mediastinum and mostly among aerated lung."""
    labels, count = ndimage.label(dense)
    keep = np.zeros(count + 1, dtype=bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        volume = (labels[box] == label).sum() * grid.voxel_ml
        extent = max((b.stop - b.start) * s for b, s in zip(box, grid.spacing, strict=True))
        if extent < NODULE_MM or not MIN_PART_ML <= volume <= MAX_PART_ML:
            continue
        room = SHELL_VOXELS + 2
        wide = tuple(slice(max(0, b.start - room), b.stop + room) for b in box)
        part = labels[wide] == label
        slices, _, columns = np.nonzero(part)
        distance = abs(float(aside[slices + wide[0].start, 0, columns + wide[2].start].mean()))
        near = ndimage.binary_dilation(part, iterations=SHELL_VOXELS)
        shell = ndimage.binary_dilation(near) & ~near
        airy = float((grid.smooth[wide][shell] < AIRY_HU).mean())
        own = between[wide][part].mean() >= MIN_BETWEEN_LUNG or (
            airy >= MOST_AIRY and _airy_beneath(grid.smooth[wide], part) >= MIN_AIRY_BENEATH
        )
        keep[label] = distance >= min_aside_mm and airy >= min_airy and own
    return keep[labels]


def _airy_beneath(hu: NDArray[np.float32], part: Mask) -> float:
    """Share of a part's columns that have air a little below their lowest voxel."""
    rows, columns = np.nonzero(part.any(axis=0))
    below = part.argmax(axis=0)[rows, columns] - SHELL_VOXELS - 1
    airy = (below >= 0) & (hu[np.maximum(below, 0), rows, columns] < AIRY_HU)
    return float(airy.mean())


def between_lung(lung: Mask) -> Mask:
    """Voxels with aerated lung somewhere above and somewhere below them."""
    slices = np.arange(len(lung))[:, None, None]
    lowest = np.where(lung.any(axis=0), lung.argmax(axis=0), len(lung))
    highest = len(lung) - 1 - lung[::-1].argmax(axis=0)
    return (slices > lowest) & (slices < highest)
