"""The content of a shard per case and per file, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.types import Acquisition
from ctflow.whitening import Whitening

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SliceRecord:
    """One scan, ready for the A-VAE.

    Attributes:
        case_id: Unique in the data set (CT-RATE: the volume's name without ending).
        patient_id: Splits go by it.
        hu: Int16 HU ``[slices, rows, columns]``, axes S,P,R.
        spacing: Millimetres along (slices, rows, columns).
        report: Findings and impression as one text; empty where there is none.
        labels: Finding name to 0 or 1; empty where there are none.
        source_sha256: Hash of the file the scan was read from.
        split: ``train`` or ``valid``.
        truth_path: Ground truth beside a phantom; None for real scans.
        extra: Anything else worth keeping (JSON values): flags, decisions of the ingest.
        acquisition: Scan, reconstruction and scanner.
    """

    case_id: str
    patient_id: str
    hu: NDArray[np.int16]
    spacing: Spacing
    report: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    source_sha256: str = ""
    split: str = "train"
    truth_path: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    acquisition: Acquisition = field(default_factory=Acquisition)

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16 or 0 in self.hu.shape:
            raise ValueError(
                f"case {self.case_id}: hu must be a non-empty int16 [slices, rows, columns], "
                f"found {self.hu.dtype} {self.hu.shape}"
            )

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.hu.shape[0]


@dataclass(frozen=True)
class LatentRecord:
    """One scan as A-VAE posteriors with its embedded report.

    Attributes:
        case_id: As in ``SliceRecord``.
        patient_id: As in ``SliceRecord``.
        mean: Float16 posterior means ``[slices, channels, h, w]``, not whitened, without end slices.
        logvar: Float16 posterior log-variances, same shape.
        spacing: Millimetres along (slices, rows, columns) of the scan.
        text: Float16 hidden states of the report ``[tokens, width]``.
        text_mask: Bool ``[tokens]``, True where a token is real.
        pooled: Float32 pooled vector ``[width]``, as the text encoder gives it.
        report: The report's text.
        labels: Finding name to 0 or 1.
        source_sha256: Hash of the file the scan was read from.
        split: ``train`` or ``valid``.
        truth_path: Ground truth beside a phantom; None for real scans.
        extra: Anything else worth keeping (JSON values).
        acquisition: As in ``SliceRecord``.
    """

    case_id: str
    patient_id: str
    mean: NDArray[np.float16]
    logvar: NDArray[np.float16]
    spacing: Spacing
    text: NDArray[np.float16]
    text_mask: NDArray[np.bool_]
    pooled: NDArray[np.float32]
    report: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    source_sha256: str = ""
    split: str = "train"
    truth_path: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    acquisition: Acquisition = field(default_factory=Acquisition)

    def __post_init__(self) -> None:
        if self.mean.ndim != 4 or self.mean.shape != self.logvar.shape or 0 in self.mean.shape:
            raise ValueError(
                f"case {self.case_id}: mean and logvar must be equal, non-empty [slices, channels, h, w], "
                f"found {self.mean.shape} and {self.logvar.shape}"
            )
        if self.text.ndim != 2 or self.text_mask.shape != self.text.shape[:1] or self.pooled.ndim != 1:
            raise ValueError(
                f"case {self.case_id}: text [tokens, width], mask [tokens] and pooled [width] do not fit: "
                f"{self.text.shape}, {self.text_mask.shape}, {self.pooled.shape}"
            )

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.mean.shape[0]


@dataclass(frozen=True)
class LatentHeader:
    """The header of a latent shard, which all its cases share.

    Attributes:
        avae_fingerprint: SHA-256 of the A-VAE's weights.
        text_fingerprint: SHA-256 of the text encoder's weights.
        whitening: Applied to posterior samples on load; the generator unwhitens with the same numbers.
        air: Float32 posterior mean ``[channels, h, w]`` of an all-air slice (not whitened): the start block.
        white: Float32 posterior mean of an all-white slice (not whitened): the end slice.
        hu_window: HU range the A-VAE loads, (minimum, maximum).
        provenance: How the shard was made (JSON values).
    """

    avae_fingerprint: str
    text_fingerprint: str
    whitening: Whitening
    air: NDArray[np.float32]
    white: NDArray[np.float32]
    hu_window: tuple[float, float]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseEntry:
    """A case as the manifest lists it: enough to plan an epoch without opening a shard.

    Attributes:
        case_id: The case.
        patient_id: Its patient.
        slices: Number of slices.
        spacing: Millimetres along (slices, rows, columns).
        split: ``train`` or ``valid``.
        tokens: Real text tokens (latent shards; 0 in slice shards).
        size: Rows and columns of a slice, or of a latent.
        acquisition: Scan, reconstruction and scanner.
    """

    case_id: str
    patient_id: str
    slices: int
    spacing: Spacing
    split: str
    tokens: int
    size: tuple[int, int]
    acquisition: Acquisition = field(default_factory=Acquisition)

    @property
    def scan(self) -> str:
        """The scan it is a reconstruction of; the case itself if the scan is unknown."""
        return self.acquisition.scan or self.case_id


@dataclass(frozen=True)
class ShardEntry:
    """A complete shard as the manifest lists it.

    Attributes:
        file: File name inside the folder.
        kind: ``slices`` or ``latents``.
        version: Format version it was written in.
        sha256: Hash of the whole file.
        size: Bytes of the file.
        cases: Its cases in order.
    """

    file: str
    kind: str
    version: int
    sha256: str
    size: int
    cases: tuple[CaseEntry, ...]
