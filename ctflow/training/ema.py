"""A moving average of one network, kept as a second network.

Lightning's own weight averaging copies the whole module (frozen encoders and discriminator too), counts the
steps of both optimizers of a GAN and does not know sharded parameters. Here the average is an ordinary frozen
sub-module: it is saved and restored with the module's state, validation calls it without swapping weights,
and element-wise updates hold for sharded parameters too, as long as both networks are sharded alike.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ctflow.training.schedule import ema_decay


def averaged_copy(network: nn.Module) -> nn.Module:
    """A frozen copy of ``network`` in evaluation mode, to hold its moving average."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, step: int, cap: float) -> None:
    """One update in place: ``averaged ← decay · averaged + (1 − decay) · network``; buffers are copied.

    Args:
        averaged: What ``averaged_copy`` returned.
        network: The network being trained.
        step: Optimizer step just taken, counted from 1.
        cap: Greatest decay.
    """
    weight = 1.0 - ema_decay(step, cap)
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), weight)
    for target, source in zip(averaged.buffers(), network.buffers(), strict=True):
        target.copy_(source)
