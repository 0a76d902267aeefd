"""Checkerboards: fine structure that repeats with the period of a decoder's upsampling or of a patch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from ctflow.metrics.images import SCORE_WINDOW

PERIODS = (2, 4, 8, 16)
CLAMP = 0.05
BOX = 5


def checkerboard(hu: Tensor) -> dict[int, float]:
    """Per period p: ``Var(fold) / Var(h) · HW / p²``; noise without a grid gives 1 over the number of slices.

    ``x`` is scaled to ±1, ``h = clamp(x - box5(x), ±0.05)``; ``h`` averaged over slices is folded modulo p,
    and ``Var(h)`` is taken over all voxels. Lines that keep their place through a scan (its table) count too,
    so a value is held against that of real scans.

    Args:
        hu: Slices ``[S, H, W]`` in HU; slices that are NaN are left out.

    Returns:
        A value for each period; NaN where no slice is left or a slice is flat everywhere.
    """
    hu = hu[~torch.isnan(hu).any(2).any(1)]
    if not len(hu):
        return dict.fromkeys(PERIODS, math.nan)
    low, high = SCORE_WINDOW
    x = ((hu.float().clamp(low, high) - low) * (2 / (high - low)) - 1).unsqueeze(1)
    box = F.avg_pool2d(F.pad(x, [BOX // 2] * 4, mode="replicate"), BOX, 1)
    fine = (x - box).clamp(-CLAMP, CLAMP)[:, 0].double()  # [S, H, W]
    h = fine.mean(0)
    result = {}
    for p in PERIODS:
        rows, columns = len(h) // p, h.shape[1] // p
        cropped = h[: rows * p, : columns * p]
        fold = cropped.reshape(rows, p, columns, p).mean((0, 2))
        result[p] = float(fold.var(unbiased=False) / fine.var(unbiased=False)) * rows * columns
    return result


class CheckerboardMonitor(Metric):
    """Mean over volumes of the ratio of each period."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            zeros = torch.zeros(len(PERIODS), dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, volume: Tensor) -> None:
        """Add one volume: HU ``[S, H, W]``, or its value for each of ``PERIODS``."""
        found = list(checkerboard(volume).values()) if volume.ndim == 3 else volume
        values = torch.as_tensor(found, dtype=torch.float64, device=self.device)
        finite = torch.isfinite(values)
        self.total += torch.where(finite, values, 0.0)
        self.count += finite

    def compute(self) -> dict[str, float]:
        """``checkerboard_2`` to ``checkerboard_16``; NaN without volumes."""
        means = (self.total / self.count).tolist()
        return {f"checkerboard_{p}": value for p, value in zip(PERIODS, means, strict=True)}
