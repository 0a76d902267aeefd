"""Latents to unit variance and back: posterior samples are whitened on load, unwhitened before decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Whitening:
    """``whitened = (z - shift) * scale`` per channel (published-model convention: shift first, then scale).

    Attributes:
        shift: One value per latent channel, or a single one for all (FLUX: ``[0.1159]``).
        scale: One value per latent channel, or a single one for all (FLUX: ``[0.3611]``).
    """

    shift: list[float] = field(default_factory=lambda: [0.0])
    scale: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        if len(self.shift) != len(self.scale) or not self.shift:
            raise ValueError(f"whitening needs as many shifts as scales, found {self.shift} and {self.scale}")
        if any(s <= 0 for s in self.scale):
            raise ValueError(f"whitening scales must be positive, found {self.scale}")

    def _broadcast(self, values: list[float], z: Tensor, channel_dim: int) -> Tensor:
        shape = [1] * z.ndim
        shape[channel_dim] = len(values)
        return torch.tensor(values, dtype=z.dtype, device=z.device).view(shape)

    def whiten(self, z: Tensor, channel_dim: int = 1) -> Tensor:
        """Posterior samples to unit-variance latents; channels on ``channel_dim``."""
        shift = self._broadcast(self.shift, z, channel_dim)
        return (z - shift) * self._broadcast(self.scale, z, channel_dim)

    def unwhiten(self, z: Tensor, channel_dim: int = 1) -> Tensor:
        """Unit-variance latents back to what the A-VAE decodes; channels on ``channel_dim``."""
        scale = self._broadcast(self.scale, z, channel_dim)
        return z / scale + self._broadcast(self.shift, z, channel_dim)
