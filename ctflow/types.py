"""Words shared by every floor: the block length, air, a volume with its spacing, and the scan it is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_LENGTH = 16
"""Slices the FMvT generates at a time."""

AIR_HU = -1000.0
"""Hounsfield units of air; the start block is an all-air slice, repeated."""

SOFT, SHARP = "soft", "sharp"
"""Kinds of reconstruction kernels."""


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


@dataclass(frozen=True)
class Acquisition:
    """Which scan a volume is a reconstruction of, and how it was reconstructed.

    Attributes:
        scan: The scan, unique in the data set (CT-RATE: ``train_1_a``); empty where the volume is all that is
            known of it, and so a scan of its own.
        reconstruction: Its name among the scan's (CT-RATE: ``1``); the order means nothing.
        kernel: The scanner's ConvolutionKernel; empty where not given.
        sharpness: ``soft`` or ``sharp``; empty where the kernel does not tell.
        manufacturer: Of the scanner; empty where not given.
        noise_hu: Standard deviation of the noise between neighbouring pixels of soft tissue, as scanned; None
            where not measured. It tells soft from sharp where kernels do not.
    """

    scan: str = ""
    reconstruction: str = ""
    kernel: str = ""
    sharpness: str = ""
    manufacturer: str = ""
    noise_hu: float | None = None

    def __post_init__(self) -> None:
        if self.sharpness not in ("", SOFT, SHARP):
            raise ValueError(f"sharpness is {SOFT}, {SHARP} or empty, found {self.sharpness!r}")
