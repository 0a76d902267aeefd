"""Validation rollouts of the FMvT: whole volumes decoded to HU, shown, and measured by FID and FVD."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from ctflow.checkpoint import load_avae
from ctflow.config.generation import RolloutConfig
from ctflow.config.tasks import FlowMonitor
from ctflow.data import LatentDataModule, LatentShards
from ctflow.generation import RolloutCase, VolumeGenerator, seeded_noise
from ctflow.metrics.monitors import VolumeMonitors, alarms
from ctflow.training.flow import FlowModule, text_tokens
from ctflow.training.images import add_image, axial_and_coronal
from ctflow.training.rollout_metrics import RolloutMetric, images_of, rollout_metrics
from ctflow.training.signals import StopOnSignal
from ctflow.types import BLOCK_LENGTH

log = logging.getLogger("ctflow")

SHOWN = 4
"""Cases whose images go to TensorBoard."""


class RolloutMonitor(L.Callback):
    """Generates the first validation cases from their reports with the averaged network.

    The metrics live here and not in the module: a bf16 module would cast their float64 sums. They carry the
    names of an evaluation: those of the embedded backbones (``fid_rand2d``, ``fvd_rand3d_f16``), and ``fid``,
    ``fvd_f16``, ``fd_ct3d`` where ``settings.backbones`` names their weights. The reference are the same
    cases' real latents, decoded by the same A-VAE, so that they show the transformer's error alone; its
    features are computed once.

    The first rollout comes before the first step, the next ones at validations 1, 2, 4, 8 … until
    ``rollout_every`` is reached, and at its multiples from then on.

    Args:
        settings: How often, how many, how long.
        sampling: Solver, guidance and overlap of the rollouts.
        text_mode: ``tokens`` or ``pooled``, as the module reads the reports.
        avae: Sharing folder of the A-VAE whose latents the shards hold.
        seed: Seed of the rollouts' noise.
    """

    def __init__(
        self, settings: FlowMonitor, sampling: RolloutConfig, text_mode: str, avae: Path, seed: int
    ) -> None:
        self.settings, self.sampling = settings, sampling
        self.text_mode, self.folder, self.seed = text_mode, avae, seed
        self.metrics: list[RolloutMetric] = []
        self._generator: VolumeGenerator | None = None
        self._real: dict[int, Tensor] = {}
        self._measured = False

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Generate when due; cases are split over the processes."""
        assert isinstance(pl_module, FlowModule)
        validation = pl_module.batches // int(trainer.val_check_batch or 1)
        if due(validation, self.settings.rollout_every):
            self._roll_out(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Generate before the first step of a fresh run: later values are held against it."""
        assert isinstance(pl_module, FlowModule)
        self.prepare(pl_module.device)
        if pl_module.updates == 0:
            self._roll_out(trainer, pl_module)

    def prepare(self, device: torch.device) -> None:
        """Load the networks of the metrics; a wrong file ends the run here, before its first step."""
        if self.settings.frechet:
            self.metrics = rollout_metrics(self.settings.backbones, device)

    def _roll_out(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LatentDataModule)
        shards = data.view("valid").shards
        assert isinstance(shards, LatentShards)
        mine = range(trainer.global_rank, min(self.settings.cases, len(shards)), trainer.world_size)
        generated = self._generate(pl_module, shards, list(mine)) if mine else {}
        stopping(trainer).wait_for_others(trainer, pl_module)
        step = pl_module.updates
        for case, volume in generated.items():
            if case < SHOWN and len(volume):
                both = [axial_and_coronal(v, shards.cases[case].spacing) for v in (volume, self._real[case])]
                add_image(trainer, f"val/rollout_{case}", _stacked(both), step)
        self._measure(pl_module, generated)
        self._watch(pl_module, generated)

    def _generate(self, module: FlowModule, shards: LatentShards, cases: list[int]) -> dict[int, Tensor]:
        """HU ``[S, H, W]`` on the CPU by case; empty where the very first slice is an end."""
        generator = self._system(module, shards)
        limit = self.settings.max_blocks * BLOCK_LENGTH
        prepared = []
        for case in cases:
            stored, mask, pooled = (torch.from_numpy(part) for part in shards.text(case))
            text, text_mask = text_tokens(stored, mask, pooled, self.text_mode)
            entry = shards.cases[case]
            # The true length is what the network was trained with; ``max_slices`` cuts longer volumes short.
            prepared.append(RolloutCase(entry.case_id, text, text_mask, entry.slices, entry.spacing))
        config = replace(self.sampling, max_slices=limit)
        stop = partial(stopping(module.trainer).stop_validation, module.trainer, module)
        results = generator.latents(prepared, config, seeded_noise(self.seed), lambda progress: stop())
        for case in cases:
            if case not in self._real:
                self._real[case] = torch.from_numpy(generator.decode(shards.whitened(case)[:, :limit]))
                stop()
        volumes = [torch.from_numpy(generator.decode(result.latents)) for result in results]
        return dict(zip(cases, volumes, strict=True))

    def _system(self, module: FlowModule, shards: LatentShards) -> VolumeGenerator:
        """The averaged network and the A-VAE (loaded at first use) under the shards' whitening."""
        if self._generator is None:
            avae = load_avae(self.folder).with_whitening(shards.header.whitening)
            avae = avae.to(module.device).requires_grad_(False)
            size = shards.header.white.shape[-1] * avae.downscale
            self._generator = VolumeGenerator(module.trained, avae, size)
        return self._generator

    def _measure(self, module: FlowModule, generated: dict[int, Tensor]) -> None:
        """Fréchet distances; every process takes part, also without cases."""
        first = not self._measured
        for metric in self.metrics:
            metric.to(module.device).forget_fake()
            for case, volume in generated.items():
                for images in images_of(metric, volume):
                    metric.update(images.to(module.device), real=False)
                for images in images_of(metric, self._real[case]) if first else ():
                    metric.update(images.to(module.device), real=True)
            self._log(module, metric.name, float(metric.compute()))
        self._measured = True

    def _log(self, module: FlowModule, name: str, value: float) -> None:
        """A number of this validation; before the first step the loggers get it past Lightning."""
        if not math.isfinite(value):
            return
        if module.updates == 0:
            for logger in module.trainer.loggers:
                logger.log_metrics({f"val/{name}": value}, 0)
            return
        module.log(f"val/{name}", value, rank_zero_only=True)

    def _watch(self, module: FlowModule, generated: dict[int, Tensor]) -> None:
        """Seams, checkerboards, ends and drift; a line in the log where a monitor raises an alarm."""
        made, reference = VolumeMonitors().to(module.device), VolumeMonitors().to(module.device)
        for case, volume in generated.items():
            real = self._real[case].to(module.device)
            made.update(volume.to(module.device), requested=len(real))
            made.update_real(real)
            reference.update(real, requested=len(real))
        values, own = made.compute(), reference.compute()
        for name, value in values.items():
            self._log(module, name, value)
        if module.trainer.is_global_zero:
            for line in alarms(values, own):
                log.warning("ALARM at update %d: %s", module.updates, line)


def due(validation: int, every: int) -> bool:
    """Whether a rollout belongs to this validation (the first is 1): a short training sees several."""
    return validation % every == 0 or (validation < every and validation & (validation - 1) == 0)


def stopping(trainer: L.Trainer) -> StopOnSignal:
    """The callback that stops a long validation where a signal has asked for it."""
    return next(c for c in trainer.callbacks if isinstance(c, StopOnSignal))  # type: ignore[attr-defined]


def _stacked(images: list[Tensor]) -> Tensor:
    """Images ``[1, h, w]`` below each other, padded on the right and below."""
    width = max(image.shape[2] for image in images)
    return torch.cat([torch.nn.functional.pad(i, (0, width - i.shape[2], 0, 2)) for i in images], dim=1)
