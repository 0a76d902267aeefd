"""Fréchet distances of validation rollouts, by the embedded networks and by trained ones that are named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.config.evaluation import FeatureFiles
from ctflow.metrics import FrechetClipMetric, FrechetSliceMetric
from ctflow.metrics.ct_backbone import ct_backbone
from ctflow.metrics.streaming import FeatureNetwork, FrechetVolumeMetric
from ctflow.metrics.trained_backbones import (
    I3D_FEATURES,
    INCEPTION_FEATURES,
    I3DBackbone,
    InceptionBackbone,
)
from ctflow.types import BLOCK_LENGTH

RolloutMetric = FrechetSliceMetric | FrechetClipMetric | FrechetVolumeMetric


class _Features(nn.Module):
    """Inception's features without its logits."""

    def __init__(self, network: InceptionBackbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def rollout_metrics(files: FeatureFiles, device: torch.device) -> list[RolloutMetric]:
    """``fid_rand2d`` and ``fvd_rand3d_f16``; ``fid``, ``fvd_f16``, ``fd_ct3d`` where weights are named.

    The files are those of an evaluation, and so are the names.

    Raises:
        WeightsError: Weights that are missing, have another hash or another layout.
    """
    found: list[RolloutMetric] = [FrechetSliceMetric(), FrechetClipMetric(BLOCK_LENGTH)]
    if files.inception:
        network = _Features(InceptionBackbone(Path(files.inception), files.inception_sha256))
        found.append(FrechetSliceMetric(trained=FeatureNetwork("fid", network, INCEPTION_FEATURES)))
    if files.i3d:
        video = I3DBackbone(Path(files.i3d), files.i3d_sha256)
        found.append(FrechetClipMetric(BLOCK_LENGTH, trained=FeatureNetwork("fvd", video, I3D_FEATURES)))
    if files.ct3d:
        volumes = ct_backbone(files.ct3d, files.ct3d_sha256, device)
        found.append(FrechetVolumeMetric(FeatureNetwork("fd_ct3d", volumes, volumes.width)))
    return found


def images_of(metric: RolloutMetric, volume: Tensor) -> list[Tensor]:
    """A metric's input of a volume ``[S, H, W]`` in HU: slices, whole blocks as clips, or itself."""
    if not len(volume):
        return []
    if isinstance(metric, FrechetVolumeMetric):
        return [volume]
    if isinstance(metric, FrechetSliceMetric):
        return [volume[:, None]]
    count = len(volume) // BLOCK_LENGTH
    blocks = volume[: count * BLOCK_LENGTH].reshape(count, 1, BLOCK_LENGTH, *volume.shape[1:])
    return [blocks] if count else []
