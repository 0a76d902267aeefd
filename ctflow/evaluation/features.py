"""The record of a volume: pooled features of slices and clips, its latent, the monitors' raw numbers, a
picture, findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.anatomy import Found, findings, measure
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.settings import REAL, ScoredVolume, Setting
from ctflow.metrics.backbones import FEATURES, Backbone, Backbones
from ctflow.metrics.images import at_side, clip_at, slices_at
from ctflow.metrics.monitors import MonitorRecord
from ctflow.pictures import montage
from ctflow.types import BLOCK_LENGTH, HUVolume

SLICES_PER_PASS = {"cpu": 8, "cuda": 64}
"""Small passes stay in a CPU's cache."""
CLIP_SLICES_PER_PASS = 64
TILE = 96
SLICE = 1
"""A slice is a clip of one."""

Mask = NDArray[np.bool_]


class Key(NamedTuple):
    """Which features.

    Attributes:
        backbone: Name of the network.
        side: Pixels of the slices it saw.
        output: ``features``, or another output of the network (``logits``).
    """

    backbone: str
    side: int
    output: str = FEATURES


@dataclass(frozen=True)
class Samples:
    """Features of a volume's slices, or of its clips of one length.

    Attributes:
        starts: ``[n]``, first slice of each sample.
        values: ``[n, d]`` by what they are; without any sample there are none.
    """

    starts: NDArray[np.int32]
    values: dict[Key, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.starts)

    def keep(self, rows: Mask) -> Samples:
        """Only the samples where ``rows`` is true."""
        return Samples(self.starts[rows], {key: value[rows] for key, value in self.values.items()})


@dataclass(frozen=True)
class VolumeFacts:
    """Facts of a scored volume apart from its pixels; see ``ScoredVolume``.

    Attributes:
        slices: Its length, given slices included.
        side: Rows and columns.
        requested: Slices that were asked for.
        stopped: Whether the stop rule ended it.
        overlap: Slices that each generated block repeats of the one before.
        end_slices: Scored slices whose latent is the end slice's; None for volumes of no rollout.
        doubts: What looks wrong with a volume that was read from a file.
    """

    slices: int
    side: int
    requested: int
    stopped: bool = False
    overlap: int = 0
    end_slices: int | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseFeatures:
    """The record of one volume in one setting.

    Attributes:
        case_id: The case.
        facts: Lengths and sizes.
        slices: Features of the scored slices.
        clips: Number of slices to the features of such clips.
        monitors: Raw numbers of the monitors.
        volumes: Features ``[n, d]`` of the whole volume, by network and output; none without a network, or
            where slices are given.
        latent: ``[d]`` for the agreement with reports; None without a scorer or a scored slice.
        picture: Montage, 8-bit grey ``[H, W]``; None without a scored slice.
        findings: What was read from a whole volume; None where nothing was read.
        seconds: Wall time of making the volume.
    """

    case_id: str
    facts: VolumeFacts
    slices: Samples
    clips: dict[int, Samples]
    monitors: MonitorRecord
    volumes: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)
    latent: NDArray[np.float32] | None = None
    picture: NDArray[np.uint8] | None = None
    findings: dict[str, list[Found]] | None = None
    seconds: float = 0.0

    def samples(self, frames: int = SLICE) -> Samples:
        """The slices, or the clips of ``frames`` slices."""
        return self.slices if frames == SLICE else self.clips[frames]

    def keep(self, rule: Callable[[NDArray[np.int32], int], Mask]) -> CaseFeatures:
        """The same with fewer samples.

        Args:
            rule: First slices ``[n]`` and the length of their samples, to which of them stay.
        """
        clips = {n: clips.keep(rule(clips.starts, n)) for n, clips in self.clips.items()}
        return replace(self, slices=self.slices.keep(rule(self.slices.starts, SLICE)), clips=clips)

    def restricted(self, setting: Setting) -> CaseFeatures:
        """As a setting sees them: without the slices and clips that it could not score."""
        return self.keep(setting.may_score)


