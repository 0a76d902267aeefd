"""Configuration of the measuring module's accuracy run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MeasuringConfig:
    """What to measure, how it is spoilt before, and where the tables go.

    Attributes:
        volumes: Folder searched for phantoms (``*.nii.gz`` beside their ``*.truth.json``).
        output: Folder for ``anatomy-accuracy.md`` and ``anatomy-accuracy.json``.
        limit: Measure the first so many volumes only; 0 means all.
        blur_voxels: Standard deviation of a Gaussian blur before measuring, as a small model would blur.
        noise_hu: Standard deviation of noise added after the blur.
        seam_hu: Standard deviation of an offset per block of 16 slices, the seams of generated volumes.
        seed: Of noise and offsets.
        ranges_file: Where the 1–99 % range of the lungs' volumes is written; empty: nowhere.
    """

    volumes: str = ""
    output: str = "runs/anatomy"
    limit: int = 0
    blur_voxels: float = 0.0
    noise_hu: float = 0.0
    seam_hu: float = 0.0
    seed: int = 0
    ranges_file: str = ""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit is a number of volumes or 0 for all, found {self.limit}")
        if min(self.blur_voxels, self.noise_hu, self.seam_hu) < 0:
            raise ValueError(
                "blur_voxels, noise_hu and seam_hu cannot be negative, found "
                f"{self.blur_voxels}, {self.noise_hu}, {self.seam_hu}"
            )
