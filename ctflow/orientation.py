"""Does the anatomy lie as the axes say? Spine behind, lungs narrow at the top, heart left, liver right.

A look at the voxels themselves, whatever a header or a program says of them: volumes that were turned on the
way look like good CTs and score far below their worth. Sizes or spacing in another order show too: neighbours
do not belong together, or a chest has impossible proportions. Measured on means over about 5 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

COARSE_MM = 5.0
AIR_HU, BONE_HU = -500.0, 180.0
LIVER_HU, HEART_HU = (30.0, 200.0), -30.0
MIN_LUNG_ML, MIN_POCKET_ML, MIN_HEIGHT_MM = 500.0, 20.0, 150.0
"""With less lung, or fewer millimetres of it, there is no result."""
EMPTY = 0.01
"""Most tissue in a plane of a margin, as a share."""
MAX_BORDER = 0.5
"""Share of tissue on a face of the volume above which the body goes on beyond it."""
MAX_CUT = 0.35
"""Lung area of an end slice over the largest slice's, above which the lungs go on beyond it."""
VALLEY = 0.4
"""Least depth of the mediastinum in the profile of lung along an axis, as a share of the lower peak."""
SPINE_SHARE, SPINE_BEHIND = 0.7, 0.5
"""Least share of slices with bone at one depth of the midline; least surplus of it on one side."""
NARROW = -0.05
"""Width of the lungs' lowest fifth less the highest fifth's, over their sum; 0.09 to 0.38 in 27 chests."""
LEFT = -0.1
"""Liver to the right and heart to the left, as a score; 0.17 to 1.5 in 27 chests."""
WIDE, HIGH, DEEP = (0.9, 2.3), (0.5, 1.8), (0.7, 2.7)
"""Width of the lungs over their depth (1.18 to 1.73 in 43 chests), height over width (0.99 to 1.46) and
over depth (1.36 to 2.20); the least heights count only for lungs that end inside the volume."""
STEPS = 1.5
"""Mean step from slice to slice over that from column to column; 0.3 to 0.9 in 45 volumes."""
_BAND_MM, _SIDE_MM, _BELOW_MM, _HEART_MM = 25.0, 35.0, 30.0, 20.0

Mask = NDArray[np.bool_]
_AXES = ("slices", "rows", "columns")


@dataclass(frozen=True)
class _Chest:
    """Means over about ``COARSE_MM``, the lungs in them, and their millimetres; slices, rows, columns."""

    hu: NDArray[np.float32]
    lung: Mask
    spacing: tuple[float, ...]

    def exchanged(self, order: Sequence[int]) -> _Chest:
        """The same chest with its axes in another order."""
        return _Chest(
            self.hu.transpose(order), self.lung.transpose(order), tuple(self.spacing[axis] for axis in order)
        )

    def extent(self, axis: int) -> tuple[int, int]:
        """First index with lung along an axis, and the one behind the last."""
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(self.lung.any(axis=others))
        return int(found[0]), int(found[-1]) + 1


def orientation_doubt(hu: NDArray[Any], spacing: Sequence[float]) -> str | None:
    """The organs that lie elsewhere than the axes S,P,R say, in words.

    Args:
        hu: HU ``[slices, rows, columns]``; by its axes slice 0 is the lowest, row 0 in front, column 0 left.
        spacing: Its millimetres.

    Returns:
        None where nothing speaks against the axes, and where too little is seen for an opinion: less than
        two lungs, a crop, a few centimetres.
    """
    # Without empty margins: air beyond a slice that cuts the trachea would join lungs and surroundings.
    hu = hu[tuple(_occupied(hu, axis) for axis in range(3))]
    return _anatomy(hu, spacing) or _scrambled(hu, spacing)


def _anatomy(hu: NDArray[Any], spacing: Sequence[float]) -> str | None:
    """What the organs say; None where they say nothing."""
    chest = _coarse(hu, spacing)
    if chest is None:
        return None
    valleys = [_valley(chest, axis) for axis in range(3)]
    across = int(np.argmax(valleys))
    if valleys[across] < VALLEY:
        return None
    if across != 2:
        return f"the two lungs lie beside each other along the {_AXES[across]}, not along the columns"
    spine = _spine(chest)
    if spine is None:
        turned = chest.exchanged((1, 0, 2))
        if _spine(turned) is not None and _bone(turned).share.max() > _bone(chest).share.max():
            return "the spine runs along the rows, not along the slices"
        return _misproportion(chest)
    behind, column = spine
    free_below, free_above = _free_ends(chest)
    # Without apex and base both, up and down are unknown; a free lower end is then taken for the base.
    upside_down = free_below and free_above and _narrowing(chest) < NARROW
    sides = _sides(chest, column, upside_down) if free_below else None
    if misproportion := _misproportion(chest):
        return misproportion
    doubts = {
        "the spine lies in front": behind < 0,
        "the lungs are narrow at the bottom": upside_down,
        "the liver lies on the left, the heart on the right": sides is not None and sides < LEFT,
    }
    return "; ".join(words for words, found in doubts.items() if found) or None


