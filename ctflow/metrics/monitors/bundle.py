"""All monitors at once, as a validation callback wants them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.metrics.monitors.checkerboard import CheckerboardMonitor
from ctflow.metrics.monitors.drift import DriftMonitor
from ctflow.metrics.monitors.seam import SeamMonitor
from ctflow.metrics.monitors.white import EndMonitor, volume_end, white_slices


class VolumeMonitors(nn.Module):
    """Seam ratio, checkerboard, ends and drift of generated volumes.

    Every process of a distributed run calls ``compute``, also one that saw no volume; sums are
    synchronised. Give the result to ``alarms`` for the lines of the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seam, self.checkerboard = SeamMonitor(), CheckerboardMonitor()
        self.end, self.drift = EndMonitor(), DriftMonitor()

    def update(self, hu: Tensor, requested: int) -> None:
        """Add a generated volume ``[S, H, W]`` in HU and the number of slices it was asked to have."""
        self.end.update(hu, requested)
        body = hu[: volume_end(white_slices(hu))] if len(hu) else hu
        if len(body):
            self.seam.update(body)
            self.checkerboard.update(body)
            self.drift.update(body, real=False)

    def update_real(self, hu: Tensor) -> None:
        """Add a real volume ``[S, H, W]`` in HU, against which drift is measured."""
        self.drift.update(hu, real=True)

    def reset(self) -> None:
        """Start over."""
        for monitor in (self.seam, self.checkerboard, self.end, self.drift):
            monitor.reset()

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Every monitor's numbers by name; NaN where nothing was seen."""
        found: dict[str, float] = {}
        for monitor in (self.seam, self.checkerboard, self.end, self.drift):
            found |= monitor.compute()
        return found
