"""Fréchet distances as torchmetrics, for validation during training: no files, exact under DDP.

Keep them in a callback, not in the module: a bf16 module would cast the float64 sums silently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ctflow.metrics.ct_backbone import ct_input
from ctflow.metrics.frechet import Moments, frechet_from_moments
from ctflow.metrics.images import clip_at, slices_at
from ctflow.metrics.random_backbone import Dimensions, RandomBackbone, projected_moments


class FeatureNetwork(NamedTuple):
    """A trained network and the metric it gives.

    Attributes:
        metric: ``fid``, ``fvd`` or ``fd_ct3d``.
        network: 8-bit images, clips or a scaled volume to features ``[N, width]``.
        width: Of the features.
    """

    metric: str
    network: nn.Module
    width: int


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

    def __init__(
        self, embedded: Dimensions | None, trained: FeatureNetwork | None, batch: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.batch, self.projected = batch, trained is None
        if trained is not None:
            self.backbone, width = trained.network.eval(), trained.width
        else:
            assert embedded is not None
            random = RandomBackbone(embedded).eval()
            self.backbone, width = random, random.width
        for side in ("real", "fake"):
            for name, shape in (("count", ()), ("total", (width,)), ("outer", (width, width))):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{side}_{name}", zeros, dist_reduce_fx="sum")

    def forget_fake(self) -> None:
        """Start another scored set against the same reference, whose features are kept."""
        for name in ("fake_count", "fake_total", "fake_outer"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        self._computed = None

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
        return self._distance(real, fake)

    def _distance(self, real: Moments, fake: Moments) -> Tensor:
        return frechet_from_moments(*(projected_moments(real, fake) if self.projected else (real, fake)))


class FrechetSliceMetric(_FrechetMetric):
    """``fid``, or ``fid_rand2d`` with the embedded 2D backbone: Fréchet distance over axial slices.

    Args:
        resolution: Side the slices are resampled to; None keeps them as they are.
        batch: Slices per pass through the backbone.
        trained: Another network than the embedded one.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        resolution: int | None = None,
        batch: int = 64,
        trained: FeatureNetwork | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(2, trained, batch, **kwargs)
        self.resolution = resolution
        self.name = trained.metric if trained else "fid_rand2d"

    def update(self, hu: Tensor, real: bool) -> None:
        """Add slices.

        Args:
            hu: ``[N, 1, H, W]`` in HU.
            real: Whether they belong to the reference set.
        """
        self._add(slices_at(hu, self.resolution), real)


class FrechetClipMetric(_FrechetMetric):
    """``fvd_f16``, or ``fvd_rand3d_f16`` with the embedded 3D backbone: Fréchet distance over clips.

    Args:
        frames: Consecutive slices in a clip.
        resolution: Side the slices are resampled to; None keeps them as they are.
        batch: Clips per pass through the backbone.
        trained: Another network than the embedded one.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        frames: int = 16,
        resolution: int | None = None,
        batch: int = 4,
        trained: FeatureNetwork | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(3, trained, batch, **kwargs)
        self.frames, self.resolution = frames, resolution
        self.name = f"{trained.metric if trained else 'fvd_rand3d'}_f{frames}"

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


class FrechetVolumeMetric(_FrechetMetric):
    """``fd_ct3d``: Fréchet distance over whole volumes with the CT-trained backbone.

    With no more volumes than dimensions the features are taken as uncorrelated, as in an evaluation
    (``DiagonalFrechetStatistic``).

    Args:
        trained: The network.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    def __init__(self, trained: FeatureNetwork, **kwargs: Any) -> None:
        super().__init__(None, trained, batch=1, **kwargs)
        self.name, self.width = trained.metric, trained.width

    def update(self, hu: Tensor, real: bool) -> None:
        """Add a volume.

        Args:
            hu: ``[slices, rows, columns]`` in HU, axes S,P,R.
            real: Whether it belongs to the reference set.
        """
        self._add(ct_input(hu), real)

    def _distance(self, real: Moments, fake: Moments) -> Tensor:
        if min(float(real.count), float(fake.count)) > self.width:
            return super()._distance(real, fake)
        means = real.total / real.count - fake.total / fake.count
        spreads = [m.covariance.diagonal().clamp_min(0).sqrt() for m in (real, fake)]
        return means.square().sum() + (spreads[0] - spreads[1]).square().sum()
