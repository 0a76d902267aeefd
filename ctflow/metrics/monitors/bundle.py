"""All monitors at once: what is kept of a volume, and the one reduction of validation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from ctflow.metrics.monitors.checkerboard import CheckerboardMonitor, checkerboard
from ctflow.metrics.monitors.drift import STATISTICS, DriftMonitor, slice_statistics
from ctflow.metrics.monitors.seam import SeamMonitor, boundary_ratios, sharpest_steps
from ctflow.metrics.monitors.white import EndMonitor, volume_end, white_slices


@dataclass(frozen=True)
class MonitorRecord:
    """The monitors' input of one volume of S slices, its white end cut off for all but ``white``.

    Attributes:
        ratios: ``[S - 1]``, see ``boundary_ratios``.
        statistics: ``[S, 3]``, see ``slice_statistics``.
        checkerboard: A ratio for each of ``PERIODS``.
        white: ``[S]``, which slices are white.
        sharpest: See ``sharpest_steps``.
    """

    ratios: Tensor
    statistics: Tensor
    checkerboard: Tensor
    white: Tensor
    sharpest: Tensor

    @classmethod
    def of(cls, hu: Tensor) -> MonitorRecord:
        """Of a volume ``[S, H, W]`` in HU; slices that do not count are NaN."""
        white = white_slices(hu)
        body = hu[: volume_end(white)]
        statistics = slice_statistics(body) if len(body) else hu.new_zeros(0, len(STATISTICS)).double()
        grid = torch.tensor(list(checkerboard(body).values()), dtype=torch.float64)
        return cls(boundary_ratios(body), statistics, grid, white, sharpest_steps(body))


class VolumeMonitors(nn.Module):
    """Seam ratio, checkerboard, ends and drift of generated volumes.

    Every process of a distributed run calls ``compute``, also one that saw no volume; sums are
    synchronised. Give the result to ``alarms`` for the lines of the log.

    Args:
        kwargs: Passed to every ``torchmetrics.Metric``, for example ``sync_on_compute=False``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.seam, self.checkerboard = SeamMonitor(**kwargs), CheckerboardMonitor(**kwargs)
        self.sharpest = MeanMetric(nan_strategy="ignore", **kwargs).set_dtype(torch.float64)
        self.end, self.drift = EndMonitor(**kwargs), DriftMonitor(**kwargs)

    def update(self, volume: Tensor | MonitorRecord, requested: int, overlap: int = 0) -> None:
        """Add a generated volume.

        Args:
            volume: HU ``[S, H, W]``, or what was kept of them.
            requested: Slices it was asked to have.
            overlap: Slices that each block repeats of the one before.
        """
        record = volume if isinstance(volume, MonitorRecord) else MonitorRecord.of(volume)
        self.end.update(record.white, requested)
        self.seam.update(record.ratios, overlap)
        self.sharpest.update(record.sharpest)
        self.checkerboard.update(record.checkerboard)
        self.drift.update(record.statistics, real=False)

    def update_real(self, volume: Tensor | MonitorRecord) -> None:
        """Add a real volume, HU ``[S, H, W]`` or what was kept of them, against which drift is measured."""
        self.drift.update(volume.statistics if isinstance(volume, MonitorRecord) else volume, real=True)

    def reset(self) -> None:
        """Start over."""
        for monitor in self._all():
            monitor.reset()

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Every monitor's numbers by name; NaN where nothing was seen."""
        found: dict[str, float] = {}
        for monitor in self._all():
            value = monitor.compute()
            found |= value if isinstance(value, dict) else {"sharpest_steps": float(value)}
        return found

    def _all(self) -> tuple[Metric, ...]:
        return self.seam, self.sharpest, self.checkerboard, self.end, self.drift
