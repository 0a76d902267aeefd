"""Configuration of the preparation of scans into slice shards."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class IngestConfig:
    """Configuration of ``python -m data_prep.ct_rate``.

    Attributes:
        source: Folder of scans: CT-RATE's tree, or NIfTI, DICOM, NRRD and MetaImage files in any folders.
        output: Folder of the slice shards (``train`` and ``valid``) and of the reports about them.
        reports: CT-RATE report CSVs; none given: those found under ``source``.
        metadata: CT-RATE metadata CSVs (spacing, slope, intercept); none given: those found under ``source``.
        labels: CT-RATE label CSVs; none given: those found under ``source``.
        tables: Folder of CSVs and lists that lie outside of ``source``.
        exclude: Lists of volumes to leave out, a file name a line, beside the ``no_chest_*.txt`` that are
            found.
        resolution: Rows and columns of a prepared slice: 128, 256 or 512 (any multiple of 16).
        z_spacing: Millimetres between prepared slices; null keeps each scan's own.
        field_of_view: Millimetres a slice's side shows, cropped or padded with air around the centre; null
            takes the whole field of view.
        max_slices: Scans with more slices are cropped to this many around the middle (256 as published); null
            keeps all.
        valid_fraction: Share of patients that go to ``valid`` where the source has no train and valid
            folders.
        patient_pattern: Regular expression whose first group is the patient in a file's path under
            ``source``;
            empty: CT-RATE's names, DICOM's PatientID, else every file is a patient of its own.
        keep_flagged: Put flagged scans (short, one lung …) into the shards too.
        keep_no_chest: Put scans that show hardly any lung into the shards too, flagged; those that a list
            names stay out.
        first_version: Where CT-RATE's corrected tree is there and lacks volumes, take them from the first
            version.
        workers: Processes that read and resample; 0: one per CPU core.
        timeout: Seconds after which a file that is still being read is refused.
        memory_gb: Most memory of one worker; a file that needs more is refused.
        volumes_per_shard: Scans per shard file.
        part: Which share of the work this process does, from 0; null: what SLURM's array, ``srun`` or
            ``torchrun`` say of the process, else all of it.
        parts: Shares in all; null: as for ``part``.
        progress: Show a progress bar.
    """

    source: str = ""
    output: str = ""
    reports: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    tables: str = ""
    exclude: list[str] = field(default_factory=list)
    resolution: int = 256
    z_spacing: float | None = 1.5
    field_of_view: float | None = None
    max_slices: int | None = None
    valid_fraction: float = 0.1
    patient_pattern: str = ""
    keep_flagged: bool = True
    keep_no_chest: bool = False
    first_version: bool = False
    workers: int = 0
    timeout: float = 300.0
    memory_gb: float = 6.0
    volumes_per_shard: int = 16
    part: int | None = None
    parts: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.resolution < 32 or self.resolution % 16:
            raise ValueError(f"resolution must be a multiple of 16 from 32 on, found {self.resolution}")
        if self.z_spacing is not None and not 0.1 <= self.z_spacing <= 20.0:
            raise ValueError(f"z_spacing must be 0.1 to 20 mm or null, found {self.z_spacing}")
        if self.field_of_view is not None and not 50.0 <= self.field_of_view <= 1000.0:
            raise ValueError(f"field_of_view must be 50 to 1000 mm or null, found {self.field_of_view}")
        if self.max_slices is not None and self.max_slices < 1:
            raise ValueError(f"max_slices must be at least 1 or null, found {self.max_slices}")
        if not 0.0 <= self.valid_fraction <= 1.0:
            raise ValueError(f"valid_fraction must be in [0, 1], found {self.valid_fraction}")
        if self.workers < 0 or self.timeout <= 0 or self.memory_gb < 1 or self.volumes_per_shard < 1:
            raise ValueError(
                "workers must not be negative, timeout positive, memory_gb and volumes_per_shard at least 1, "
                f"found {self.workers}, {self.timeout}, {self.memory_gb}, {self.volumes_per_shard}"
            )
        if self.patient_pattern:
            try:
                groups = re.compile(self.patient_pattern).groups
            except re.error as error:
                raise ValueError(
                    f"patient_pattern {self.patient_pattern!r} is not a regular expression: {error}"
                ) from error
            if groups < 1:
                raise ValueError(f"patient_pattern needs a group, found {self.patient_pattern!r}")
