"""What ``python -m ctflow.generate`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from ctflow.config.generation import RolloutConfig
from ctflow.errors import ConfigError
from ctflow.formats import ENDINGS, ORIENTATIONS, VOXEL_TYPES
from ctflow.types import BLOCK_LENGTH

PRECISIONS = ("fp32", "bf16")
MAX_UNKNOWN = 0.6
"""Share of unknown words beyond which a report is refused."""
START_PREFIX = "nearest:"
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class SamplingChoice:
    """Sampling keys that replace what the checkpoint recommends; None keeps the checkpoint's value.

    The names and meanings are those of ``RolloutConfig``.
    """

    EXPLAINED_BY: ClassVar[type] = RolloutConfig

    steps: int | None = None
    solver: str | None = None
    time_shift: float | None = None
    churn: float | None = None
    churn_below: float | None = None
    start_steps: int | None = None
    start_temperature: float | None = None
    overlap: int | None = None
    fade: int | None = None
    text_guidance: float | None = None
    guidance_from: float | None = None
    previous_guidance: float | None = None
    max_slices: int | None = None

    def __post_init__(self) -> None:
        # Checks what is given; a fade of any length fits into the longest overlap.
        replace(RolloutConfig(overlap=BLOCK_LENGTH - 1), **self._chosen())

    def applied_to(self, recommended: RolloutConfig) -> RolloutConfig:
        """The checkpoint's sampling with these choices in place.

        Raises:
            ConfigError: One of them does not go with what the checkpoint recommends.
        """
        try:
            return replace(recommended, **self._chosen())
        except ValueError as error:
            given = ", ".join(f"{name}={value}" for name, value in self._chosen().items())
            raise ConfigError(
                f"sampling with {given}, and otherwise as the checkpoint recommends: {error}",
                "choices that go together",
                "give the other option too, e.g. sampling.fade=0 or sampling.churn=0",
            ) from None

    def _chosen(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass
class ConvertConfig:
    """Keys of ``ctflow convert``.

    Attributes:
        dtype: ``int16`` or ``float32``; null: ``int16``. DICOM holds whole numbers only.
        orientation: Order of the voxels, ``RAS`` or ``LPS``; null: RAS for NIfTI, LPS for all others.
        synthetic: Whether the output is marked as showing no patient; null: as the source says of itself.
        memory_gb: Most memory that reading takes.
    """

    dtype: str | None = None
    orientation: str | None = None
    synthetic: bool | None = None
    memory_gb: float = 6.0

    def __post_init__(self) -> None:
        check_file_choices(self.dtype, self.orientation)


def check_file_choices(dtype: str | None, orientation: str | None) -> None:
    """Check how a volume is to be written.

    Raises:
        ValueError: No such type of voxels, or order.
    """
    if dtype not in (None, *VOXEL_TYPES):
        raise ValueError(f"dtype is one of {VOXEL_TYPES}, found {dtype!r}")
    if orientation not in (None, *ORIENTATIONS):
        raise ValueError(f"orientation is one of {ORIENTATIONS}, found {orientation!r}")


@dataclass
class GenerateConfig:
    """Keys of ``python -m ctflow.generate``.

    Attributes:
        checkpoint: Checkpoint folder, ``run:NAME`` or ``latest``; empty: the embedded checkpoint.
        output: One report: a file ending in ``.nii.gz``, ``.nii``, ``.mha`` or ``.nrrd``, or a folder ending
            in ``.dcm`` (a DICOM series); many: a folder.
        format: Which of these endings the volumes of a CSV get.
        dtype: ``int16`` or ``float32``; null: ``int16``. DICOM holds whole numbers only.
        orientation: Order of the voxels, ``RAS`` or ``LPS``; null: RAS for NIfTI, LPS for all others.
        seed: Seed of the noise; a ``seed`` column of a CSV goes before it.
        slices: Requested number of slices; None: the model decides where the volume ends.
        z_spacing: Requested distance between slices in mm; None: the checkpoint's, or a chest's height over
            ``slices``.
        pixel_spacing: Requested distance between pixels in mm; None: the checkpoint's.
        start: ``nearest:FOLDER``: every volume starts with the first block of the case in these latent shards
            whose report is nearest (another patient); empty: nothing is given.
        candidates: Volumes drawn for each report, of which the best is kept; 1: no choice.
        batch_size: Volumes generated side by side; the next row takes the place of one that has ended.
        part: Which share of a CSV's rows this process makes, from 0; null: what SLURM's array, ``srun`` or
            ``torchrun`` say of the process, else all of them.
        parts: Shares in all; null: as for ``part``.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16`` autocast: faster where the processor has it, fewer digits.
        max_unknown: Largest share of a report's words that the text encoder does not know (another language);
            1 refuses none.
        sampling: Replaces the sampling that the checkpoint recommends.
    """

    checkpoint: str = ""
    output: str = ""
    format: str = ".nii.gz"
    dtype: str | None = None
    orientation: str | None = None
    seed: int = 0
    slices: int | None = None
    z_spacing: float | None = None
    pixel_spacing: float | None = None
    start: str = ""
    candidates: int = 1
    batch_size: int = 4
    part: int | None = None
    parts: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    max_unknown: float = MAX_UNKNOWN
    sampling: SamplingChoice = field(default_factory=SamplingChoice)

    def request(self) -> dict[str, Any]:
        """What is asked of a volume whose row says nothing else."""
        return {name: getattr(self, name) for name in ("seed", "slices", "z_spacing", "pixel_spacing")}

    def __post_init__(self) -> None:
        if self.slices is not None and self.slices < 1:
            raise ValueError(f"slices must be at least 1, found {self.slices}")
        check_file_choices(self.dtype, self.orientation)
        if self.format not in ENDINGS:
            raise ValueError(f"format is one of {ENDINGS}, found {self.format!r}")
        if min(self.batch_size, self.candidates) < 1:
            raise ValueError(
                f"batch_size and candidates must be at least 1, found {self.batch_size}, {self.candidates}"
            )
        if self.start and not self.start.startswith(START_PREFIX):
            raise ValueError(
                f"start is {START_PREFIX}FOLDER with latent shards, or empty, found {self.start!r}"
            )
        if self.device not in DEVICES:
            raise ValueError(f"device is one of {DEVICES}, found {self.device!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {PRECISIONS}, found {self.precision!r}")
        if not 0 <= self.max_unknown <= 1:
            raise ValueError(f"max_unknown lies between 0 and 1, found {self.max_unknown}")
