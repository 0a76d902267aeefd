"""The output of a reader: stored values, their place in the patient, and their way to HU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.ct_rate.reasons import ScanRefused

MIN_SLICES = 8
MIN_SIDE = 32
SAME_PLACE_MM = 0.02
"""Most millimetres between two slices at one place: jitter, far below what a scanner can step."""


@dataclass
class RawScan:
    """One volume as it lies in its file.

    Attributes:
        stored: Values ``[i, j, k]`` in the file's own order and type.
        affine: Voxel index to millimetres, RAS ``[4, 4]``.
        slope: Slope in the header; 1 where it has none or the reader has applied it.
        intercept: Intercept in the header; 0 where it has none or the reader has applied it.
        format: Name of the format.
        patient_id: Patient in the header; empty where there is none.
        facts: What else the header tells, for the record (JSON values).
        flags: Code and detail of what the header makes doubtful.
        unplaced: Why the header tells no orientation; empty where it tells one.
    """

    stored: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0
    format: str = ""
    patient_id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    flags: list[list[str]] = field(default_factory=list)
    unplaced: str = ""

    def __post_init__(self) -> None:
        if not self.unplaced and _is_blank(self.affine):
            self.unplaced = "the header is blank (an identity: voxels of 1 mm at the origin)"

    @property
    def oriented(self) -> bool:
        """Whether the affine tells where the patient's axes lie."""
        return not self.unplaced


def _is_blank(affine: NDArray[np.float64]) -> bool:
    """Affines that libraries write for an array without geometry: an identity, in RAS or in LPS."""
    return any(np.allclose(affine, np.diag([sign, sign, 1.0, 1.0]), atol=1e-6) for sign in (1.0, -1.0))


def check_shape(shape: tuple[int, ...], voxel_bytes: int, memory_bytes: float) -> tuple[int, ...]:
    """The three sizes of a volume, from a header, before anything is allocated.

    Args:
        shape: Sizes in the header; trailing ones are dropped.
        voxel_bytes: What reading holds per voxel: bytes of a stored value, twice where a library copies.
        memory_bytes: What the worker may use.

    Raises:
        ScanRefused: Not 3D, too small or too large.
    """
    sizes = list(shape)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise ScanRefused(
            "not_3d", f"{len(sizes)}D of shape {' x '.join(map(str, shape))}, not one 3D volume"
        )
    if min(sizes) < 1:
        raise ScanRefused("empty", f"shape {' x '.join(map(str, shape))}")
    if sum(size >= MIN_SIDE for size in sizes) < 2:
        raise ScanRefused(
            "too_small", f"shape {' x '.join(map(str, shape))}; rows and columns: {MIN_SIDE} or more"
        )
    if min(sizes) < MIN_SLICES:
        raise ScanRefused(
            "too_few_slices", f"shape {' x '.join(map(str, shape))}; slices: {MIN_SLICES} or more"
        )
    check_memory(tuple(sizes), voxel_bytes, memory_bytes)
    return tuple(sizes)


def check_memory(shape: tuple[int, ...], voxel_bytes: int, memory_bytes: float) -> None:
    """Refuse what does not fit before it is allocated.

    Raises:
        ScanRefused: ``too_large``, with the value of ``memory_gb`` that would do.
    """
    need = float(np.prod([float(size) for size in shape])) * voxel_bytes
    if need > memory_bytes:
        raise ScanRefused(
            "too_large",
            f"shape {' x '.join(map(str, shape))} needs {need / 2**30:.1f} GiB, {memory_bytes / 2**30:.1f} "
            f"are left of memory_gb: memory_gb={np.ceil(need / 2**30) + 2:.0f} would do",
        )


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine that is not a rigid placement with positive spacing.

    Raises:
        ScanRefused: Not finite, singular, or sheared by more than half a degree.
    """
    if not np.isfinite(affine).all():
        raise ScanRefused("no_geometry", "the affine holds values that are not numbers")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-6 or spacing.max() > 1e6:
        raise ScanRefused("no_geometry", f"voxel sizes {np.round(spacing, 6).tolist()} mm")
    axes = affine[:3, :3] / spacing
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    shear = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
    if shear > 0.5:
        raise ScanRefused("gantry_tilt", f"the voxel grid is sheared by {shear:.1f} degrees (gantry tilt)")
