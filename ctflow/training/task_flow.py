"""The FMvT's training as a task: latent shards in, a sharing folder with averaged weights out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lightning as L

from ctflow.checkpoint import load_fmvt, save_fmvt
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, LatentShards
from ctflow.errors import ConfigError
from ctflow.training.flow import FlowModule
from ctflow.training.runs import Run
from ctflow.training.task import card
from ctflow.types import BLOCK_LENGTH


class FlowTraining:
    """The FMvT from latent shards."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """With ``init_from`` the architecture is that of the folder.

        Raises:
            ConfigError: Latents or text of the shards do not fit the network.
        """
        task = config.flow
        if task.init_from:
            task = replace(task, network=load_fmvt(task.init_from).config)
        shards = LatentShards(config.data.train)
        record = shards.record(0)
        found = {
            "latent_channels": record.mean.shape[1],
            "input_size": [BLOCK_LENGTH, *record.mean.shape[2:]],
            "text_dim": record.text.shape[1],
        }
        wanted = {name: getattr(task.network, name) for name in found}
        wanted["input_size"] = list(wanted["input_size"])
        if found != wanted:
            raise ConfigError(
                f"latent shards in {config.data.train} have {found}",
                f"flow.network: {wanted}",
                "encode the shards with the A-VAE and text encoder meant, or change flow.network to fit them",
            )
        return replace(config, flow=task)

    def data(self, config: TrainConfig) -> LatentDataModule:
        """Pairs of blocks."""
        return LatentDataModule(replace(config.data, view="blocks", seed=config.seed))

    def module(self, config: TrainConfig, run: Run) -> FlowModule:
        """The FMvT, from scratch or fine-tuned: weights only, optimizer and schedule fresh."""
        module = FlowModule(config.flow, config.seed)
        if config.flow.init_from:
            state = load_fmvt(config.flow.init_from).state_dict()
            for network in (module.network, module.trained):
                network.load_state_dict(state)
        return module

    def callbacks(self, config: TrainConfig, run: Run) -> list[L.Callback]:
        """Rollouts with images and Fréchet distances, where asked for."""
        return []

    def gradient_clip(self, config: TrainConfig) -> float:
        """As configured."""
        return config.flow.gradient_clip

    def export(self, config: TrainConfig, run: Run, checkpoint: Path) -> None:
        """The averaged weights."""
        module = FlowModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        save_fmvt(run.export, module.trained.eval(), card=card("FMvT", config, module.updates))
