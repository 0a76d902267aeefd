"""Into the patient's axes S,P,R, then onto the grid the models work on; memory for one slice at a time.

Sampling is linear; where the step grows beyond twice the scan's own, the triangle widens with it, so that
thick slices and small images are means, not picks. Slices keep the position of the scan's first slice;
in-plane, the edges of the field of view stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.types import AIR_HU
from data_prep.ct_rate.hounsfield import Rescale
from data_prep.ct_rate.reasons import ScanRefused

AXES = ("S", "P", "R")
OBLIQUE_DEGREES = 0.5
_SAME = 1e-3
"""Relative difference below which two spacings are one."""
SIDE_MM, SLICE_MM, PIXEL_MM, MIN_COVERAGE_MM = (60.0, 1200.0), (0.2, 15.0), (0.1, 10.0), 15.0

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Grid:
    """The grid of prepared slices.

    Attributes:
        resolution: Rows and columns.
        z_spacing: Millimetres between slices; None keeps.
        field_of_view: Side of a slice in mm; None takes the whole.
        max_slices: Crop around the middle; None keeps all.
    """

    resolution: int
    z_spacing: float | None
    field_of_view: float | None
    max_slices: int | None


def obliqueness(affine: NDArray[np.float64]) -> float:
    """Largest angle in degrees between a voxel axis and the patient axis nearest to it."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0).min(), 0.0, 1.0))))


def to_patient_axes(array: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], Spacing, str]:
    """A view of the array with axes S,P,R (nearest patient axes).

    Args:
        array: ``[i, j, k]``.
        affine: RAS ``[4, 4]`` in mm.

    Returns:
        The view ``[slices, rows, columns]``, its spacing in mm, and the axes it had, e.g. ``LPS``.
    """
    found = nib.orientations.io_orientation(affine)
    transform = nib.orientations.ornt_transform(found, nib.orientations.axcodes2ornt(AXES))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.argsort(transform[:, 0])
    view = nib.orientations.apply_orientation(array, transform)
    z, y, x = (float(spacing[axis]) for axis in order)
    return view, (z, y, x), "".join(nib.orientations.ornt2axcodes(found))


def straighten(
    array: NDArray[Any], affine: NDArray[np.float64], rescale: Rescale
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Resample an oblique volume onto a grid along the patient's axes that holds all of it; outside is air.

    Args:
        array: Stored values ``[i, j, k]``.
        affine: RAS ``[4, 4]`` in mm, oblique.
        rescale: Makes the values HU before they are mixed.

    Returns:
        Float32 HU ``[x, y, z]`` and its affine (diagonal but for the origin).
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in array.shape], indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = world.min(axis=1), world.max(axis=1)
    axis_of = nib.orientations.io_orientation(affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axis_of] = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.maximum(np.floor((high - low) / spacing + 1e-6).astype(int) + 1, 1)
    straight = np.eye(4)
    straight[:3, :3] = np.diag(spacing)
    straight[:3, 3] = low
    to_index = np.linalg.inv(affine) @ straight
    hu = ndimage.affine_transform(
        rescale(array),
        to_index[:3, :3],
        to_index[:3, 3],
        tuple(shape),
        order=1,
        cval=AIR_HU,
        output=np.float32,
    )
    return hu, straight


def check_spacing(spacing: Spacing, shape: tuple[int, ...]) -> str | None:
    """Why no scanner has such a spacing; None if one can.

    Args:
        spacing: Millimetres along (slices, rows, columns).
        shape: Slices, rows, columns.
    """
    z, *plane = spacing
    sides = [n * s for n, s in zip(shape[1:], plane, strict=True)]
    text = f"spacing {z:g} x {plane[0]:g} x {plane[1]:g} mm, field of view {sides[0]:.0f} x {sides[1]:.0f} mm"
    if not SLICE_MM[0] <= z <= SLICE_MM[1]:
        return f"{text}: slices {SLICE_MM[0]} to {SLICE_MM[1]} mm apart expected"
    if not PIXEL_MM[0] <= min(plane) <= max(plane) <= PIXEL_MM[1]:
        return f"{text}: pixels of {PIXEL_MM[0]} to {PIXEL_MM[1]} mm expected"
    if not SIDE_MM[0] <= min(sides) <= max(sides) <= SIDE_MM[1]:
        return f"{text}: a field of view of {SIDE_MM[0]:.0f} to {SIDE_MM[1]:.0f} mm expected"
    if shape[0] * z < MIN_COVERAGE_MM:
        return f"{text}: {shape[0] * z:.0f} mm of slices, at least {MIN_COVERAGE_MM:.0f} expected"
    return None


