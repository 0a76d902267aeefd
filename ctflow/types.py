"""Words shared by every floor: the block length, air, and a volume with its spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_LENGTH = 16
"""Slices the FMvT generates at a time."""

AIR_HU = -1000.0
"""Hounsfield units of air; the start block is an all-air slice, repeated."""


@dataclass(frozen=True)
class HUVolume:
    """A CT in Hounsfield units, oriented S,P,R, with its spacing.

    Slice 0 is the most inferior one, rows run anterior to posterior, columns run patient left to right
    (nibabel axcodes ``('S', 'P', 'R')``).

    Attributes:
        hu: Float32 array ``[slices, rows, columns]`` in HU.
        spacing: Millimetres between voxel centres along (slices, rows, columns).
    """

    hu: NDArray[np.float32]
    spacing: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.hu.ndim != 3:
            raise ValueError(f"a volume has 3 axes [slices, rows, columns], found shape {self.hu.shape}")
        if len(self.spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in self.spacing):
            raise ValueError(f"spacing must be three positive millimetres, found {self.spacing}")
