"""What is kept of a volume: pooled features of slices and clips, its latent, the monitors' raw numbers, a
picture.

Keys of the arrays: ``positions`` and ``slice/<backbone>/<side>[/logits]`` per scored slice;
``starts/<frames>`` and ``clip/<backbone>/<frames>/<side>`` per clip; ``latent``; ``ratios``, ``statistics``,
``checkerboard`` of the monitors; ``montage``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ctflow.anatomy import findings, measure
from ctflow.data.montage import montage
from ctflow.evaluation.backbones import Backbones
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.settings import REAL, ScoredVolume, Setting
from ctflow.metrics.images import clip_at, slices_at
from ctflow.metrics.monitors import boundary_ratios, checkerboard, slice_statistics, white_slices
from ctflow.types import BLOCK_LENGTH, HUVolume

SLICES_PER_PASS = {"cpu": 8, "cuda": 64}
"""Small passes stay in a CPU's cache."""
CLIP_SLICES_PER_PASS = 64
TILE = 96


@dataclass(frozen=True)
class FeaturePlan:
    """What is extracted, the same for generated and real volumes.

    Attributes:
        resolutions: Sides at which slices and clips are scored.
        native: The model's own side, at which the monitors look at every volume.
        clip_lengths: Slices in a clip.
        clip_stride: Between the starts of clips of one block; longer ones start every half length.
    """

    resolutions: tuple[int, ...]
    native: int
    clip_lengths: tuple[int, ...]
    clip_stride: int

    def stride(self, frames: int) -> int:
        """Slices between the starts of two clips of this length."""
        return self.clip_stride if frames <= BLOCK_LENGTH else max(frames // 2, 1)


class FeatureExtractor:
    """Volumes in HU to ``CaseFeatures``, one volume in memory at a time.

    Args:
        plan: What to extract.
        backbones: With what.
        device: Where.
    """

    def __init__(self, plan: FeaturePlan, backbones: Backbones, device: torch.device) -> None:
        self.plan, self.backbones, self.device = plan, backbones, device

    @torch.no_grad()
    def extract(self, volume: ScoredVolume, measured: bool = False) -> CaseFeatures:
        """Everything that is kept of one volume.

        Args:
            volume: What may be scored of it.
            measured: Whether its findings are read too; only whole volumes are read.
        """
        arrays = self._slices(volume) | self._clips(volume) | self._monitors(volume)
        info: dict[str, Any] = {
            "slices": len(volume.hu),
            "requested": volume.requested,
            "stopped": volume.stopped,
            "side": volume.hu.shape[1],
            "overlap": volume.overlap,
            "end_slices": volume.end_slices,
        }
        if len(volume.positions) and self.backbones.scorer is not None:
            arrays["latent"] = self.backbones.scorer.encode_volume(volume.scored()).numpy().astype(np.float32)
        whole = volume.setting.given == 0 and not volume.setting.spliced
        if len(volume.positions) and whole and measured:
            info["findings"] = measured_findings(volume.scored())
        if len(volume.positions):
            arrays["montage"] = montage(volume.scored(), tile=TILE)
        return CaseFeatures(volume.case_id, arrays, info)

    def _slices(self, volume: ScoredVolume) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"positions": volume.positions.astype(np.int32)}
        if not len(volume.positions):
            return arrays
        hu = torch.from_numpy(volume.hu[volume.positions]).unsqueeze(1)
        for side in self.plan.resolutions:
            parts: dict[str, list[Tensor]] = {}
            for batch in hu.split(SLICES_PER_PASS[self.device.type]):
                images = slices_at(batch.to(self.device), side)
                for backbone in self.backbones.slices:
                    for name, value in backbone.extract(images).items():
                        suffix = "" if name == "features" else f"/{name}"
                        parts.setdefault(f"slice/{backbone.name}/{side}{suffix}", []).append(value.cpu())
            arrays |= {key: torch.cat(values).numpy() for key, values in parts.items()}
        return arrays

    def _clips(self, volume: ScoredVolume) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for frames in self.plan.clip_lengths:
            starts = volume.window_starts(frames, self.plan.stride(frames))
            arrays[f"starts/{frames}"] = np.array(starts, np.int32)
            for side in self.plan.resolutions if starts else ():
                parts: dict[str, list[Tensor]] = {}
                for batch in _batches(starts, max(1, CLIP_SLICES_PER_PASS // frames)):
                    hu = torch.from_numpy(np.stack([volume.hu[s : s + frames] for s in batch])).unsqueeze(1)
                    clips = clip_at(hu.to(self.device), side)
                    for backbone in self.backbones.clips:
                        value = backbone.extract(clips)["features"].cpu()
                        parts.setdefault(f"clip/{backbone.name}/{frames}/{side}", []).append(value)
                arrays |= {key: torch.cat(values).numpy() for key, values in parts.items()}
        return arrays

    def _monitors(self, volume: ScoredVolume) -> dict[str, NDArray[Any]]:
        if not len(volume.positions):
            empty = np.zeros(0)
            return {
                "ratios": empty,
                "statistics": np.zeros((0, 3)),
                "checkerboard": empty,
                "white": np.zeros(0, bool),
            }
        hu = at_side(torch.from_numpy(volume.hu), self.plan.native)
        return {
            "ratios": boundary_ratios(hu).numpy(),
            "statistics": slice_statistics(hu).numpy(),
            "checkerboard": np.array(list(checkerboard(hu).values())),
            "white": white_slices(hu).numpy(),
        }


def measured_findings(volume: HUVolume) -> dict[str, list[list[Any]]]:
    """What is found in a volume: label to a list of (side or None, size, unit), ready for JSON."""
    found = findings(measure(volume))
    return {label: [[item.side, item.size, item.unit] for item in items] for label, items in found.items()}


def real_volume(case_id: str, volume: HUVolume) -> ScoredVolume:
    """A real case (or its reconstruction) on its way into a reference or a floor."""
    return ScoredVolume(case_id, REAL, volume.hu, volume.spacing, requested=len(volume.hu))


def at_side(hu: Tensor, side: int) -> Tensor:
    """Slices ``[S, H, W]`` in HU resampled to ``side``² (bilinear, antialiased), NaN slices staying NaN."""
    if tuple(hu.shape[1:]) == (side, side) or not len(hu):
        return hu
    return F.interpolate(hu.unsqueeze(1), size=(side, side), mode="bilinear", antialias=True)[:, 0]


def restricted(features: CaseFeatures, setting: Setting, from_slice: int = 0) -> CaseFeatures:
    """Real features as a setting sees them: without the slices and clips that it could not score.

    Args:
        features: Of a volume in the setting ``REAL`` or in ``setting`` itself.
        setting: Whose rules hold.
        from_slice: Slices below it are left out too (comparisons between settings start at block 1).
    """
    first = max(setting.given, from_slice)
    arrays = dict(features.arrays)
    keep = arrays["positions"] >= first
    arrays["positions"] = arrays["positions"][keep]
    for key in arrays:
        if key.startswith("slice/"):
            arrays[key] = features.arrays[key][keep]
    for key in [k for k in arrays if k.startswith("starts/")]:
        frames = int(key.split("/")[1])
        starts = arrays[key]
        fits = starts >= first
        if setting.spliced:
            fits &= starts // BLOCK_LENGTH == (starts + frames - 1) // BLOCK_LENGTH
        arrays[key] = starts[fits]
        for name in arrays:
            if name.startswith("clip/") and name.split("/")[2] == str(frames):
                arrays[name] = features.arrays[name][fits]
    return CaseFeatures(features.case_id, arrays, features.info)


def _batches(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
