"""The differences between the three trainings, as one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import lightning as L

from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule
from ctflow.training.base import CountingModule
from ctflow.training.runs import Run


class Task(Protocol):
    """One of the trainings."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """Complete the configuration from data and ``init_from``; make what must exist before training."""

    def data(self, config: TrainConfig) -> LatentDataModule:
        """The data module with the task's view."""

    def module(self, config: TrainConfig, run: Run) -> CountingModule:
        """A fresh module (initialised from ``init_from`` where given)."""

    def callbacks(self, config: TrainConfig, run: Run) -> list[L.Callback]:
        """The task's own callbacks."""

    def gradient_clip(self, config: TrainConfig) -> float:
        """Greatest gradient norm; 0: none."""

    def export(self, config: TrainConfig, run: Run, checkpoint: Path) -> None:
        """Write the sharing folder from a Lightning checkpoint."""


def card(title: str, config: TrainConfig, steps: int) -> str:
    """A model card with what is known without evaluation."""
    made = f"`python -m ctflow.train` (task `{config.task}`, seed {config.seed})"
    return (
        f"# {title}\n\nTrained by {made} for {steps:,} steps on `{config.data.train}`. "
        "`config.yaml` holds the architecture, `model.safetensors` the moving average of the weights.\n\n"
        "Not a medical device; made for research.\n"
    )
