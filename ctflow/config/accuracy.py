"""Configuration of the accuracy of ``ctflow.anatomy`` on phantoms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AccuracyConfig:
    """The volumes to measure, the damage before, and the folder of the tables.

    Attributes:
        volumes: Folder searched for phantoms (``*.nii.gz`` with their ``*.truth.json``).
        output: Folder for ``anatomy-accuracy.md`` and ``anatomy-accuracy.json``.
        limit: Measure the first so many volumes only; 0 means all.
        blur_pixels: Standard deviation of a Gaussian blur in plane before measuring, as an A-VAE blurs.
        noise_hu: Standard deviation of noise added after the blur.
        seam_hu: Offset of every other block of 16 slices inside the body, the seams of generated volumes.
        seed: Of the noise.
        ranges_file: Where the 1–99 % range of the lungs' volumes is written; empty: nowhere.
    """

    volumes: str = ""
    output: str = "runs/anatomy"
    limit: int = 0
    blur_pixels: float = 0.0
    noise_hu: float = 0.0
    seam_hu: float = 0.0
    seed: int = 0
    ranges_file: str = ""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit is a number of volumes or 0 for all, found {self.limit}")
        if min(self.blur_pixels, self.noise_hu, self.seam_hu) < 0:
            raise ValueError(
                "blur_pixels, noise_hu and seam_hu cannot be negative, found "
                f"{self.blur_pixels}, {self.noise_hu}, {self.seam_hu}"
            )
