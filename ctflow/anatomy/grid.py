"""The working grid: every measurement is taken at about 3 mm, for any sampling of the volume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.errors import CTFlowError
from ctflow.types import AIR_HU, HUVolume

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

TARGET_MM = 2.6
"""Voxels finer than this are averaged in whole-number groups until they are about this large."""

FIELD_MM = (20.0, 1500.0)
"""Sides of a slice that can be measured."""

IN_PLANE_CROSS = np.zeros((3, 3, 3), dtype=bool)
IN_PLANE_CROSS[1] = ndimage.generate_binary_structure(2, 1)
"""Connectivity within a slice only."""

CROSS = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True)
class Grid:
    """A volume at working resolution.

    Attributes:
        hu: Float32 ``[S, R, C]``, clipped to [-1000, 3000].
        spacing: Its millimetres along (slices, rows, columns).
        factors: How many voxels of the measured volume one working voxel averages, per axis.
        origin: Working voxel of the whole volume at which a part begins.
    """

    hu: Array
    spacing: tuple[float, float, float]
    factors: tuple[int, int, int]
    origin: tuple[int, int, int] = (0, 0, 0)

    @cached_property
    def smooth(self) -> Array:
        """HU smoothed by 0.6 voxels: enough against noise, not enough to lose a 3-voxel structure."""
        return ndimage.gaussian_filter(self.hu, 0.6)

    @property
    def voxel_ml(self) -> float:
        """Millilitres of one working voxel."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def pixel_mm(self) -> float:
        """Geometric mean of the in-plane spacing."""
        return float(np.sqrt(self.spacing[1] * self.spacing[2]))

    def sigma(self, mm: float) -> tuple[float, float, float]:
        """A Gaussian's width of ``mm`` along each axis, in voxels."""
        return mm / self.spacing[0], mm / self.spacing[1], mm / self.spacing[2]

    def size(self, mm: float) -> tuple[int, int, int]:
        """The odd number of voxels nearest to ``mm`` along each axis, at least 1."""
        z, y, x = (2 * int(mm / s / 2) + 1 for s in self.spacing)
        return z, y, x

    def to_volume(
        self, voxel: tuple[float, float, float] | NDArray[np.float64]
    ) -> tuple[float, float, float]:
        """A working-grid position as a position in voxels of the measured volume."""
        parts = zip(voxel, self.origin, self.factors, strict=True)
        z, y, x = ((float(v) + o) * f + (f - 1) / 2 for v, o, f in parts)
        return z, y, x

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """The part of the grid inside a box; what is measured in it keeps its place in the volume."""
        origin = tuple(o + part.start for o, part in zip(self.origin, box, strict=True))
        part = Grid(self.hu[box], self.spacing, self.factors, origin)  # type: ignore[arg-type]
        part.__dict__["smooth"] = self.smooth[box]  # the same values, not smoothed again with new edges
        return part

    def disc(self, mm: float) -> Mask:
        """A filled in-plane disc ``[1, n, n]`` of radius ``mm``."""
        n = max(1, int(mm / self.pixel_mm + 0.5))
        rows, columns = np.ogrid[-n : n + 1, -n : n + 1]
        return np.asarray((rows**2 + columns**2 <= (mm / self.pixel_mm + 0.3) ** 2)[None])


def working_grid(volume: HUVolume) -> Grid:
    """Average ``volume`` in whole-number groups of voxels to about ``TARGET_MM``.

    Coarser axes stay as they are. A remainder at the far end of an axis is filled by repeating the last
    voxel, so that positions map back exactly.

    Raises:
        CTFlowError: A field of view no body part has: its spacing is wrong, and nothing would be found.
    """
    extent = [n * s for n, s in zip(volume.hu.shape[1:], volume.spacing[1:], strict=True)]
    if not FIELD_MM[0] <= min(extent) <= max(extent) <= FIELD_MM[1]:
        raise CTFlowError(
            f"slices of {extent[0]:.4g} × {extent[1]:.4g} mm (spacing {volume.spacing})",
            f"between {FIELD_MM[0]:.0f} and {FIELD_MM[1]:.0f} mm",
            "give the volume its own spacing in millimetres, along slices, rows and columns",
        )
    hu = np.nan_to_num(volume.hu, nan=AIR_HU, posinf=3000.0, neginf=AIR_HU).astype(np.float32, copy=False)
    hu = np.clip(hu, AIR_HU, 3000.0)
    factors = tuple(max(1, round(TARGET_MM / s)) for s in volume.spacing)
    if factors != (1, 1, 1):
        pad = [(0, -size % f) for size, f in zip(hu.shape, factors, strict=True)]
        hu = np.pad(hu, pad, mode="edge")
        for axis, f in enumerate(factors):
            shape = (*hu.shape[:axis], hu.shape[axis] // f, f, *hu.shape[axis + 1 :])
            hu = hu.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    spacing = tuple(s * f for s, f in zip(volume.spacing, factors, strict=True))
    return Grid(hu=hu, spacing=spacing, factors=factors)  # type: ignore[arg-type]


def keep_components(mask: Mask, min_voxels: float, structure: NDArray[np.bool_] = CROSS) -> Mask:
    """The connected parts of ``mask`` with at least ``min_voxels`` voxels."""
    labels, count = ndimage.label(mask, structure)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_voxels
    keep[0] = False
    return keep[labels]


def largest_component(mask: Mask, structure: NDArray[np.bool_] = CROSS) -> Mask:
    """The largest connected part of ``mask``; empty where ``mask`` is."""
    labels, count = ndimage.label(mask, structure)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def fill_slices(mask: Mask) -> Mask:
    """``mask`` with the holes of every slice filled (background not linked to the slice's border)."""
    labels, _ = ndimage.label(~mask, IN_PLANE_CROSS)
    edge = np.concatenate(
        [labels[:, 0].ravel(), labels[:, -1].ravel(), labels[:, :, 0].ravel(), labels[:, :, -1].ravel()]
    )
    outside = np.zeros(int(labels.max()) + 1, dtype=bool)
    outside[edge] = True
    outside[0] = False
    return ~outside[labels]


def fill_small_holes(grid: Grid, mask: Mask, max_mm2: float) -> Mask:
    """``mask`` with its holes of at most ``max_mm2`` filled, in slices along every axis.

    A tube through the mask is a hole in the slices that it crosses.
    """
    filled = mask.copy()
    for axis in range(3):
        labels, _ = ndimage.label(~np.moveaxis(mask, axis, 0), IN_PLANE_CROSS)
        small = np.bincount(labels.ravel()) * grid.voxel_ml * 1000.0 / grid.spacing[axis] < max_mm2
        small[0] = False
        filled |= np.moveaxis(small[labels], 0, axis)
    return filled
