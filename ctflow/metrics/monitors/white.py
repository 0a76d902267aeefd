"""White slices: whether volumes end where they were asked to, and only there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ctflow.types import BLOCK_LENGTH

WHITE_HU = 800.0
WHITE_SHARE = 0.9


def white_slices(hu: Tensor) -> Tensor:
    """Which slices of ``[S, H, W]`` are white: at least 90 % of their voxels above +800 HU."""
    return (hu > WHITE_HU).double().mean((1, 2)) >= WHITE_SHARE


def volume_end(white: Tensor) -> int:
    """Slices before the terminal run of white ones (all of them where the last is not white)."""
    dark = torch.nonzero(~white).flatten()
    return int(dark[-1]) + 1 if len(dark) else 0


class EndMonitor(Metric):
    """Where volumes end.

    ``premature`` is the share of volumes that end more than one block before the requested slice,
    ``length_error`` the mean absolute difference in slices, ``interior_white`` the mean number of white
    slices before the end.
    """

    full_state_update = False
    premature: Tensor
    error: Tensor
    interior: Tensor
    volumes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("premature", "error", "interior", "volumes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, volume: Tensor, requested: int) -> None:
        """Add one volume.

        Args:
            volume: HU ``[S, H, W]``, or its ``white_slices`` ``[S]``.
            requested: Slices it was asked to have.
        """
        white = white_slices(volume) if volume.ndim == 3 else volume
        end = volume_end(white)
        self.premature += float(end < requested - BLOCK_LENGTH)
        self.error += abs(end - requested)
        self.interior += float(white[:end].sum())
        self.volumes += 1

    def compute(self) -> dict[str, float]:
        """``premature``, ``length_error`` in slices, ``interior_white``; NaN without volumes."""
        return {
            "premature": float(self.premature / self.volumes),
            "length_error": float(self.error / self.volumes),
            "interior_white": float(self.interior / self.volumes),
        }
