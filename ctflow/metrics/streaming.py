"""Fréchet distances as torchmetrics, for validation during training: no files, exact under DDP.

Keep them in a callback, not in the module: a bf16 module would cast the float64 sums silently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ctflow.metrics.frechet import Moments, frechet_from_moments
from ctflow.metrics.images import clip_at, slices_at
from ctflow.metrics.random_backbone import Dimensions, RandomBackbone, projected_moments


class _FrechetMetric(Metric):
    """Streamed sums of raw features of real and fake images; a rank that never updates adds zeros."""

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    real_count: Tensor
    real_total: Tensor
    real_outer: Tensor
    fake_count: Tensor
    fake_total: Tensor
    fake_outer: Tensor

    def __init__(self, dimensions: Dimensions, resolution: int | None, batch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resolution, self.batch = resolution, batch
        self.backbone = RandomBackbone(dimensions).eval()
        width = self.backbone.width
        for side in ("real", "fake"):
            for name, shape in (("count", ()), ("total", (width,)), ("outer", (width, width))):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", zeros, dist_reduce_fx="sum")

    def _add(self, images: Tensor, real: bool) -> None:
        side = "real" if real else "fake"
        for part in images.split(self.batch):
            with torch.autocast(part.device.type, enabled=False):
                moments = Moments.of(self.backbone(part.to(self.device)))
            for name in ("count", "total", "outer"):
                key = f"{side}_{name}"
                setattr(self, key, getattr(self, key) + getattr(moments, name))

    def compute(self) -> Tensor:
        """The distance, float64 scalar; NaN where either set has fewer than two samples."""
        real = Moments(self.real_count, self.real_total, self.real_outer)
        fake = Moments(self.fake_count, self.fake_total, self.fake_outer)
        if min(float(real.count), float(fake.count)) < 2:
            return torch.tensor(float("nan"), dtype=torch.float64, device=self.device)
        return frechet_from_moments(*projected_moments(real, fake))


class FrechetSliceMetric(_FrechetMetric):
    """``fid_rand2d``: Fréchet distance over axial slices with the embedded 2D backbone.

    Args:
        resolution: Side the slices are resampled to; None keeps them as they are.
        batch: Slices per pass through the backbone.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    name = "fid_rand2d"

    def __init__(self, resolution: int | None = None, batch: int = 64, **kwargs: Any) -> None:
        super().__init__(2, resolution, batch, **kwargs)

    def update(self, hu: Tensor, real: bool) -> None:
        """Add slices.

        Args:
            hu: ``[N, 1, H, W]`` in HU.
            real: Whether they belong to the reference set.
        """
        self._add(slices_at(hu, self.resolution), real)


class FrechetClipMetric(_FrechetMetric):
    """``fvd_rand3d_f16`` (or another length): Fréchet distance over clips with the embedded 3D backbone.

    Args:
        frames: Consecutive slices in a clip.
        resolution: Side the slices are resampled to; None keeps them as they are.
        batch: Clips per pass through the backbone.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    def __init__(
        self, frames: int = 16, resolution: int | None = None, batch: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(3, resolution, batch, **kwargs)
        self.frames = frames

    @property
    def name(self) -> str:
        """The metric's name, with the clip length."""
        return f"fvd_rand3d_f{self.frames}"

    def update(self, hu: Tensor, real: bool) -> None:
        """Add clips.

        Args:
            hu: ``[N, 1, frames, H, W]`` in HU.
            real: Whether they belong to the reference set.

        Raises:
            ValueError: Clips of another length.
        """
        if hu.ndim == 5 and hu.shape[2] != self.frames:
            raise ValueError(f"{self.name} takes clips of {self.frames} slices, found {tuple(hu.shape)}")
        self._add(clip_at(hu, self.resolution), real)
