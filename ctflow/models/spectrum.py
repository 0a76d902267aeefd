"""The spectrum of the data, and what it says about a noisy block before any network is asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LEAST_POWER = 1e-4
"""A frequency without power would be zero over zero at t = 0."""


class LinearEstimate(NamedTuple):
    """What a noisy block says by its spectrum alone.

    Attributes:
        data: The data, float32 ``[B, C, T, h, w]``.
        velocity: The velocity dz/dt, same shape.
    """

    data: Tensor
    velocity: Tensor


class Spectrum(nn.Module):
    """Mean square of the data's discrete cosine transform, and the best linear estimate from it.

    The transform (DCT-II, orthonormal) runs over slices, rows and columns of each channel. For a coefficient
    of power λ and noise of unit variance, z = (1 − t) x + t ε has the power P = (1 − t)² λ + t². The
    least-squares estimates from that coefficient are x = (1 − t) λ / P · z (Wiener's filter) and
    v = (t − (1 − t) λ) / P · z. With λ = 1 everywhere the latter is the line of ``preconditioned`` (Karras et
    al. 2022, section 5).

    Args:
        channels: Channels of a latent.
        size: Slices, rows, columns of a block.
    """

    power: Tensor
    """``[C, T, h, w]``; ones until it is measured."""

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("power", torch.ones(channels, *size))
        for axis, length in enumerate(size):
            self.register_buffer(f"cosines{axis}", _cosines(length), persistent=False)

    def forward(self, z: Tensor, times: Tensor) -> LinearEstimate:
        """Estimate data and velocity.

        Slices that are cleaner than the noisiest one (known slices have t = 0) are scaled to its share of
        data: the estimate takes them for as noisy as the others.

        Args:
            z: Noisy block ``[B, C, T, h, w]``.
            times: ``[B, T or 1]``.

        Raises:
            ValueError: A block of another size.
        """
        if z.shape[1:] != self.power.shape:
            raise ValueError(
                f"this network knows the spectrum of blocks {list(self.power.shape)}, found "
                f"{list(z.shape[1:])}"
            )
        # Half precision would round the noise that the estimate has to take out.
        with torch.autocast("cpu" if z.device.type == "meta" else z.device.type, enabled=False):
            latest = times.float().amax(dim=1, keepdim=True)  # [B, 1]
            share = torch.where(times < latest, (1 - latest) / (1 - times), 1.0)  # [B, T or 1]
            coefficients = self._transformed(share[:, None, :, None, None] * z.float())
            t = latest[:, :, None, None, None]
            power = self.power.float()
            weight = (1 - t) * power  # [B, C, T, h, w]
            coefficients = coefficients / ((1 - t) * weight + t.square())
            return LinearEstimate(
                data=self._transformed(weight * coefficients, back=True),
                velocity=self._transformed((t - weight) * coefficients, back=True),
            )

    @torch.no_grad()
    def measure(self, blocks: Iterable[Tensor]) -> int:
        """Set the power to that of data blocks ``[B, C, T, h, w]``; returns their number.

        Raises:
            ValueError: There are none.
        """
        count, total = 0, torch.zeros_like(self.power, dtype=torch.float64)
        for block in blocks:
            total += self._transformed(block.float()).double().square().sum(dim=0)
            count += block.shape[0]
        if not count:
            raise ValueError("no blocks to measure the spectrum of")
        self.power.copy_((total / count).clamp_min(LEAST_POWER))
        return count

    def _transformed(self, x: Tensor, back: bool = False) -> Tensor:
        for axis in range(3):
            cosines: Tensor = getattr(self, f"cosines{axis}")
            cosines = cosines.float().T if back else cosines.float()
            x = (cosines @ x.movedim(2 + axis, -2)).movedim(-2, 2 + axis)
        return x


def _cosines(n: int) -> Tensor:
    """The orthonormal DCT-II of length n as a matrix: frequencies by places."""
    frequency, place = torch.arange(n)[:, None], torch.arange(n)[None]
    matrix = torch.cos(math.pi * (place + 0.5) * frequency / n) * math.sqrt(2 / n)
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])
