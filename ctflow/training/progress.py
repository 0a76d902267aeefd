"""The progress bar of a training: optimizer steps of the whole run, also of one that was resumed."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from ctflow.training.callbacks import updates


class RunProgress(TQDMProgressBar):
    """Counts optimizer steps up to the run's last one.

    Lightning's own bar counts the batches of an epoch. An epoch is not the run, and a run that goes on in
    mid-epoch has no total there.

    Args:
        max_steps: Steps of the trained network over the whole run.
        max_minutes: Minutes that this process may train; 0: no limit. The total then follows the rate.
        refresh_rate: Steps between two drawings.
    """

    def __init__(self, max_steps: int, max_minutes: float = 0.0, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self._began = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # type: ignore[override]
        """Begin at the step that the run has reached."""
        super().on_train_start(trainer, pl_module)
        self._began = time.monotonic()
        bar = self.train_progress_bar
        bar.reset(total=self.max_steps)
        # The rate is that of this process: steps of an earlier one cost it no time.
        bar.initial = bar.n = updates(pl_module)
        bar.set_description("steps")

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """An epoch's beginning leaves the bar as it is."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step that this batch ended in."""
        bar, step = self.train_progress_bar, updates(pl_module)
        if step > bar.n and self._should_update(step, self.max_steps):
            if self.max_minutes > 0:
                passed = (time.monotonic() - self._began) / (60 * self.max_minutes)
                bar.total = max(step, min(self.max_steps, bar.initial + round((step - bar.initial) / passed)))
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(step - bar.n)
