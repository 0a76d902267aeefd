"""The feature extractors of an evaluation, under the names of the metrics they may give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.config.evaluation import BackboneFiles
from ctflow.metrics.clip_score import TextVolumeScorer
from ctflow.metrics.ct_backbone import ct_backbone, ct_input
from ctflow.metrics.planes import PLANES, PlaneBackbone, plane_volume
from ctflow.metrics.random_backbone import RandomBackbone
from ctflow.metrics.trained_backbones import (
    I3D_FEATURES,
    INCEPTION_FEATURES,
    I3DBackbone,
    InceptionBackbone,
)
from ctflow.types import HUVolume

INCEPTION = "inception"
FEATURES, LOGITS = "features", "logits"
"""Names of a network's outputs."""

Extract = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Backbone:
    """A network that turns 8-bit slices or clips into features.

    Attributes:
        name: Key of its features in the cache.
        metric: ``fid``, ``fvd`` or their renamed forms; the clip length is added to the latter.
        kernel: The kernel distance's name beside it; empty for clips.
        projected: Whether features are whitened and projected (random convolutions) before a distance.
        width: Dimension of the distance's features; 0: depends on the number of samples.
        sha256: Of the weights.
        module: Moved to the evaluation's device.
        extract: 8-bit images to named features.
    """

    name: str
    metric: str
    kernel: str
    projected: bool
    width: int
    sha256: str
    module: nn.Module = field(repr=False)
    extract: Extract = field(repr=False)


@dataclass(frozen=True)
class Backbones:
    """All extractors of an evaluation.

    Attributes:
        slices: For slices, at least the embedded one.
        clips: For clips, at least the embedded one.
        scorer: For the agreement with reports; None where there is none.
        volumes: For whole volumes; none is embedded.
    """

    slices: tuple[Backbone, ...]
    clips: tuple[Backbone, ...]
    scorer: TextVolumeScorer | None
    volumes: tuple[VolumeBackbone, ...] = ()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every backbone's weights, by name."""
        networks: tuple[Backbone | VolumeBackbone, ...] = (*self.slices, *self.clips, *self.volumes)
        found = {network.name: network.sha256 for network in networks}
        return found | ({self.scorer.name: self.scorer.sha256} if self.scorer else {})

    @property
    def has_inception(self) -> bool:
        """Whether the Inception score can be computed."""
        return any(b.name == INCEPTION for b in self.slices)


def build_backbones(files: BackboneFiles, scorer: TextVolumeScorer | None, device: torch.device) -> Backbones:
    """The embedded extractors, and the trained ones whose files are given.

    Raises:
        WeightsError: A file that is missing, has another hash or another layout.
    """
    flat, deep = RandomBackbone(2).to(device).eval(), RandomBackbone(3).to(device).eval()
    slices = [_random("rand2d", "fid_rand2d", "kid_rand2d", flat)]
    clips = [_random("rand3d", "fvd_rand3d", "", deep)]
    if files.inception:
        network = InceptionBackbone(Path(files.inception), files.inception_sha256).to(device).eval()

        def both(images: Tensor) -> dict[str, Tensor]:
            features, logits = network(images)
            return {FEATURES: features, LOGITS: logits}

        width = INCEPTION_FEATURES
        slices.append(Backbone(INCEPTION, "fid", "kid", False, width, network.sha256, network, both))
    if files.i3d:
        video = I3DBackbone(Path(files.i3d), files.i3d_sha256).to(device).eval()
        extract = _single(video)
        clips.append(Backbone("i3d", "fvd", "", False, I3D_FEATURES, video.sha256, video, extract))
    return Backbones(tuple(slices), tuple(clips), scorer, build_volume_backbones(files, device))


def _random(name: str, metric: str, kernel: str, module: RandomBackbone) -> Backbone:
    return Backbone(name, metric, kernel, True, 0, module.sha256(), module, _single(module))


def _single(module: nn.Module) -> Extract:
    return lambda images: {FEATURES: module(images)}


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
