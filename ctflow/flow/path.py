"""The straight path between data and noise: the one place that states the direction of time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
