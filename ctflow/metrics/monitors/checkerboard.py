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
    """Per period p: ``Var(fold) / Var(h) · HW / p²``, about 1 for noise without a grid.

    ``x`` is scaled to ±1, ``h = clamp(x - box5(x), ±0.05)`` averaged over slices, and folded modulo p.

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
    h = (x - box).clamp(-CLAMP, CLAMP).mean(0)[0].double()  # [H, W]
    result = {}
    for p in PERIODS:
        rows, columns = len(h) // p, h.shape[1] // p
        cropped = h[: rows * p, : columns * p]
        fold = cropped.reshape(rows, p, columns, p).mean((0, 2))
        variance = cropped.var(unbiased=False)
        ratio = fold.var(unbiased=False) / variance * (rows * columns) if rows * columns else math.nan
        result[p] = float(ratio)
    return result


class CheckerboardMonitor(Metric):
    """Mean over volumes of the largest ratio over the periods 2, 4, 8 and 16."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, hu: Tensor) -> None:
        """Add one volume ``[S, H, W]`` in HU."""
        worst = max((v for v in checkerboard(hu).values() if math.isfinite(v)), default=math.nan)
        if math.isfinite(worst):
            self.total += worst
            self.count += 1

    def compute(self) -> dict[str, float]:
        """``checkerboard``; NaN without volumes."""
        return {"checkerboard": float(self.total / self.count)}
