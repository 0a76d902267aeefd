"""The A-VAE's training as a task: slices in, a sharing folder with measured whitening out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import lightning as L
import torch

from ctflow.checkpoint import load_avae, save_avae
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, LatentShards, SliceBatch
from ctflow.errors import ConfigError, ShardError
from ctflow.models import AVAE
from ctflow.training.autoencoder import AutoencoderModule
from ctflow.training.images import ReconstructionImages
from ctflow.training.runs import Run
from ctflow.training.task import card
from ctflow.whitening import Whitening


class AutoencoderTraining:
    """The A-VAE from slice shards."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """With ``init_from`` the architecture is that of the folder, but for the image channels.

        Raises:
            CTFlowError: Redrawn latents without a share of them or the other way round, or of another A-VAE.
        """
        task = config.autoencoder
        if bool(task.redrawn_share) != bool(config.data.redrawn):
            raise ConfigError(
                f"autoencoder.redrawn_share={task.redrawn_share} and data.redrawn={config.data.redrawn!r}",
                "both or neither",
                "give the latents that ctflow redraw wrote, and the share of slices decoded from them",
            )
        if task.init_from:
            avae = load_avae(task.init_from)
            if config.data.redrawn:
                _check_redrawn(config.data.redrawn, avae)
            task = replace(task, network=replace(avae.config, in_channels=task.network.in_channels))
        return replace(config, autoencoder=task)

    def data(self, config: TrainConfig) -> LatentDataModule:
        """Slices in HU."""
        return LatentDataModule(replace(config.data, view="slices", seed=config.seed))

    def module(self, config: TrainConfig, run: Run) -> AutoencoderModule:
        """The A-VAE and its discriminator."""
        module = AutoencoderModule(config.autoencoder, config.seed)
        if config.autoencoder.init_from:
            source = load_avae(config.autoencoder.init_from)
            for network in (module.network, module.trained):
                copy_weights(source, network)
        return module

    def callbacks(self, config: TrainConfig, run: Run) -> list[L.Callback]:
        """Reconstruction images."""
        return [ReconstructionImages()]

    def gradient_clip(self, config: TrainConfig) -> float:
        """The module clips both networks itself."""
        return 0.0

    def export(self, config: TrainConfig, run: Run, checkpoint: Path) -> None:
        """The averaged network; its whitening is measured on posterior samples of training slices."""
        module = AutoencoderModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        avae = module.trained.eval()
        data = self.data(config)
        data.setup("fit")
        if config.autoencoder.whitening_batches:
            slices = cast(Iterable[SliceBatch], data.train_dataloader())
            batches = islice(slices, config.autoencoder.whitening_batches)
            avae = avae.with_whitening(measure_whitening(avae, batches, config.seed))
        save_avae(run.export, avae, card=card("A-VAE", config, module.updates))


def _check_redrawn(folder: str, avae: AVAE) -> None:
    """Redrawn latents have to be of the A-VAE whose decoder is trained.

    Raises:
        ShardError: They are not.
    """
    header = LatentShards(folder).header
    if (header.avae_fingerprint, header.whitening) != (avae.fingerprint(), avae.config.whitening):
        raise ShardError(
            f"{folder} holds latents of the A-VAE {header.avae_fingerprint[:12]}…",
            f"of autoencoder.init_from, {avae.fingerprint()[:12]}…, with its whitening",
            "redraw latents that this A-VAE encoded: ctflow redraw",
        )


@torch.no_grad()
def measure_whitening(avae: AVAE, batches: Iterable[SliceBatch], seed: int) -> Whitening:
    """Mean and inverse standard deviation of posterior samples per channel, in float64.

    Args:
        avae: The autoencoder, in evaluation mode.
        batches: Training slices in HU.
        seed: Seeds the posterior samples.
    """
    generator = torch.Generator().manual_seed(seed)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    device = next(avae.parameters()).device
    for batch in batches:
        posterior = avae.encode_hu(batch.images.to(device))
        z = posterior.sample(generator).double().cpu()  # [B, C, h, w]
        total = total + z.sum(dim=(0, 2, 3))
        squares = squares + z.square().sum(dim=(0, 2, 3))
        count += z.numel() // z.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
    return Whitening(shift=mean.tolist(), scale=(1.0 / std).tolist())


@torch.no_grad()
def copy_weights(source: AVAE, target: AVAE) -> None:
    """Copy an A-VAE's weights; between 1 and 3 image channels the first and last convolution are adapted.

    Three channels carry the same slice: their input weights are summed for one channel (divided equally for
    three), and the output of one channel is their mean (each of three repeats it).
    """
    state = {name: value.clone() for name, value in source.net.state_dict().items()}
    have, want = source.config.in_channels, target.config.in_channels
    if have != want:
        for name, value in state.items():
            if name == "encoder.conv_in.weight":
                state[name] = (
                    value.sum(1, keepdim=True) if want == 1 else value.expand(-1, want, -1, -1) / want
                )
            elif name.startswith("decoder.conv_out."):
                state[name] = (
                    value.mean(0, keepdim=True) if want == 1 else value.expand(want, *value.shape[1:])
                )
    target.net.load_state_dict(state)
