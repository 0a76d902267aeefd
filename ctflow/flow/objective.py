"""Flow matching as a training objective: what is drawn for a batch, and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctflow.config.models import FlowConfig
from ctflow.flow.path import LinearPath


@dataclass(frozen=True)
class FlowDraw:
    """Everything random in one training step.

    Attributes:
        t: Times ``[B]``.
        noise: Noise end of the path ``[B, C, T, h, w]``, noise offset included.
        condition_noise: Noise to add to the previous block, same shape, already scaled.
        drop_text: ``[B]`` bool, samples trained without text; None: none is.
        drop_previous: ``[B]`` bool, samples trained without previous block; None: none is.
        drop_length: ``[B]`` bool, samples trained without their length; None: none is.
    """

    t: Tensor
    noise: Tensor
    condition_noise: Tensor
    drop_text: Tensor | None = None
    drop_previous: Tensor | None = None
    drop_length: Tensor | None = None


def sample_times(
    n: int,
    distribution: str,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """``n`` times in [0, 1], ``uniform`` or ``logit_normal`` (Esser et al. 2024, section 3.1, m=0, s=1)."""
    if distribution == "uniform":
        return torch.rand(n, generator=generator, device=device)
    if distribution == "logit_normal":
        return torch.sigmoid(torch.randn(n, generator=generator, device=device))
    raise ValueError(f"unknown time distribution {distribution!r}")


def draw(config: FlowConfig, block: Tensor, generator: torch.Generator | None = None) -> FlowDraw:
    """Draw times, noise and dropped conditions for a batch.

    Args:
        config: The flow.
        block: The batch's target ``[B, C, T, h, w]``: gives shape, dtype and device.
        generator: Source of randomness on the block's device; None: the global one.

    Returns:
        The draw, in a fixed order of draws for a given configuration.
    """
    batch, channels = block.shape[:2]
    device = block.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    t = sample_times(batch, config.time_distribution, generator, device)
    noise = normal(*block.shape)
    if config.noise_offset:
        noise = noise + config.noise_offset * normal(batch, channels, 1, 1, 1)
    condition_noise = config.condition_noise * normal(*block.shape)
    probabilities = (config.text_dropout, config.previous_dropout, config.length_dropout)
    dropped = [
        torch.rand(batch, generator=generator, device=device) < p if p else None for p in probabilities
    ]
    return FlowDraw(t, noise, condition_noise, *dropped)


def flow_matching_loss(prediction: Tensor, velocity: Tensor) -> Tensor:
    """Mean squared error of the velocity of each sample, ``[B]`` float32."""
    return F.mse_loss(prediction.float(), velocity.float(), reduction="none").flatten(1).mean(dim=1)


def training_path(config: FlowConfig) -> LinearPath:
    """The path of a configuration."""
    return LinearPath(config.path_offset)
