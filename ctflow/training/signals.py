"""Signals that ask a training to end: it saves, says so, and ends with the signal's status."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch

from ctflow.errors import Stopped
from ctflow.training.base import CountingModule
from ctflow.training.callbacks import PeriodicCheckpoint

log = logging.getLogger("ctflow")

REQUEUE = 75
"""Status after SIGUSR1 (EX_TEMPFAIL of sysexits.h): the same command goes on when it is run again."""
STATUS: dict[int, int] = {
    signal.SIGTERM: 128 + signal.SIGTERM,
    signal.SIGINT: 128 + signal.SIGINT,
    signal.SIGUSR1: REQUEUE,
}

SAME_SECONDS = 1.0
"""Signals that come so soon after the first are that one: ``timeout`` and ``torchrun`` send it to the process
and to its group."""


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals of ``STATUS`` meanwhile; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STATUS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def ending_with_status() -> AbstractContextManager[None]:
    """End with the signal's status, in a line, while data are made and while a run is exported.

    Raises:
        Stopped: In the block, when a signal comes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        message = f"{name}: stopped before or after the training; the same command goes on"
        raise Stopped(message, STATUS[number])

    return handled(end)


def _log_batch(trainer: L.Trainer) -> None:
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


class StopOnSignal(L.Callback):
    """After SIGTERM, SIGINT (Ctrl-C) or SIGUSR1: the batch in hand, a checkpoint, the end. To be listed last.

    So ends a validation too, between two batches or two rounds of its rollouts. Several processes agree at
    each of them; one with a smaller share answers the others until the last has done its own.

    A second signal, more than ``SAME_SECONDS`` later, ends the process at once.

    Args:
        checkpoints: Saves.
    """

    def __init__(self, checkpoints: PeriodicCheckpoint) -> None:
        self.checkpoints = checkpoints
        self.received = 0
        self._received_at = 0.0
        self._training = False

    def listening(self) -> AbstractContextManager[None]:
        """Handle the signals meanwhile."""
        return handled(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._training:
            raise Stopped(f"{name} before the first batch: nothing to save", STATUS[number])
        if self.received:
            if time.monotonic() - self._received_at > SAME_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.received, self._received_at = number, time.monotonic()
        log.warning("%s: saving and stopping after the batch in hand; again to stop at once", name)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on there is something to save."""
        self._training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop where any process was asked to; with accumulation between optimizer steps.

        Raises:
            Stopped: With the signal's status.
        """
        if trainer.fit_loop._should_accumulate():
            return
        number, _ = self._agreed(trainer, pl_module)
        # Lightning logs a batch after this hook: what it would log, before the end.
        self._stop(trainer, pl_module, number, lambda: _log_batch(trainer))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop between two batches of a validation.

        Raises:
            Stopped: With the signal's status.
        """
        self.stop_validation(trainer, pl_module)
        if batch_idx + 1 == trainer.num_val_batches[dataloader_idx]:
            self.wait_for_others(trainer, pl_module)

    def stop_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop in mid-validation where any process was asked to; ``wait_for_others`` ends each part of it.

        Raises:
            Stopped: With the signal's status.
        """
        self._stop(trainer, pl_module, self._agreed(trainer, pl_module)[0])

    def wait_for_others(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer the processes that have a greater share of a validation, until the last has done its own.

        Raises:
            Stopped: With the signal's status.
        """
        busy = trainer.world_size > 1
        while busy:
            number, busy = self._agreed(trainer, pl_module, busy=False)
            self._stop(trainer, pl_module, number)

    def _stop(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        number: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Save and stop, if there is a signal."""
        if not number:
            return
        assert isinstance(pl_module, CountingModule)
        # A validation between two optimizer steps follows the checkpoint of the first of them.
        if not trainer.fit_loop._should_accumulate():
            self.checkpoints.save(trainer, pl_module)
        before()
        name, target = signal.Signals(number).name, self.checkpoints.target
        raise Stopped(
            f"{name}: saved {target} at step {pl_module.updates}; the same command with "
            f"name={target.parent.name} goes on",
            STATUS[number],
        )

    def _agreed(self, trainer: L.Trainer, module: L.LightningModule, busy: bool = True) -> tuple[int, bool]:
        """The signal that any process got, so that all stop at the same place, and whether any is busy."""
        if trainer.world_size == 1:
            return self.received, busy
        both = torch.tensor([self.received, int(busy)], device=module.device)
        number, others = trainer.strategy.reduce(both, reduce_op="max").tolist()
        return number, bool(others)
