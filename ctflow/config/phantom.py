"""Configuration of the phantom generator."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PhantomConfig:
    """Keys of ``python -m data_prep.phantom``.

    Attributes:
        output: Folder that receives CT-RATE's tree (``dataset/…``).
        volumes: Number of volumes; one per patient, or with ``pairs`` two.
        seed: Data set seed; a volume is a function of (seed, its number) alone.
        size: Rows and columns.
        slice_spacing: Fixed spacing of slices in mm; None: 1 to 5 mm, as drawn.
        fixed_share: Share of patients scanned at ``slice_spacing``; the others at 1 to 5 mm, as drawn.
        pairs: Draw every patient twice, as scans ``a`` and ``b`` that differ in one finding alone
            (``data_prep.phantom.contrast.sample_pair``).
        pair_labels: CT-RATE's labels that pairs differ in, each as often as the others; empty: effusions in
            half of the pairs.
        report: Every patient shows what this text states, and nothing else; empty: findings as drawn.
        valid_fraction: Share of patients in the ``valid`` split.
        masks: Whether to write a compressed file of masks with each volume.
        workers: Processes; 0 for one per CPU core.
    """

    output: str = "runs/phantoms"
    volumes: int = 64
    seed: int = 0
    size: int = 128
    slice_spacing: float | None = None
    fixed_share: float = 1.0
    pairs: bool = False
    pair_labels: list[str] = field(default_factory=list)
    report: str = ""
    valid_fraction: float = 0.1
    masks: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.volumes < 1:
            raise ValueError(f"volumes must be at least 1, found {self.volumes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size must be 32 to 1024 rows and columns, found {self.size}")
        if self.slice_spacing is not None and not 0.5 <= self.slice_spacing <= 10:
            raise ValueError(f"slice_spacing must be 0.5 to 10 mm, found {self.slice_spacing}")
        if not 0.0 <= self.valid_fraction <= 1.0:
            raise ValueError(f"valid_fraction must be 0 to 1, found {self.valid_fraction}")
        if not 0.0 <= self.fixed_share <= 1.0:
            raise ValueError(f"fixed_share must be 0 to 1, found {self.fixed_share}")
        if self.pairs and self.volumes % 2:
            raise ValueError(f"pairs need an even number of volumes, found {self.volumes}")
        if self.pair_labels and not self.pairs:
            raise ValueError("pair_labels chooses what pairs differ in: give pairs=true too")
        if self.pairs and self.report:
            raise ValueError("pairs draws findings, report gives them: choose one of them")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (all cores) or more, found {self.workers}")
