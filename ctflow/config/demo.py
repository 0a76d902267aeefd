"""What ``python -m ctflow.demo`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ContrastPair:
    """Two reports that differ in one finding, generated from equal noise.

    Attributes:
        with_finding: The report that names the finding.
        without_finding: The same report without it.
        label: CT-RATE's name of the finding.
        side: The patient's side it lies on: ``left`` or ``right``.
    """

    with_finding: str = (
        "The size of the heart is within normal limits. Trachea is in the midline and both main bronchi are "
        "open. There is no consolidation. No nodule or mass is seen in the lungs. There is a large right "
        "pleural effusion of about 900 ml. No pleural effusion is seen on the left. "
        "Large right pleural effusion."
    )
    without_finding: str = (
        "The size of the heart is within normal limits. Trachea is in the midline and both main bronchi are "
        "open. There is no consolidation. No nodule or mass is seen in the lungs. No pleural effusion is "
        "seen. Normal chest CT."
    )
    label: str = "Pleural effusion"
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in ("left", "right"):
            raise ValueError(f"side is left or right, found {self.side!r}")


@dataclass
class DemoConfig:
    """Keys of ``make demo`` (``ARGS="key=value …"``).

    Attributes:
        output: Folder of everything the demonstration makes; it is made anew.
        volumes: Phantoms for the trainings from scratch.
        vae_minutes: Length of the A-VAE's training.
        flow_minutes: Length of the FMvT's training.
        eval_cases: Held-out phantoms scored with the embedded checkpoint.
        seed: Of phantoms and of the noise of generation.
        checkpoint: Checkpoint that generates; empty: the embedded one.
        pair: The two reports.
    """

    output: str = "runs/demo"
    volumes: int = 64
    vae_minutes: float = 3.0
    flow_minutes: float = 3.0
    eval_cases: int = 8
    seed: int = 1
    checkpoint: str = ""
    pair: ContrastPair = field(default_factory=ContrastPair)

    def __post_init__(self) -> None:
        if self.volumes < 20 or self.eval_cases < 2:
            raise ValueError(
                "volumes must be at least 20 and eval_cases at least 2, "
                f"found {self.volumes}, {self.eval_cases}"
            )
