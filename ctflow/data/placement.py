"""Where a volume's voxels lie in the patient, and in which order a file keeps them.

An affine here maps voxel indices to millimetres of the RAS frame, as in NIfTI; DICOM and ITK take the LPS
frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import ScanError
from ctflow.formats import Orientation, VoxelType
from ctflow.types import HUVolume

Affine = NDArray[np.float64]


def centred(volume: HUVolume) -> Affine:
    """Placement of a volume along the patient's axes whose centre is the origin.

    Returns:
        Affine ``[4, 4]`` of the indices (slice, row, column).
    """
    affine = np.eye(4)
    axes = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]).T  # S, P, R in RAS millimetres
    affine[:3, :3] = axes * volume.spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(volume.hu.shape) - 1) / 2.0)
    return affine


def laid_out(
    volume: HUVolume, orientation: Orientation, placement: Affine | None = None
) -> tuple[NDArray[np.float32], Affine]:
    """A volume as files keep it: first index fastest.

    Args:
        volume: HU, S,P,R.
        orientation: ``RAS``: indices grow to the right, to the front, upwards; ``LPS``: to the left, to the
            back, upwards.
        placement: Affine of the volume's own indices; None: ``centred``.

    Returns:
        A view ``[i, j, k]`` and its affine.

    Raises:
        ScanError: The volume has values that are not finite.
    """
    if not np.isfinite(volume.hu).all():
        raise ScanError("the volume has values that are not finite", "HU in every voxel")
    placed = centred(volume) if placement is None else placement
    affine = placed[:, [2, 1, 0, 3]].copy()
    array = volume.hu.transpose(2, 1, 0)  # [S, P, R] → [R, P, S]
    turned = {"RAS": 1, "LPS": 0}[orientation]
    affine[:3, 3] += affine[:3, turned] * (array.shape[turned] - 1)
    affine[:3, turned] *= -1.0
    affine += 0.0  # no minus before zero
    return np.flip(array, turned), affine


def voxels(hu: NDArray[np.float32], dtype: VoxelType) -> NDArray[np.int16] | NDArray[np.float32]:
    """HU as a file stores them: int16 is rounded, and clipped to its range; float32 stays as it is."""
    if dtype == "float32":
        return hu.astype(np.float32, copy=False)
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)
