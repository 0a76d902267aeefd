"""Drift: do blocks far from the start leave the real distribution, at the same axial positions?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from ctflow.metrics.images import SCORE_WINDOW
from ctflow.metrics.random_backbone import SPREAD_FLOOR
from ctflow.types import BLOCK_LENGTH

STATISTICS = ("mean_hu", "std_hu", "laplacian")
MIN_REAL = 8
"""Fewest real slices at the height of a window that is compared with them."""


def slice_statistics(hu: Tensor) -> Tensor:
    """Mean HU, standard deviation and log-variance of the Laplacian of each slice.

    Args:
        hu: ``[S, H, W]``; clipped to -1000 … 1000 HU.

    Returns:
        ``[S, 3]`` in float64; NaN for NaN slices.
    """
    x = hu.double().clamp(*SCORE_WINDOW)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64, device=hu.device)
    laplacian = F.conv2d(x.unsqueeze(1), kernel.view(1, 1, 3, 3)).flatten(1)
    flat = x.flatten(1)
    return torch.stack([flat.mean(1), flat.std(1), laplacian.var(1).clamp_min(1.0).log()], 1)


def theil_sen(values: Sequence[float]) -> float:
    """Median slope over all pairs of ``(index, value)``; NaN values are left out, NaN below two."""
    points = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    slopes = [(v - u) / (j - i) for i, u in points for j, v in points if j > i]
    return float(np.median(slopes)) if slopes else math.nan


def last_over_first(values: Sequence[float]) -> float:
    """The last finite value over the first one; NaN where there are fewer than two."""
    finite = [v for v in values if math.isfinite(v)]
    return finite[-1] / finite[0] if len(finite) > 1 and finite[0] > 0 else math.nan


def window_distances(
    features: NDArray[np.floating],
    slices: int,
    real: NDArray[np.floating],
    heights: NDArray[np.floating],
) -> list[float]:
    """Distance of every full window of 16 slices of a volume from real slices at the same relative height.

    A window's mean features less the mean of the real slices there, in the standard deviations of these
    slices, root mean square over the features.

    Args:
        features: Of the volume's slices ``[n, d]``, from the inferior end.
        slices: Length of the volume.
        real: Features of real slices ``[m, d]``.
        heights: Their relative heights ``[m]``, 0 … 1.

    Returns:
        One per window; NaN where fewer than ``MIN_REAL`` real slices lie.
    """
    found = []
    for first in range(0, len(features) - BLOCK_LENGTH + 1, BLOCK_LENGTH):
        last = first + BLOCK_LENGTH
        near = real[(heights >= first / slices) & (heights <= last / slices)]
        if len(near) < MIN_REAL:
            found.append(math.nan)
            continue
        spread = np.std(near, 0)
        spread = np.maximum(spread, SPREAD_FLOOR * max(float(np.median(spread)), 1e-12))
        own = features[first:last].mean(0)
        found.append(float(np.sqrt((((own - near.mean(0)) / spread) ** 2).mean())))
    return found


class DriftMonitor(Metric):
    """Per-slice statistics z-scored against real slices in the same 16-slice window, and their trend.

    Args:
        windows: Windows counted from the inferior end; later slices are left out.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, windows: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.windows = windows
        self.add_state("count", torch.zeros(2, windows, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("total", "squares"):
            zeros = torch.zeros(2, windows, len(STATISTICS), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, volume: Tensor, real: bool) -> None:
        """Add one volume, its end slices cut off.

        Args:
            volume: HU ``[S, H, W]``, or its ``slice_statistics`` ``[S, 3]``; NaN slices are left out.
            real: Whether it belongs to the reference.
        """
        volume = volume.to(self.device)
        statistics = slice_statistics(volume) if volume.ndim == 3 else volume
        rows = torch.arange(len(statistics), device=statistics.device)
        keep = torch.isfinite(statistics).all(1) & (rows < self.windows * BLOCK_LENGTH)
        window, values, side = rows[keep] // BLOCK_LENGTH, statistics[keep], int(real)
        self.count[side] = self.count[side].index_add(0, window, torch.ones_like(values[:, 0]))
        self.total[side] = self.total[side].index_add(0, window, values)
        self.squares[side] = self.squares[side].index_add(0, window, values.square())

    def z_scores(self) -> Tensor:
        """``[windows, 3]``: (mean of fake - mean of real) / std of real; NaN for windows without both."""
        mean = self.total / self.count.unsqueeze(-1)
        variance = (self.squares[1] / self.count[1].unsqueeze(-1) - mean[1].square()).clamp_min(1e-12)
        return (mean[0] - mean[1]) / variance.sqrt()

    def compute(self) -> dict[str, float]:
        """``drift_z`` (mean |z| over all windows) and ``drift_z_slope`` (its Theil-Sen slope per block)."""
        z = self.z_scores().abs().mean(1)
        finite = z[torch.isfinite(z)]
        return {
            "drift_z": float(finite.mean()) if len(finite) else math.nan,
            "drift_z_slope": theil_sen(z.tolist()),
        }