def _coarse(array: NDArray[Any], millimetres: Sequence[float]) -> _Chest | None:
    """The chest on a grid of about ``COARSE_MM``; None where there is too little lung, and for crops."""
    steps = [max(1, round(COARSE_MM / s)) for s in millimetres]
    counts = [n // step for n, step in zip(array.shape, steps, strict=True)]
    if min(counts) < 8:
        return None
    z, y, x = (n * step for n, step in zip(counts, steps, strict=True))
    blocks = array[:z, :y, :x].reshape(counts[0], steps[0], counts[1], steps[1], counts[2], steps[2])
    hu = np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))
    spacing = tuple(float(s) * step for s, step in zip(millimetres, steps, strict=True))
    # Tissue goes on beyond both ends of the slices, and in a crop beyond other sides too.
    faces = [max(float((hu.take(end, axis) > AIR_HU).mean()) for end in (0, -1)) for axis in range(3)]
    if sorted(faces)[1] > MAX_BORDER:
        return None
    voxel_ml = float(np.prod(spacing)) / 1000.0
    labels, count = ndimage.label(hu < AIR_HU)
    inside = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml >= MIN_POCKET_ML
    inside[0] = False
    for first in (0, -1):  # air at an edge of the box is outside the body, wherever its top is
        for second in (0, -1):
            for line in (labels[first, second], labels[first, :, second], labels[:, first, second]):
                inside[line] = False
    chest = _Chest(hu, inside[labels], spacing)
    if float(chest.lung.sum()) * voxel_ml < MIN_LUNG_ML:
        return None
    return chest


def _occupied(hu: NDArray[Any], axis: int) -> slice:
    """The planes from the first to the last that shows tissue, seen at every fourth voxel."""
    others = tuple(a for a in range(3) if a != axis)
    sparse = hu[tuple(slice(None, None, 1 if a == axis else 4) for a in range(3))]
    found = np.flatnonzero((sparse > AIR_HU).mean(axis=others) > EMPTY)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _valley(chest: _Chest, axis: int) -> float:
    """Depth of the deepest valley between two humps of lung along an axis, over the lower hump."""
    others = tuple(a for a in range(3) if a != axis)
    profile = ndimage.uniform_filter1d(chest.lung.sum(axis=others).astype(np.float64), 3, mode="constant")
    before, after = np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1]
    lower = np.minimum(before, after)
    deepest = int(np.argmax(lower - profile))
    return float((lower - profile)[deepest] / max(1.0, lower[deepest]))


class _Bone(NamedTuple):
    """Bone of the midline: the mask over the lungs' slices, its columns, and per row the share of slices."""

    mask: Mask
    columns: NDArray[np.int_]
    share: NDArray[np.float64]


def _bone(chest: _Chest) -> _Bone:
    low, high = chest.extent(0)
    left, right = chest.extent(2)
    columns = np.arange(chest.hu.shape[2])
    band = np.abs(columns - (left + right - 1) / 2) * chest.spacing[2] <= _BAND_MM
    mask = chest.hu[low:high][:, :, band] > BONE_HU
    return _Bone(mask, columns[band], mask.any(axis=2).mean(axis=0))


def _spine(chest: _Chest) -> tuple[float, float] | None:
    """Surplus of bone behind the lungs' middle (-1 … 1), and the spine's column; None where none is found.

    The spine is the bone of the midline that every slice has at one depth; sternum and heart in contrast are
    in some slices only.
    """
    low, high = chest.extent(0)
    if (high - low) * chest.spacing[0] < MIN_HEIGHT_MM:
        return None
    front, back = chest.extent(1)
    bone, columns, share = _bone(chest)
    if float(share.max()) < SPINE_SHARE:
        return None
    weight = share**4
    rows = np.arange(len(share)) - (front + back - 1) / 2
    surplus = float((np.sign(rows) * weight).sum() / weight.sum())
    if abs(surplus) < SPINE_BEHIND:
        return None
    depth = int(np.argmax(weight * (np.sign(rows) == np.sign(surplus))))
    there = bone[:, max(0, depth - 2) : depth + 3].sum(axis=(0, 1)).astype(np.float64)
    return surplus, float(np.average(columns, weights=there))


