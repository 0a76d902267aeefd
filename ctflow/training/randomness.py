"""Random numbers as a function of (seed, step, sample): the same after a kill and on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.seeding import derived_generator


class SampleRandom:
    """One generator per sample of a batch; every draw stacks one draw of each.

    Args:
        seed: The run's seed.
        step: The training batch's number over the whole run (or a word, for fixed validation draws).
        keys: One name per sample, unique within the global batch.
        device: Where the numbers are drawn.
    """

    def __init__(self, seed: int, step: int | str, keys: Sequence[object], device: torch.device) -> None:
        self.device = device
        self.generators = [
            torch.Generator(device).manual_seed(derived_generator(seed, "train", step, key).initial_seed())
            for key in keys
        ]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal ``[len(keys), *shape]``, float32."""
        draws = [torch.randn(shape, generator=g, device=self.device) for g in self.generators]
        return torch.stack(draws)

    def uniform(self) -> Tensor:
        """Uniform on [0, 1), ``[len(keys)]``, float32."""
        draws = [torch.rand((), generator=g, device=self.device) for g in self.generators]
        return torch.stack(draws)
