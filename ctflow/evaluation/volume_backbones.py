"""Networks that see whole volumes: which of them an evaluation has, and what they give of a volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.config.evaluation import BackboneFiles
from ctflow.metrics.ct_backbone import ct_backbone, ct_input
from ctflow.metrics.planes import PLANES, PlaneBackbone, plane_volume
from ctflow.types import HUVolume

CT3D, PLANES_2P5D = "ct3d", "fid_2p5d"
WHOLE = "volume"
"""The one output of a network that gives one vector per volume."""

ExtractVolume = Callable[[HUVolume], dict[str, Tensor]]


@dataclass(frozen=True)
class VolumeBackbone:
    """A network that turns a volume in HU into features.

    Attributes:
        name: ``ct3d`` or ``fid_2p5d``; key of its features in the cache.
        sha256: Of the weights, with the arithmetic where that changes features.
        label: What it is, for the notes of the table.
        module: On the evaluation's device.
        extract: A volume to its outputs, each ``[n, width]``: 1 vector, or one per slice of a plane.
    """

    name: str
    sha256: str
    label: str
    module: nn.Module = field(repr=False)
    extract: ExtractVolume = field(repr=False)


def build_volume_backbones(files: BackboneFiles, device: torch.device) -> tuple[VolumeBackbone, ...]:
    """Those whose weights are named; the embedded random networks see slices and clips alone.

    Raises:
        WeightsError: Weights that are missing, have another hash or another layout.
    """
    found = []
    if files.ct3d:
        found.append(_ct3d(files, device))
    if files.fid_2p5d:
        network = PlaneBackbone(Path(files.fid_2p5d), files.fid_2p5d_sha256).to(device)
        found.append(planes_backbone(network, device))
    return tuple(found)


def planes_backbone(network: PlaneBackbone, device: torch.device) -> VolumeBackbone:
    """Features of all slices of three planes."""

    def extract(volume: HUVolume) -> dict[str, Tensor]:
        return dict(zip(PLANES, network.planes(plane_volume(volume), device), strict=True))

    return VolumeBackbone(PLANES_2P5D, network.sha256, network.kind, network, extract)


def _ct3d(files: BackboneFiles, device: torch.device) -> VolumeBackbone:
    network = ct_backbone(files.ct3d, files.ct3d_sha256, device)

    def extract(volume: HUVolume) -> dict[str, Tensor]:
        return {WHOLE: network(ct_input(torch.from_numpy(volume.hu).to(device)))}

    return VolumeBackbone(CT3D, network.identity, "ResNet-152 trained on chest CT", network, extract)
