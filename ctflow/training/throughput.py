"""How fast a training is, and what it waits for: in the curves and in the progress bar."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.profilers import Profiler

from ctflow.processes import matrix_peak
from ctflow.training.base import CountingModule

_FETCH = "train_dataloader_next"
"""Ending of Lightning's name for reading the next training batch."""
_PEAK_SIDE = {"cuda": 8192, "cpu": 512}


class DataClock(Profiler):
    """Counts the seconds in which the training waits for its next batch; Lightning's hooks mark it.

    Attributes:
        waited: Seconds so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """The batch is asked for."""
        if action_name.endswith(_FETCH):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """It is there."""
        if action_name.endswith(_FETCH):
            self.waited += time.perf_counter() - self._began


class Throughput(L.Callback):
    """Logs what a step waits for and how much it does.

    ``train/data_wait``: share of the time (validations and saving left out) in which there was no batch.
    ``train/samples_per_s``, and of the FMvT ``train/tokens_per_s`` and ``train/share_of_peak``: over all
    processes; the last is the share of a large matrix product's rate, which is
    measured at the start at the training's precision.

    Args:
        clock: Lightning's profiler of the same training.
        every: Batches over which is counted.
    """

    def __init__(self, clock: DataClock, every: int) -> None:
        self.clock, self.every = clock, every
        self._peak = 0.0
        self._began = self._busy = self._waited = 0.0
        self._samples = self._batches = 0
        self._values: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the peak."""
        assert isinstance(pl_module, CountingModule)
        if pl_module.gflop_per_sample():
            kind, precision = pl_module.device.type, "bf16" if "bf16" in str(trainer.precision) else "fp32"
            self._peak = matrix_peak(precision, pl_module.device, _PEAK_SIDE.get(kind, 512))
        self._waited = self.clock.waited

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The step begins."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step ends; every so many the rates are logged."""
        assert isinstance(pl_module, CountingModule)
        if pl_module.device.type == "cuda" and self._batches + 1 == self.every:
            _wait_for_cuda()
        self._busy += time.perf_counter() - self._began
        self._samples += len(batch)
        self._batches += 1
        if self._batches == self.every:
            self._values = self._rates(trainer, pl_module)
        for name, value in self._values.items():  # at every batch: Lightning picks which of them it writes
            shown = name in ("data_wait", "samples_per_s")
            pl_module.log(f"train/{name}", value, prog_bar=shown, rank_zero_only=True)

    def _rates(self, trainer: L.Trainer, module: CountingModule) -> dict[str, float]:
        """The rates of the batches counted so far; counting begins anew."""
        waited = self.clock.waited - self._waited
        seconds = self._busy + waited
        rate = self._samples * trainer.world_size / seconds
        values = {"data_wait": waited / seconds, "samples_per_s": rate}
        if tokens := module.tokens_per_sample():
            values["tokens_per_s"] = rate * tokens
        if self._peak:
            values["share_of_peak"] = rate / trainer.world_size * module.gflop_per_sample() / self._peak
        self._waited, self._busy, self._samples, self._batches = self.clock.waited, 0.0, 0, 0
        return values


def _wait_for_cuda() -> None:
    """Kernels run on after a step has been launched: the window ends when they do."""
    import torch

    torch.cuda.synchronize()
