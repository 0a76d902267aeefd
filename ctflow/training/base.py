"""Shared parts of the LightningModules: counters that survive a kill, a moving average, logging."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from ctflow.training.ema import update_average
from ctflow.training.randomness import SampleRandom

COUNTERS_KEY = "ctflow_counters"


class CountingModule(L.LightningModule):
    """Counts batches and updates of the whole run; the randomness of a batch hangs on its number.

    Lightning's ``global_step`` counts the steps of both optimizers of a GAN, hence counters of our own.

    Args:
        seed: The run's seed.
        ema_cap: Greatest decay of the moving average.

    Attributes:
        batches: Training batches seen.
        updates: Optimizer steps of ``network`` taken.
        network: What is trained.
        averaged: Its moving average, set by the subclass (``averaged_copy``): validated and exported.
    """

    network: nn.Module
    averaged: nn.Module

    def __init__(self, seed: int, ema_cap: float) -> None:
        super().__init__()
        self.seed, self.ema_cap = seed, ema_cap
        self.batches = 0
        self.updates = 0

    def compile_networks(self) -> None:
        """Compile what a training step calls; the weights' names stay."""
        self.network.compile()

    def tokens_per_sample(self) -> int:
        """Tokens of a sample; 0 where the network has none."""
        return 0

    def gflop_per_sample(self) -> float:
        """Of a training step (forward and backward), in matrix products; 0 where it is not counted."""
        return 0.0

    def count_update(self) -> None:
        """Count an optimizer step of ``network`` and follow it with the moving average."""
        self.updates += 1
        update_average(self.averaged, self.network, self.updates, self.ema_cap)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Automatic optimisation: the step, then the moving average (before any callback could save)."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.count_update()

    def random(self, keys: list[str]) -> SampleRandom:
        """This batch's random numbers, one stream per sample."""
        return SampleRandom(self.seed, self.batches, keys, self.device)

    def log_terms(self, terms: dict[str, Tensor], size: int) -> None:
        """Log training losses as means over processes; ``loss`` goes to the progress bar too."""
        values = torch.stack([v.detach().float() for v in terms.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        for name, value in zip(terms, values.unbind(), strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=size, rank_zero_only=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the counters."""
        checkpoint[COUNTERS_KEY] = {"batches": self.batches, "updates": self.updates}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters."""
        self.batches, self.updates = (checkpoint[COUNTERS_KEY][key] for key in ("batches", "updates"))


def unique_keys(names: Iterable[str]) -> list[str]:
    """The names, repeats numbered, so that every sample of a batch has random numbers of its own."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append(f"{name}#{seen[name]}")
        seen[name] += 1
    return keys