def trim_blank(view: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Cut constant slices off both ends; one between others is refused.

    Args:
        view: ``[slices, rows, columns]``.

    Returns:
        The rest and how many slices were cut off.

    Raises:
        ScanRefused: ``blank_slices``, with their numbers.
    """
    blank = np.array([_is_blank(plane) for plane in view])
    kept = np.flatnonzero(~blank)
    if not kept.size:
        raise ScanRefused("constant", "every slice is constant")
    inside = np.flatnonzero(blank[kept[0] : kept[-1]]) + kept[0]
    if inside.size:
        raise ScanRefused(
            "blank_slices",
            f"{inside.size} constant slices between others, from slice {inside[0]} (from below)",
        )
    return view[kept[0] : kept[-1] + 1], int(blank.sum())


def _is_blank(plane: NDArray[Any]) -> bool:
    """Whether a slice holds one value only, or no number at all."""
    first = plane.flat[0]
    return bool((plane == first).all()) if np.isfinite(first) else not np.isfinite(plane).any()


def resample(
    view: NDArray[Any], spacing: Spacing, rescale: Rescale, grid: Grid
) -> tuple[NDArray[np.int16], Spacing]:
    """Stored values along the patient's axes to int16 HU on the grid.

    Args:
        view: Stored values ``[slices, rows, columns]``.
        spacing: Its millimetres.
        rescale: Makes them HU, before they are mixed.
        grid: What comes out.

    Returns:
        Int16 HU ``[slices, resolution, resolution]`` and its spacing.
    """
    dz, dy, dx = spacing
    step = dz if grid.z_spacing is None or abs(grid.z_spacing / dz - 1) < _SAME else grid.z_spacing
    count = int(np.floor((view.shape[0] - 1) * dz / step + 1e-6)) + 1
    first = max(0, (count - grid.max_slices) // 2) if grid.max_slices else 0
    count = min(count, grid.max_slices or count)
    rows, columns, pixel = _plane_weights(view.shape[1:], (dy, dx), grid)
    out = np.empty((count, grid.resolution, grid.resolution), np.int16)
    cache: dict[int, NDArray[np.float32]] = {}
    for k in range(count):
        taps = _taps((first + k) * step / dz, step / dz, view.shape[0])
        cache = {i: cache[i] if i in cache else _plane(view[i], rescale, rows, columns) for i, _ in taps}
        plane = sum(np.float32(weight) * cache[i] for i, weight in taps)
        out[k] = np.clip(np.rint(plane), -32768, 32767)
    return out, (float(step), pixel, pixel)


def field_in_image(
    shape: tuple[int, ...], spacing: tuple[float, float], pixel: float, resolution: int
) -> tuple[slice, slice]:
    """Rows and columns of a prepared slice that the scan fills; the rest is padding.

    Args:
        shape: Rows and columns of the scan.
        spacing: Their millimetres.
        pixel: Pixel size of the prepared slice in mm.
        resolution: Its rows and columns.
    """
    ranges = []
    for n, s in zip(shape, spacing, strict=True):
        lost = max(0.0, (resolution - n * s / pixel) / 2)
        ranges.append(slice(int(np.ceil(lost - 1e-3)), max(1, int(np.floor(resolution - lost + 1e-3)))))
    return ranges[0], ranges[1]


def _plane(
    stored: NDArray[Any],
    rescale: Rescale,
    rows: NDArray[np.float32] | None,
    columns: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """One slice in HU on the grid's rows and columns; air is the zero of the sums, so the rest is air."""
    hu = rescale(stored)
    if rows is None and columns is None:
        return hu
    hu -= np.float32(AIR_HU)
    hu = hu if rows is None else rows @ hu
    hu = hu if columns is None else hu @ columns.T
    return hu + np.float32(AIR_HU)


def _plane_weights(
    shape: tuple[int, ...], spacing: tuple[float, float], grid: Grid
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, float]:
    """Matrices ``[resolution, n]`` for rows and columns (None: nothing to do), and the pixel size in mm."""
    sides = [n * s for n, s in zip(shape, spacing, strict=True)]
    side = grid.field_of_view or max(sides)
    pixel = side / grid.resolution
    weights: list[NDArray[np.float32] | None] = []
    for n, s in zip(shape, spacing, strict=True):
        if n == grid.resolution and abs(pixel / s - 1) < _SAME:
            weights.append(None)
            continue
        matrix = np.zeros((grid.resolution, n), np.float32)
        for k in range(grid.resolution):
            centre = ((k + 0.5) * pixel - 0.5 * side + 0.5 * n * s) / s - 0.5
            if -0.5 <= centre <= n - 0.5:  # beyond the scan: air
                for i, weight in _taps(centre, pixel / s, n):
                    matrix[k, i] = weight
        weights.append(matrix)
    return weights[0], weights[1], float(pixel)


def _taps(centre: float, scale: float, n: int) -> list[tuple[int, float]]:
    """Indices and weights of a triangle around ``centre`` (in voxels), of half-width 1 or half the step."""
    width = max(1.0, scale / 2)
    nearest = round(centre)
    if width == 1.0 and abs(centre - nearest) < 1e-6:
        return [(min(max(nearest, 0), n - 1), 1.0)]
    low, high = max(0, int(np.ceil(centre - width))), min(n - 1, int(np.floor(centre + width)))
    pairs = [(i, 1.0 - abs(i - centre) / width) for i in range(low, high + 1)]
    pairs = [(i, w) for i, w in pairs if w > 1e-9]
    total = sum(w for _, w in pairs)
    return [(i, w / total) for i, w in pairs]
