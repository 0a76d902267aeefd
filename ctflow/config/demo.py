"""Configuration of ``python -m ctflow.demo``."""

from __future__ import annotations

from dataclasses import dataclass, field

REPORTS = (
    "There is a large right pleural effusion.",
    "There is a large left pleural effusion.",
    "There is no pleural effusion.",
)


@dataclass
class DemoConfig:
    """Keys of ``make demo`` (``ARGS="key=value …"``).

    Attributes:
        output: Folder of everything the demonstration makes; it is made anew.
        volumes: Phantoms for the trainings from scratch.
        vae_minutes: Length of the A-VAE's training.
        flow_minutes: Length of the FMvT's training.
        eval_cases: Held-out phantoms scored with the embedded checkpoint.
        seed: Of phantoms, and the first seed of generation.
        seeds: Volumes generated from each report, at ``seed``, ``seed + 1``, …
        reports: Reports to generate from; each states a pleural effusion with its side, or denies one.
        least_hits: Share of all volumes that must show exactly what their report asks for; a third is chance.
        checkpoint: Checkpoint that generates; empty: the embedded one.
    """

    output: str = "runs/demo"
    volumes: int = 64
    vae_minutes: float = 3.0
    flow_minutes: float = 3.0
    eval_cases: int = 8
    seed: int = 1
    seeds: int = 6
    reports: list[str] = field(default_factory=lambda: list(REPORTS))
    least_hits: float = 0.45
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.volumes < 20 or self.eval_cases < 2:
            raise ValueError(
                "volumes must be at least 20 and eval_cases at least 2, "
                f"found {self.volumes}, {self.eval_cases}"
            )
        if self.seeds < 1 or not self.reports:
            raise ValueError(f"at least one seed and one report are needed, found {self.seeds} seeds")
        if not 0 <= self.least_hits <= 1:
            raise ValueError(f"least_hits lies between 0 and 1, found {self.least_hits}")