def _free_ends(chest: _Chest) -> tuple[bool, bool]:
    """Whether the lungs end before the first slice does, and before the last."""
    areas = chest.lung.sum(axis=(1, 2))
    return tuple(bool(areas[end] <= MAX_CUT * areas.max()) for end in (0, -1))  # type: ignore[return-value]


def _misproportion(chest: _Chest) -> str | None:
    """Proportions of the lungs that no chest has, in words: the spacing may belong to other axes."""
    ends = [chest.extent(axis) for axis in range(3)]
    height, depth, width = ((e - s) * mm for (s, e), mm in zip(ends, chest.spacing, strict=True))
    whole = all(_free_ends(chest))
    for ratio, (least, most), words in (
        (width / depth, WIDE, "as wide as deep"),
        (height / width, (HIGH[0] if whole else 0.0, HIGH[1]), "as high as wide"),
        (height / depth, (DEEP[0] if whole else 0.0, DEEP[1]), "as high as deep"),
    ):
        if not least <= ratio <= most:
            return f"the lungs are {ratio:.2g} times {words}: the spacing may be that of other axes"
    return None


def _scrambled(hu: NDArray[Any], millimetres: Sequence[float]) -> str | None:
    """Slices that do not go on from each other, in words: voxels cut into slices of other sizes, for example.

    Steps are taken over about ``COARSE_MM`` between single voxels: means would hide what changes faster.
    """
    strides = [max(1, round(COARSE_MM / s)) for s in millimetres]
    coarse = hu[:: strides[0], :: strides[1], :: strides[2]].clip(-1000, 1000).astype(np.float32)
    if min(coarse.shape) < 2:
        return None
    slices, columns = (
        float(np.abs(np.diff(coarse, axis=axis)).mean(dtype=np.float64)) / (strides[axis] * millimetres[axis])
        for axis in (0, 2)
    )
    if slices <= STEPS * columns:
        return None
    times = slices / max(columns, 1e-6)
    return (
        f"voxels differ {times:.1f} times as much from slice to slice as from column to column: the "
        "sizes may be in another order"
    )


def _narrowing(chest: _Chest) -> float:
    """Mean distance of lung from the midline in the lowest fifth less that in the highest, over their sum."""
    low, high = chest.extent(0)
    left, right = chest.extent(2)
    distance = np.abs(np.arange(chest.hu.shape[2]) - (left + right - 1) / 2)
    fifth = max(1, (high - low) // 5)
    widths = []
    for part in (chest.lung[low : low + fifth], chest.lung[high - fifth : high]):
        profile = part.sum(axis=(0, 1))
        widths.append(float((profile * distance).sum() / max(1, profile.sum())))
    return (widths[0] - widths[1]) / max(1e-6, sum(widths))


def _sides(chest: _Chest, spine: float, upside_down: bool) -> float:
    """How much liver lies to the right and how far the heart to the left of the spine.

    The share of solid tissue below the domes that lies on the right, counted twice, and the offset of what is
    between the lungs above them, in units of ``_HEART_MM``.
    """
    hu, lung = (a[::-1] if upside_down else a for a in (chest.hu, chest.lung))
    present = np.flatnonzero(lung.any(axis=(1, 2)))
    low, high = int(present[0]), int(present[-1]) + 1
    offset = (np.arange(hu.shape[2]) - spine) * chest.spacing[2]
    below = slice(max(0, low - round(_BELOW_MM / chest.spacing[0])), low + max(1, round(0.35 * (high - low))))
    left, right = chest.extent(2)
    solid = ((hu[below] > LIVER_HU[0]) & (hu[below] < LIVER_HU[1]))[:, :, left:right].sum(axis=(0, 1))
    far = np.sign(offset) * (np.abs(offset) > _SIDE_MM)
    liver = float((solid * far[left:right]).sum() / max(1.0, (solid * np.abs(far[left:right])).sum()))
    areas = [lung[:, :, side].sum(axis=(1, 2)) for side in (offset < 0, offset > 0)]
    both = np.logical_and(*(area > 0.5 * max(1, area.max()) for area in areas))
    between = (
        np.maximum.accumulate(lung, axis=2) & np.maximum.accumulate(lung[:, :, ::-1], axis=2)[:, :, ::-1]
    )
    middle = (between & (hu > HEART_HU))[both].sum(axis=(0, 1))
    heart = float((middle * offset).sum() / max(1, middle.sum()))
    return 2.0 * liver - heart / _HEART_MM
