"""Flow matching as a training objective: the straight path between data and noise, what is drawn, the loss.

The path is the one place that states the direction of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctflow.config.models import FlowConfig


@dataclass(frozen=True)
class PathSample:
    """A point on the path and the velocity there.

    Attributes:
        z_t: The noisy block ``[B, C, T, h, w]`` at time t.
        velocity: dz/dt there, what the network is to predict; same shape.
    """

    z_t: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class LinearPath:
    """``z_t = (1 - t) x + (offset + (1 - offset) t) noise``; **t = 1 is noise, t = 0 is data**.

    Flow matching with the optimal-transport path (Lipman et al. 2023, equation 22, with time reversed);
    sampling
    integrates dz/dt from t = 1 to t = 0.

    Attributes:
        offset: Width of the path at t = 0: 0 for fresh models, 1e-5 for the published ones.
    """

    offset: float = 0.0

    def sample(self, x: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """The path's point and velocity at time ``t``.

        Args:
            x: Data ``[B, ...]``.
            noise: Standard normal noise, same shape.
            t: ``[B]`` or a scalar, in [0, 1].

        Returns:
            ``z_t`` and the velocity ``(1 - offset) noise - x``.
        """
        if x.shape != noise.shape:
            raise ValueError(f"data and noise differ in shape: {list(x.shape)} and {list(noise.shape)}")
        moment = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        if moment.ndim:
            moment = moment.view(-1, *[1] * (x.ndim - 1))  # [B, 1, ..., 1]
        z_t = (1 - moment) * x + (self.offset + (1 - self.offset) * moment) * noise
        return PathSample(z_t=z_t, velocity=self.velocity(x, noise))

    def velocity(self, x: Tensor, noise: Tensor) -> Tensor:
        """dz/dt, the same at every time."""
        return (1 - self.offset) * noise - x


@dataclass(frozen=True)
class FlowDraw:
    """Everything random in one training step.

    Attributes:
        t: Times ``[B]``.
        noise: Noise end of the path ``[B, C, T, h, w]``, noise offset included.
        condition_noise: Noise to add to the previous block, same shape, already scaled.
        previous_noise: Standard deviation of ``condition_noise`` ``[B]``.
        known: ``[B, T]`` bool, slices that are given clean; None: none is.
        drop_text: ``[B]`` bool, samples trained without text; None: none is.
        drop_previous: ``[B]`` bool, samples trained without previous block; None: none is.
        drop_length: ``[B]`` bool, samples trained without their length; None: none is.
    """

    t: Tensor
    noise: Tensor
    condition_noise: Tensor
    previous_noise: Tensor
    known: Tensor | None = None
    drop_text: Tensor | None = None
    drop_previous: Tensor | None = None
    drop_length: Tensor | None = None


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] whose odds t / (1 - t) are ``shift`` times larger (Esser et al. 2024, equation 23)."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(
    n: int,
    config: FlowConfig,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """``n`` times in [0, 1]: uniform, or logit-normal (Esser et al. 2024, section 3.1), then shifted.

    The logit of a logit-normal time has the mean ln(``time_shift``) and the deviation ``time_spread``.
    """
    if config.time_distribution == "uniform":
        t = torch.rand(n, generator=generator, device=device)
    else:
        t = torch.sigmoid(config.time_spread * torch.randn(n, generator=generator, device=device))
    return t if config.time_shift == 1 else shift_times(t, config.time_shift)


def draw(
    config: FlowConfig, block: Tensor, generator: torch.Generator | None = None, told_noise: bool = False
) -> FlowDraw:
    """Draw times, noise, known slices and dropped conditions for a batch.

    Args:
        config: The flow.
        block: The batch's target ``[B, C, T, h, w]``: gives shape, dtype and device.
        generator: Source of randomness on the block's device; None: the global one.
        told_noise: The network is told the level of the condition noise: it is drawn for each sample.

    Returns:
        The draw, in a fixed order of draws for a given configuration.
    """
    batch, channels, slices = block.shape[:3]
    device = block.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)

    t = sample_times(batch, config, generator, device)
    noise = normal(*block.shape)
    if config.noise_offset:
        noise = noise + config.noise_offset * normal(batch, channels, 1, 1, 1)
    condition_noise = normal(*block.shape)
    probabilities = (config.text_dropout, config.previous_dropout, config.length_dropout)
    dropped = [uniform() < p if p else None for p in probabilities]
    level = config.condition_noise * (uniform() if told_noise else torch.ones(batch, device=device))
    known = None
    if config.known_share:
        count = (1 + config.most_known * uniform()).long() * (uniform() < config.known_share)
        known = torch.arange(slices, device=device) < count[:, None]
    return FlowDraw(t, noise, level[:, None, None, None, None] * condition_noise, level, known, *dropped)


def flow_matching_loss(prediction: Tensor, velocity: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean squared error of the velocity of each sample, ``[B]`` float32, over the unknown slices."""
    error = F.mse_loss(prediction.float(), velocity.float(), reduction="none")
    if known is None:
        return error.flatten(1).mean(dim=1)
    return mean_unknown(error, known)


def pair_difference_loss(
    prediction: Tensor, velocity: Tensor, partner: Tensor, known: Tensor | None = None
) -> Tensor:
    """The part of the squared error in which a sample and its partner differ, ``[B]`` float32.

    For errors r and r' of a pair, (r² + r'²) / 2 = ((r + r') / 2)² + ((r - r') / 2)²: the last term is what
    only the condition can explain where two samples share noise, time and patient. Contrastive flow matching
    (Stoica et
    al. 2025) pushes predictions of different conditions apart; here the difference itself has a target.

    Args:
        prediction: ``[B, C, T, h, w]``.
        velocity: Same shape.
        partner: ``[B]``, the row of each sample's partner.
        known: ``[B, T]``, equal for partners.
    """
    residual = (prediction - velocity).float()
    difference = (residual - residual[partner]).square() / 4
    return difference.flatten(1).mean(dim=1) if known is None else mean_unknown(difference, known)


def mean_unknown(values: Tensor, known: Tensor) -> Tensor:
    """Mean ``[B]`` of ``values [B, C, T, h, w]`` over the slices that are not ``known [B, T]``."""
    weight = (~known).to(values.dtype)  # [B, T]
    return (values.mean(dim=(1, 3, 4)) * weight).sum(dim=1) / weight.sum(dim=1)


def training_path(config: FlowConfig) -> LinearPath:
    """The path of a configuration."""
    return LinearPath(config.path_offset)