def packed(features: CaseFeatures) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Features as a JSON header and arrays, as they are stored."""
    header: dict[str, Any] = {
        "case_id": features.case_id,
        "facts": asdict(features.facts),
        "samples": [],
        "volumes": list(features.volumes),
        "findings": features.findings
        and {label: [asdict(item) for item in items] for label, items in features.findings.items()},
        "seconds": features.seconds,
    }
    arrays: dict[str, NDArray[Any]] = {k: v.cpu().numpy() for k, v in vars(features.monitors).items()}
    for frames in (SLICE, *features.clips):
        samples = features.samples(frames)
        header["samples"].append({"frames": frames, "keys": [list(key) for key in samples.values]})
        arrays[f"starts_{frames}"] = samples.starts
        arrays |= {f"values_{frames}_{i}": value for i, value in enumerate(samples.values.values())}
    arrays |= {f"volume_{i}": value for i, value in enumerate(features.volumes.values())}
    optional = {"latent": features.latent, "picture": features.picture}
    return header, arrays | {name: value for name, value in optional.items() if value is not None}


def unpacked(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> CaseFeatures:
    """The inverse of ``packed``.

    Raises:
        KeyError: Something is missing.
    """
    samples = {}
    for entry in header["samples"]:
        frames, keys = entry["frames"], [Key(*key) for key in entry["keys"]]
        values = {key: arrays[f"values_{frames}_{i}"] for i, key in enumerate(keys)}
        samples[frames] = Samples(arrays[f"starts_{frames}"], values)
    volumes = {tuple(key): arrays[f"volume_{i}"] for i, key in enumerate(header.get("volumes", []))}
    found = header["findings"]
    return CaseFeatures(
        case_id=header["case_id"],
        facts=VolumeFacts(**header["facts"] | {"doubts": tuple(header["facts"]["doubts"])}),
        slices=samples.pop(SLICE),
        clips=samples,
        monitors=MonitorRecord(
            **{name: torch.from_numpy(arrays[name]) for name in MonitorRecord.__dataclass_fields__}
        ),
        volumes=volumes,
        latent=arrays.get("latent"),
        picture=arrays.get("picture"),
        findings=None if found is None else {k: [Found(**item) for item in v] for k, v in found.items()},
        seconds=header["seconds"],
    )


@dataclass(frozen=True)
class FeaturePlan:
    """Which features are extracted, the same for generated and real volumes.

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

    @classmethod
    def of(cls, config: EvalConfig, native: int) -> FeaturePlan:
        """As configured, for volumes of this side."""
        resolutions = tuple(config.resolution) or (native,)
        return cls(resolutions, native, tuple(config.clip_lengths), config.clip_stride)

    def stride(self, frames: int) -> int:
        """Slices between the starts of clips of this length."""
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
    def extract(self, volume: ScoredVolume, with_findings: bool = False) -> CaseFeatures:
        """Everything that is kept of one volume.

        Args:
            volume: What may be scored of it.
            with_findings: Whether its findings are read too; only whole volumes are read.
        """
        facts = VolumeFacts(
            slices=len(volume.hu),
            side=volume.hu.shape[1],
            requested=volume.requested,
            stopped=volume.stopped,
            overlap=volume.overlap,
            end_slices=volume.end_slices,
            doubts=volume.doubts,
        )
        some = len(volume.positions) > 0
        whole = not volume.setting.given and not volume.setting.spliced
        scorer = self.backbones.scorer
        return CaseFeatures(
            case_id=volume.case_id,
            facts=facts,
            slices=self._slices(volume),
            clips={frames: self._clips(volume, frames) for frames in self.plan.clip_lengths},
            monitors=MonitorRecord.of(at_side(torch.from_numpy(volume.hu), self.plan.native)),
            volumes=self._volumes(volume) if some and not volume.setting.given else {},
            latent=scorer.encode_volume(volume.scored()).numpy() if some and scorer is not None else None,
            picture=montage(volume.scored(), tile=TILE) if some else None,
            findings=findings(measure(volume.scored())) if some and whole and with_findings else None,
        )

    def _slices(self, volume: ScoredVolume) -> Samples:
        hu = torch.from_numpy(volume.hu[volume.positions]).unsqueeze(1)
        batches = hu.split(SLICES_PER_PASS[self.device.type]) if len(hu) else ()
        images = [lambda side, b=batch: slices_at(b.to(self.device), side) for batch in batches]
        return Samples(volume.positions.astype(np.int32), self._values(self.backbones.slices, images))

    def _clips(self, volume: ScoredVolume, frames: int) -> Samples:
        starts = volume.window_starts(frames, self.plan.stride(frames))
        size = max(1, CLIP_SLICES_PER_PASS // frames)

        def clips(first: int, side: int) -> Tensor:
            hu = np.stack([volume.hu[s : s + frames] for s in starts[first : first + size]])
            return clip_at(torch.from_numpy(hu).unsqueeze(1).to(self.device), side)

        images = [lambda side, first=i: clips(first, side) for i in range(0, len(starts), size)]
        return Samples(np.array(starts, np.int32), self._values(self.backbones.clips, images))

    def _volumes(self, volume: ScoredVolume) -> dict[tuple[str, str], NDArray[np.float32]]:
        return {
            (backbone.name, output): value.float().cpu().numpy()
            for backbone in self.backbones.volumes
            for output, value in backbone.extract(volume.scored()).items()
        }

    def _values(
        self, backbones: Sequence[Backbone], batches: Sequence[Callable[[int], Tensor]]
    ) -> dict[Key, NDArray[np.float32]]:
        """Features by every backbone at every resolution, of batches that are made at the side they need."""
        parts: dict[Key, list[Tensor]] = {}
        for side in self.plan.resolutions:
            for batch in batches:
                images = batch(side)
                for backbone in backbones:
                    for output, value in backbone.extract(images).items():
                        parts.setdefault(Key(backbone.name, side, output), []).append(value.cpu())
        return {key: torch.cat(values).numpy() for key, values in parts.items()}


def real_volume(case_id: str, volume: HUVolume) -> ScoredVolume:
    """A real case (or its reconstruction) on its way into a reference or a floor."""
    return ScoredVolume(case_id, REAL, volume.hu, volume.spacing, requested=len(volume.hu))
