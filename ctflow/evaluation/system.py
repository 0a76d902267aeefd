"""The model under evaluation, and what it makes of a batch of real cases in a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.checkpoint import (
    CLIP_FOLDER,
    System,
    folder_fingerprint,
    load_system,
    load_text_encoder,
    part_folder,
)
from ctflow.config.evaluation import EvalConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import EvaluationError
from ctflow.evaluation.cases import RealCase
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan, real_volume
from ctflow.evaluation.settings import ScoredVolume, Setting
from ctflow.generation import (
    BlockMemo,
    RolloutCase,
    RolloutRound,
    StopReason,
    VolumeGenerator,
    seeded_noise,
)
from ctflow.metrics.backbones import build_backbones
from ctflow.metrics.clip_score import clip_scores
from ctflow.metrics.images import at_side, spacing_at
from ctflow.models import AVAE, FMvT, TextEncoder
from ctflow.models.ctclip import volume_input
from ctflow.types import HUVolume


@dataclass
class EvalSystem:
    """A whole system, in evaluation mode, on one device.

    Attributes:
        avae: Slices to latents and back.
        fmvt: The generator.
        text: The frozen text encoder.
        config: Image size, spacings.
        name: Where it came from, for the report.
        fingerprint: SHA-256 over all weights and configurations.
        text_fingerprint: SHA-256 over those of the text and image pair.
    """

    avae: AVAE
    fmvt: FMvT
    text: TextEncoder
    config: SystemConfig
    name: str
    fingerprint: str
    text_fingerprint: str

    @classmethod
    def of(
        cls, system: System, name: str, fingerprint: str, device: torch.device, text_fingerprint: str = ""
    ) -> EvalSystem:
        """A loaded system, moved to ``device``; without its own fingerprint the pair has the whole one's."""
        system.text_encoder.clip.to(device)
        return cls(
            system.avae.to(device).eval(),
            system.fmvt.to(device).eval(),
            system.text_encoder,
            system.config,
            name,
            fingerprint,
            text_fingerprint or fingerprint,
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> EvalSystem:
        """The system of a checkpoint folder."""
        fingerprints = folder_fingerprint(folder), folder_fingerprint(folder / CLIP_FOLDER)
        return cls.of(load_system(folder), str(folder), fingerprints[0], device, fingerprints[1])

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.avae.last_layer.device

    @torch.no_grad()
    def encode(self, volume: HUVolume) -> Tensor:
        """Whitened posterior means ``[C, S, h, w]`` of a real volume, resampled to the model's side.

        Raises:
            EvaluationError: The volume is coarser than the model, or not square.
        """
        side = self.config.image_size
        rows, columns = volume.hu.shape[1:]
        if rows != columns or rows < side:
            raise EvaluationError(
                f"slices of {rows}×{columns} pixels",
                f"square slices of at least {side} pixels, the model's own size",
                f"prepare the scans with size={side}",
            )
        low = self.avae.config.intensity.hu_min
        hu = at_side(torch.from_numpy(volume.hu).clamp_min(low), side)
        return self.generator().encode(hu)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Whitened latents ``[C, S, h, w]`` to float32 HU ``[S, H, W]``."""
        return self.generator().decode(latents)

    def generator(self, precision: str = "fp32") -> VolumeGenerator:
        """The networks as the one system that generates."""
        return VolumeGenerator(self.fmvt, self.avae, self.config.image_size, precision)

    def reconstruct(self, case: RealCase, volume: HUVolume) -> ScoredVolume:
        """A real volume through the A-VAE and back: the best any generator on it can do."""
        hu = self.decode(self.encode(volume))
        spacing = spacing_at(volume.spacing, volume.hu.shape[1], hu.shape[1])
        return real_volume(case.case_id, HUVolume(hu, spacing))


class ClipScorer:
    """A frozen text encoder with its CT-CLIP as ``TextVolumeScorer``.

    Args:
        encoder: Holds both towers and the tokenizer.
        sha256: Fingerprint of the weights.

    Attributes:
        name: ``clip`` for CT-CLIP's own layout, which has the right to the name; else ``clip_phantom``.
    """

    def __init__(self, encoder: TextEncoder, sha256: str) -> None:
        self.encoder, self.sha256 = encoder, sha256
        self.name = "clip" if encoder.clip.config.published_extras else "clip_phantom"

    @torch.no_grad()
    def encode_reports(self, reports: Sequence[str]) -> Tensor:
        """Latents ``[N, d]`` of unit norm."""
        return self.encoder.encode_latents(reports).cpu()

    @torch.no_grad()
    def encode_volume(self, volume: HUVolume) -> Tensor:
        """Latent ``[d]`` of unit norm."""
        return self.encode_grid(volume_input(volume, self.encoder.clip.config.grid))

    @torch.no_grad()
    def encode_grid(self, grid: Tensor) -> Tensor:
        """The same for the volume tower's input ``[1, 1, *grid.shape]``."""
        clip = self.encoder.clip
        return clip.encode_image(grid.to(clip.temperature.device))[0].float().cpu()

    def score(self, report: str, volume: HUVolume) -> float:
        """``100 · max(0, cos)`` of one report with one volume."""
        return float(clip_scores(self.encode_reports([report]), self.encode_volume(volume)[None]))


def extractor_of(config: EvalConfig, system: EvalSystem) -> FeatureExtractor:
    """Features kept of every volume: the same for the table and for analyses, so that they share files."""
    if config.backbones.clip:
        scorer = scorer_at(config.backbones.clip, system.device)
    else:
        scorer = ClipScorer(system.text, system.text_fingerprint)
    backbones = build_backbones(config.backbones, scorer, system.device)
    return FeatureExtractor(FeaturePlan.of(config, system.config.image_size), backbones, system.device)


def scorer_at(
    folder: Path | str, device: torch.device | str = "cpu", tokenizer: Path | str | None = None
) -> ClipScorer:
    """The text and image pair of a folder, for the agreement of reports and volumes.

    Raises:
        WeightsError: No such folder, or another layout.
    """
    folder = part_folder(folder, CLIP_FOLDER)
    encoder = load_text_encoder(folder, tokenizer)
    encoder.clip.to(device)
    return ClipScorer(encoder, folder_fingerprint(folder))


def usable_in(setting: Setting, case: RealCase) -> bool:
    """Whether a setting leaves anything to score of this case (gt-head needs more than its head)."""
    return case.shape[0] > setting.given


def generate_batch(
    system: EvalSystem,
    setting: Setting,
    cases: Sequence[RealCase],
    read: Callable[[RealCase], HUVolume],
    config: RolloutConfig,
    seed: int,
    precision: str = "fp32",
    progress: Callable[[RolloutRound], None] | None = None,
    memo: BlockMemo | None = None,
) -> Iterator[ScoredVolume]:
    """Generate from real cases in one setting; only what may be scored comes back unmasked.

    Volumes are decoded one by one, as they are asked for: a batch is in memory as latents only.

    Args:
        system: The model.
        setting: Which blocks are real.
        cases: The batch; all ``usable_in`` the setting.
        read: Gives a case's pixels.
        config: Solver, stop rule, limit.
        seed: Of the noise.
        precision: ``fp32``, or ``bf16`` autocast of the FMvT.
        progress: Called after each round of blocks.
        memo: Blocks that other settings have begun with already.
    """
    embedded = system.text.encode([case.report for case in cases])
    prepared = []
    for row, case in enumerate(cases):
        # Of the real volume, the setting's given slices, or (teacher forcing) all that a volume may have.
        shown = config.max_slices if setting.spliced else setting.given
        real = system.encode(_first(read(case), shown)) if shown else None
        prepared.append(
            RolloutCase(
                case_id=case.case_id,
                text=embedded.tokens[row],
                text_mask=embedded.mask[row],
                length=case.shape[0],
                spacing=_model_spacing(system, case),
                given=real if setting.given else None,
                real=real if setting.spliced else None,
            )
        )
    generator = system.generator(precision)
    results = generator.latents(prepared, config, seeded_noise(seed), progress, memo)
    for case, result in zip(cases, results, strict=True):
        assert result.given_slices == setting.given
        spacing = _model_spacing(system, case)
        # Given slices are not decoded: they would be masked.
        hu = generator.decode(result.latents[:, setting.given :])
        hu = np.concatenate([np.full((setting.given, *hu.shape[1:]), np.nan, np.float32), hu])
        stopped = result.stop == StopReason.END_RECOGNISED
        requested = min(case.shape[0], config.max_slices)
        overlap = 0 if setting.spliced else config.overlap
        ends = int(result.white[setting.given : result.slices].sum())
        yield ScoredVolume.of_rollout(case.case_id, setting, hu, spacing, requested, stopped, overlap, ends)


def _model_spacing(system: EvalSystem, case: RealCase) -> tuple[float, float, float]:
    """A real case's spacing in mm (z, y, x) at the model's number of pixels."""
    return spacing_at(case.spacing, case.shape[1], system.config.image_size)


def _first(volume: HUVolume, slices: int) -> HUVolume:
    return HUVolume(volume.hu[:slices], volume.spacing)
