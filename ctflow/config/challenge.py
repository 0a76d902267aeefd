"""Configuration of ``ctflow challenge``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.commands import DEVICES, PRECISIONS, SamplingChoice, check_file_choices

FORMS = ("2026", "2025")


@dataclass
class ChallengeConfig:
    """Keys of ``ctflow challenge``.

    Attributes:
        input: JSON list of objects with ``input_image_name`` and ``report``.
        output: Folder of the volumes; it holds nothing else.
        progress: Folder that keeps finished volumes when the output is wiped between two tries.
        checkpoint: Checkpoint folder, ``run:NAME`` or ``latest``; empty: the embedded checkpoint.
        form: ``2026``: loose ``NAME.nii.gz``; ``2025``: ``NAME.mha`` in ``predictions.zip``.
        orientation: ``LPS``: ``GetArrayFromImage`` gives slices upwards, rows to the back, columns to the
            left; ``RAS``: rows to the front, columns to the right.
        time_budget: Minutes for the whole run, loading included; where they grow short, volumes get fewer
            solver steps. Null: no limit.
        seed: Seed of the noise.
        slices: Requested number of slices; null: the model decides.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``fp32``, or ``bf16`` autocast.
        sampling: Replaces the sampling that the checkpoint recommends.
    """

    input: str = "/input/prompts.json"
    output: str = "/output"
    progress: str = "/checkpoint"
    checkpoint: str = ""
    form: str = "2026"
    orientation: str = "LPS"
    time_budget: float | None = None
    seed: int = 0
    slices: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    sampling: SamplingChoice = field(default_factory=SamplingChoice)

    def __post_init__(self) -> None:
        check_file_choices(None, self.orientation)
        if self.form not in FORMS:
            raise ValueError(f"form is one of {FORMS}, found {self.form!r}")
        if self.time_budget is not None and self.time_budget <= 0:
            raise ValueError(f"time_budget is a number of minutes above 0, found {self.time_budget}")
        if self.slices is not None and self.slices < 1:
            raise ValueError(f"slices must be at least 1, found {self.slices}")
        if self.device not in DEVICES:
            raise ValueError(f"device is one of {DEVICES}, found {self.device!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {PRECISIONS}, found {self.precision!r}")

    @property
    def ending(self) -> str:
        """Of a volume's file."""
        return ".nii.gz" if self.form == "2026" else ".mha"
