"""Callbacks that every training runs with: seeds, checkpoints, limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.tensor import DTensor

from ctflow.errors import CTFlowError
from ctflow.seeding import derived_generator
from ctflow.training.base import CountingModule

LAST = "last.ckpt"


def updates(module: L.LightningModule) -> int:
    """Optimizer steps of the trained network over the whole run."""
    assert isinstance(module, CountingModule)
    return module.updates


class SeedEachBatch(L.Callback):
    """Seeds the global generator from (seed, batch, rank), so that dropout too is the same after a kill."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed before the batch is seen."""
        assert isinstance(pl_module, CountingModule)
        names = ("batch", pl_module.batches, trainer.global_rank)
        torch.manual_seed(derived_generator(pl_module.seed, *names).initial_seed())


def validation_due(trainer: L.Trainer, ahead: int = 1) -> bool:
    """Whether a validation follows the batch in hand, or followed the last one before a stop.

    Args:
        trainer: The trainer.
        ahead: Batches to look at from there on.
    """
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return bool(trainer.limit_val_batches) and -batches % int(trainer.val_check_batch or 1) < ahead


class PeriodicCheckpoint(L.Callback):
    """Writes ``last.ckpt`` every so many steps or minutes, before every validation (which may then be stopped
    at any time) and at the end, never leaving a partial file.

    Args:
        folder: Where it goes.
        every: Optimizer steps; 0: by time alone.
        minutes: Minutes; 0: by steps alone.
    """

    def __init__(self, folder: Path, every: int, minutes: float) -> None:
        self.folder, self.every, self.minutes = folder, every, minutes
        self._saved_at = time.monotonic()
        self._saved_step = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due; with accumulation only between optimizer steps."""
        step = updates(pl_module)
        if step == self._saved_step or step == 0 or trainer.fit_loop._should_accumulate():
            return
        # With accumulation a validation may come between two optimizer steps.
        ahead = trainer.accumulate_grad_batches
        due = (bool(self.every) and step % self.every == 0) or validation_due(trainer, ahead)
        if self.minutes and not due:
            late = time.monotonic() - self._saved_at > 60 * self.minutes
            due = trainer.strategy.broadcast(late) if trainer.world_size > 1 else late
        if due or trainer.should_stop:
            self.save(trainer, pl_module)

    @property
    def target(self) -> Path:
        """The file."""
        return self.folder / LAST

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save now, unless this step is saved already; between optimizer steps only."""
        step = updates(pl_module)
        if step == self._saved_step:
            return
        check_finite(pl_module, step, self.target)
        trainer.save_checkpoint(self.target, weights_only=False)
        trainer.strategy.barrier("checkpoint")
        self._saved_at, self._saved_step = time.monotonic(), step


def check_finite(module: L.LightningModule, step: int, last: Path) -> None:
    """Refuse to overwrite a good checkpoint with weights that are not numbers.

    Raises:
        CTFlowError: A weight of the trained network is NaN or infinite.
    """
    assert isinstance(module, CountingModule)
    for name, parameter in module.network.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not bool(torch.isfinite(local).all()):
            raise CTFlowError(
                f"weight {name} is not finite after step {step}: the training diverged",
                "finite weights",
                f"go on from {last}, if it is there, with a lower learning rate",
            )


class Limits(L.Callback):
    """Stops at ``max_steps`` optimizer steps or after ``max_minutes``; to be listed before checkpoints.

    Args:
        max_steps: Steps of the trained network over the whole run.
        max_minutes: Minutes since this process began to train; 0: no limit.
    """

    def __init__(self, max_steps: int, max_minutes: float) -> None:
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self._began = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a finished run does nothing more."""
        self._began = time.monotonic()
        if updates(pl_module) >= self.max_steps:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the trainer to stop when a limit is reached."""
        over = self.max_minutes > 0 and time.monotonic() - self._began > 60 * self.max_minutes
        if self.max_minutes > 0 and trainer.world_size > 1:
            over = trainer.strategy.broadcast(over)
        if over or updates(pl_module) >= self.max_steps:
            trainer.should_stop = True


class LearningRate(L.Callback):
    """Logs the learning rate that each batch is trained with."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log ``lr`` (and ``lr_1`` for the discriminator)."""
        for index, optimizer in enumerate(trainer.optimizers):
            name = f"train/lr_{index}" if index else "train/lr"
            pl_module.log(name, optimizer.param_groups[0]["lr"], rank_zero_only=True)


@rank_zero_only
def remove_partial(folder: Path) -> None:
    """Delete what a kill during a save left."""
    (folder / (LAST + ".partial")).unlink(missing_ok=True)
