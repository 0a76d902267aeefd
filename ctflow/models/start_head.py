"""The FMvT's start head: corrects a volume's first block along the directions in which such blocks vary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_VARIANCE = 1e-4
"""A direction without variance would be zero over zero at t = 0."""
_LEAST_TIME = 1e-3
_ROWS = 256
"""Blocks in single precision at a time."""


class StartHead(nn.Module):
    """Reads and corrects a volume's first block along the principal directions of such blocks.

    The first block chooses the patient, and most of that lies in a few directions, each of which is
    spread over all tokens. Least squares say how to read them: for a component of variance λ and noise of
    unit variance, z = (1 − t) x + t ε has the variance P = (1 − t)² λ + t², the estimate is E = μ + (1 −
    t) λ / P · (z − (1 − t) μ), and √λ t / √P is what remains unknown (Wiener's filter; ``Spectrum`` knows
    it for frequencies). A small network reads two numbers of every direction: z over √P, and the distance
    of the transformer's estimate from E over what remains unknown. It answers in units of what remains
    unknown. Its last layers start at zero: a trained network can be given this head.

    Shapes: B samples, K directions, D numbers of a block ``[C, T, h, w]``.

    Args:
        block: Channels, slices, rows, columns.
        directions: K.
        hidden: Width of the modulators.
    """

    directions: Tensor
    """``[K, D]`` int8, because in a small checkpoint they are the greatest part. Each row is its direction up
    to a factor; ``unit_directions`` are of length 1. Zeros until they are measured."""
    variance: Tensor
    """Of the data along them ``[K]``, falling."""
    mean: Tensor
    """The data's mean along them ``[K]``."""

    def __init__(self, block: tuple[int, ...], directions: int, hidden: int) -> None:
        super().__init__()
        self.block = block
        size = torch.Size(block).numel()
        self.register_buffer("directions", torch.zeros(directions, size, dtype=torch.int8))
        self.register_buffer("variance", torch.ones(directions))
        self.register_buffer("mean", torch.zeros(directions))
        width = 4 * directions
        self.gates = nn.Linear(hidden, 2 * directions)
        self.layers = nn.Sequential(
            nn.Linear(2 * directions + hidden, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.proj = nn.Linear(width, directions)

    def forward(self, z: Tensor, data: Tensor, times: Tensor, time: Tensor) -> Tensor:
        """What to add to the velocity.

        Args:
            z: Noisy block ``[B, C, T, h, w]``.
            data: The network's estimate of the data, same shape.
            times: Of the blocks ``[B]``; first blocks hold no known slices.
            time: The network's modulators ``[B, T or 1, hidden]``.

        Returns:
            ``[B, C, T, h, w]`` float32.

        Raises:
            ValueError: A block of another size.
        """
        if z.shape[1:] != torch.Size(self.block):
            raise ValueError(
                f"this network knows the principal directions of blocks {list(self.block)}, found "
                f"{list(z.shape[1:])}"
            )
        # Half precision would round the noise that the estimate has to take out.
        with torch.autocast("cpu" if z.device.type == "meta" else z.device.type, enabled=False):
            t = times.float()[:, None].clamp_min(_LEAST_TIME)  # [B, 1]
            mean, variance = self.mean.float(), self.variance.float()
            deviation = ((1 - t).square() * variance + t.square()).sqrt()  # [B, K]
            noisy = (self._components(z) - (1 - t) * mean) / deviation  # [B, K]
            known = mean + (1 - t) * variance / deviation * noisy  # [B, K]
            unknown = variance.sqrt() * t / deviation  # [B, K]
            apart = (self._components(data) - known) / unknown  # [B, K]
            told = time.float().mean(dim=1)  # [B, hidden]
            of_noisy, of_apart = self.gates(nn.functional.silu(told)).chunk(2, dim=1)  # [B, K] each
            read = torch.cat([noisy, apart, told], dim=1)  # [B, 2K + hidden]
            answer = of_noisy * noisy + of_apart * apart + self.proj(self.layers(read))  # [B, K]
            # dz/dt = (z - x) / t: a correction of the data by unknown * answer.
            velocity = -(unknown / t * answer) @ self.unit_directions()  # [B, D]
            return velocity.view_as(z)

    @torch.no_grad()
    def measure(self, blocks: Iterable[Tensor]) -> int:
        """Set directions, variance and mean to those of first blocks; returns the number of blocks.

        Args:
            blocks: Batches of data ``[B, C, T, h, w]``; all are held in half precision while it lasts.

        Raises:
            ValueError: There are fewer blocks than directions.
        """
        data = torch.cat(
            [block.half().flatten(1) for block in blocks] or [self.directions[:0].half()]
        )  # [N, D]
        wanted = len(self.variance)
        if len(data) <= wanted:
            raise ValueError(
                f"{wanted} principal directions need more than {wanted} first blocks, found {len(data)}"
            )
        mean = data.mean(dim=0, dtype=torch.float32)  # [D]
        rows = data.split(_ROWS)
        # From the blocks' products with each other: there are fewer blocks than numbers in one.
        gram = torch.cat(
            [
                torch.cat([(row.float() - mean) @ (column.float() - mean).T for column in rows], dim=1)
                for row in rows
            ]
        ).double()  # [N, N]
        values, vectors = torch.linalg.eigh(gram)  # rising
        values, vectors = values.flip(0)[:wanted], vectors.flip(1)[:, :wanted].float()
        parts = zip(vectors.split(_ROWS), rows, strict=True)
        sums = torch.stack([part.T @ (row.float() - mean) for part, row in parts]).sum(dim=0)
        self.directions.copy_(_eight_bits(sums))
        self.variance.copy_((values / len(data)).clamp_min(LEAST_VARIANCE))
        self.mean.copy_(self.unit_directions() @ mean)
        return len(data)

    def unit_directions(self) -> Tensor:
        """The directions ``[K, D]`` float32, orthonormal but for the rounding to eight bits."""
        return nn.functional.normalize(self.directions.float(), dim=1)

    def _components(self, block: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` to ``[B, K]``."""
        return block.float().flatten(1) @ self.unit_directions().T

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights from before directions had eight bits hold them in float16."""
        name = f"{prefix}directions"
        if name in state_dict and state_dict[name].is_floating_point():
            state_dict[name] = _eight_bits(state_dict[name].float())
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _eight_bits(rows: Tensor) -> Tensor:
    """Rows ``[K, D]`` as int8, the greatest number of each as ±127; zeros stay zeros."""
    return (rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-20) * 127).round().to(torch.int8)
