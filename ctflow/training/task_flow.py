"""The FMvT's training as a task: latent shards in, a whole checkpoint folder with averaged weights out."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ctflow.checkpoint import (
    AVAE_FOLDER,
    CLIP_FOLDER,
    FMVT_FOLDER,
    WEIGHTS_FILE,
    load_avae,
    load_fmvt,
    load_text_encoder,
    save_avae,
    save_ctclip,
    save_fmvt,
    write_system_config,
)
from ctflow.config.flow_network import FlowNetworkConfig
from ctflow.config.system import SystemConfig
from ctflow.config.tasks import TRAINED_PARTS, FlowTask
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, LatentShards
from ctflow.data.batches import BlockBatch
from ctflow.errors import ConfigError
from ctflow.models import FMvT
from ctflow.training.decoded import decoder_metric
from ctflow.training.flow import FlowModule
from ctflow.training.monitor import RolloutMonitor
from ctflow.training.parts import matching_avae, matching_clip
from ctflow.training.runs import Run
from ctflow.training.student import StudentModule
from ctflow.training.task import card
from ctflow.types import BLOCK_LENGTH

log = logging.getLogger("ctflow")

MEASURED_SLICES = 32
"""Slices whose decoding says what errors in latents mean."""


class FlowTraining:
    """The FMvT from latent shards."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """Fit the configuration to ``init_from``, check it against the shards, find their two encoders.

        Raises:
            ConfigError: Latents or text of the shards do not fit the network, or an encoder is not there.
        """
        task = config.flow
        task = replace(task, init_from=task.init_from or task.student.teacher)
        if task.init_from:
            task = replace(task, network=_as_loaded(task))
            sizes = {
                "local_head": task.network.local_channels,
                "fine": task.network.fine_depth,
                "start_head": task.network.start_directions,
            }
            if missing := [part for part in task.trained_parts if not sizes[part]]:
                raise ConfigError(
                    f"flow.trained_parts={task.trained_parts}, and no {missing[0]} in the network of "
                    f"{task.init_from}",
                    "parts that the network has",
                    f"give {TRAINED_PARTS[missing[0]]}",
                )
        shards = LatentShards(config.data.train)
        if teacher := task.student.teacher:
            _fitted(config.data.train, shards, FlowNetworkConfig.of(_loaded(teacher).config), teacher)
        task = replace(task, network=_fitted(config.data.train, shards, task.network, task.init_from))
        runs = Path(config.runs_dir)
        # A teacher knows the latents and texts of its own encoders alone.
        own_avae, own_clip = (_beside(task.student.teacher, part) for part in (AVAE_FOLDER, CLIP_FOLDER))
        avae = matching_avae(runs, shards.header, task.avae or own_avae, task.init_from)
        clip = matching_clip(runs, shards.header, task.clip or own_clip, task.init_from)
        log.info("latents of %s, text of %s", avae, clip)
        return replace(config, flow=replace(task, avae=str(avae), clip=str(clip)))

    def data(self, config: TrainConfig) -> LatentDataModule:
        """Pairs of blocks."""
        return LatentDataModule(replace(config.data, view="blocks", seed=config.seed))

    def module(self, config: TrainConfig, run: Run) -> FlowModule:
        """The FMvT, from scratch or fine-tuned (weights only, optimizer and schedule fresh), or a student."""
        teacher = config.flow.student.teacher
        module = (
            StudentModule(config.flow, config.seed, _loaded(teacher))
            if teacher
            else FlowModule(config.flow, config.seed)
        )
        if config.flow.init_from and run.checkpoint is None:
            loaded = _loaded(config.flow.init_from)
            new = _grown(module.network, loaded)
            for network in (module.network, module.trained):
                network.load_state_dict(loaded.state_dict() | new)
        if run.checkpoint is None:
            known = _loaded(config.flow.init_from).config if config.flow.init_from else None
            for part, asked in (("spectrum", "spectrum"), ("start_head", "start_directions")):
                if getattr(module.network.config, asked) and not getattr(known, asked, False):
                    self._measure(config, module, part)
        if config.flow.flow.decoded_share:
            _count_as_decoded(config, module)
        return module

    def _measure(self, config: TrainConfig, module: FlowModule, part: str) -> None:
        """What a part has to know of the data; the same everywhere: loaders do not know each other yet."""
        p_start = 1.0 if part == "start_head" else config.data.p_start
        data = self.data(replace(config, data=replace(config.data, num_workers=0, p_start=p_start)))
        data.setup("fit")
        wanted = math.ceil(config.flow.measured_blocks / config.data.batch_size)
        batches = islice(cast(Iterable[BlockBatch], data.train_dataloader()), wanted)
        shown = tqdm(batches, f"{part} of the latents", wanted, leave=False, disable=not config.loop.progress)
        measured = getattr(module.network, part)
        try:
            count = measured.measure(batch.target for batch in shown)
        except ValueError as error:
            raise ConfigError(
                f"latent shards in {config.data.train}: {error}",
                "enough training blocks to measure",
                "raise flow.measured_blocks, lower flow.network.start_directions, or encode more scans",
            ) from None
        getattr(module.trained, part).load_state_dict(measured.state_dict())
        log.info("%s of %d blocks", part, count)

    def callbacks(self, config: TrainConfig, run: Run) -> list[L.Callback]:
        """Rollouts with images and Fréchet distances, where asked for.

        Raises:
            ConfigError: The network is to be sharded.
        """
        monitor = config.flow.monitor
        if not monitor.rollout_every:
            return []
        if config.loop.strategy == "fsdp":
            raise ConfigError(
                f"flow.monitor.rollout_every={monitor.rollout_every} with loop.strategy=fsdp",
                "no rollouts: processes with fewer cases would leave the others waiting for their shard",
                "set flow.monitor.rollout_every=0 and evaluate the export with ctflow.eval",
            )
        task = config.flow
        return [RolloutMonitor(monitor, task.rollout, task.text, Path(task.avae), config.seed)]

    def gradient_clip(self, config: TrainConfig) -> float:
        """As configured."""
        return config.flow.gradient_clip

    def export(self, config: TrainConfig, run: Run, checkpoint: Path) -> None:
        """The averaged weights beside the shards' A-VAE and text encoder: what ``ctflow.generate`` takes."""
        module = FlowModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        shards = LatentShards(config.data.train)
        text = card("FMvT", config, module.updates)
        save_fmvt(run.export / FMVT_FOLDER, module.trained.eval(), card=text)
        avae = load_avae(config.flow.avae).with_whitening(shards.header.whitening)
        save_avae(run.export / AVAE_FOLDER, avae)
        _copy_text_encoder(Path(config.flow.clip), run.export / CLIP_FOLDER)
        write_system_config(run.export, system_config(config, shards, avae.downscale), card=text)


def _count_as_decoded(config: TrainConfig, module: FlowModule) -> None:
    """Show the loss what the A-VAE's decoder makes of slices spread over the training set."""
    shards = LatentShards(config.data.train)
    avae = load_avae(config.flow.avae).with_whitening(shards.header.whitening)
    cases = np.linspace(0, len(shards) - 1, min(len(shards), MEASURED_SLICES)).round().astype(int)
    # The k-th of K slices lies at (k + ½) / K of its volume, so that all heights of a body are among them.
    places = (np.arange(len(cases)) + 0.5) / len(cases)
    whole = [shards.whitened(int(case)) for case in cases]  # each [C, S, h, w]
    slices = [x[:, int(place * x.shape[1])] for x, place in zip(whole, places, strict=True)]
    module.count_as_decoded(decoder_metric(avae, torch.stack(slices)))


def system_config(config: TrainConfig, shards: LatentShards, downscale: int) -> SystemConfig:
    """What the training data say about the volumes the network will generate."""
    spacings = np.array([case.spacing for case in shards.cases])  # [N, 3], z y x
    slices = np.array([case.slices for case in shards.cases])
    spacing = np.median(spacings, axis=0)
    provenance = {"training_data": config.data.train, "avae": config.flow.avae, "clip": config.flow.clip}
    if config.flow.student.teacher:
        provenance["teacher"] = config.flow.student.teacher

    def ends(axis: int) -> list[float]:
        low, high = float(spacings[:, axis].min()), float(spacings[:, axis].max())
        return [low, high] if high > 1.001 * low else []

    return SystemConfig(
        image_size=int(shards.header.white.shape[-1]) * downscale,
        z_spacing_mm=float(spacing[0]),
        pixel_spacing_mm=float(spacing[2]),
        z_spacing_range=ends(0),
        pixel_spacing_range=ends(2),
        height_mm=float(np.median(slices * spacings[:, 0])),
        text_mode=config.flow.text,
        rollout=config.flow.rollout,
        max_slices=max(case.slices for case in shards.cases),
        provenance=provenance,
    )


def _copy_text_encoder(source: Path, target: Path) -> None:
    """The same files, or a published CT-CLIP as a sharing folder."""
    if (source / WEIGHTS_FILE).is_file():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return
    encoder = load_text_encoder(source)
    save_ctclip(target, encoder.clip, encoder.tokenizer)


def _loaded(folder: str) -> FMvT:
    """The FMvT of a whole checkpoint folder, or of the folder itself."""
    inside = Path(folder) / FMVT_FOLDER
    return load_fmvt(inside if inside.is_dir() else folder)


def _beside(teacher: str, part: str) -> str:
    """A part of the teacher's checkpoint folder; empty where there is no teacher or it has no such part."""
    folder = Path(teacher) / part
    return str(folder) if teacher and folder.is_dir() else ""


def _as_loaded(task: FlowTask) -> FlowNetworkConfig:
    """The network of ``init_from``, and what a fine-tuning may add to it.

    Raises:
        ConfigError: A narrower or shallower local head or another fine stage than the loaded one's is asked
            for, or a part that does not fit the loaded network.
    """
    network = _loaded(task.init_from).config
    for name in ("local_channels", "local_blocks", "fine_size", "fine_depth", "start_directions"):
        wanted, own = getattr(task.network, name), getattr(network, name)
        if wanted and (wanted < own or (wanted != own and own and not name.startswith("local"))):
            raise ConfigError(
                f"flow.network.{name}={wanted}",
                f"{own}, as the network of {task.init_from} has" + ", or more" * name.startswith("local"),
                f"leave flow.network.{name} out",
            )
    try:
        network = replace(
            network,
            # Checkpointing belongs to the training, not to the weights. A new fine stage, start head and
            # local head start at zero, new blocks of the latter as the identity, and new channels unheard.
            activation_checkpointing=task.network.activation_checkpointing,
            local_channels=max(network.local_channels, task.network.local_channels),
            local_blocks=max(network.local_blocks, task.network.local_blocks),
            fine_size=network.fine_size or task.network.fine_size,
            fine_depth=network.fine_depth or task.network.fine_depth,
            start_directions=network.start_directions or task.network.start_directions,
            spectrum=network.spectrum or task.network.spectrum,
        )
    except ValueError as error:
        raise ConfigError(
            f"flow.network: {error}",
            f"parts that fit the network of {task.init_from}",
            "change the part, or leave it out",
        ) from None
    return FlowNetworkConfig.of(network)


def _grown(network: FMvT, loaded: FMvT) -> dict[str, Tensor]:
    """State of fine stage, heads and spectrum that the loaded network lacks, by the network's names."""
    old, new = loaded.state_dict(), network.state_dict()
    if loaded.local_head is not None and network.local_head is not None:
        width = network.config.local_channels
        if width > loaded.config.local_channels:
            wide = loaded.local_head.widened(width).state_dict()
            new |= {f"local_head.{name}": value for name, value in wide.items()}
    parts = ("fine.", "local_head.", "start_head.", "spectrum.")
    return {
        name: value
        for name, value in new.items()
        if name.startswith(parts) and (name not in old or old[name].shape != value.shape)
    }


def _fitted(
    folder: str, shards: LatentShards, network: FlowNetworkConfig, init_from: str
) -> FlowNetworkConfig:
    """The network with what it leaves open taken from the shards.

    Raises:
        ConfigError: What it does say is not what the shards hold, or their latents give no whole patches.
    """
    record = shards.record(0)
    found: dict[str, Any] = {
        "input_size": [BLOCK_LENGTH, *record.mean.shape[2:]],
        "latent_channels": record.mean.shape[1],
        "text_dim": record.text.shape[1],
    }
    wanted = {key: getattr(network, key) for key in found if getattr(network, key) is not None}
    if other := {key: value for key, value in wanted.items() if value != found[key]}:
        leave = f"leave {', '.join(f'flow.network.{key}' for key in other)} out: the shards then decide; or "
        raise ConfigError(
            f"latent shards in {folder} have {found}",
            f"{'the network of ' + init_from if init_from else 'flow.network'} with {other}",
            ("" if init_from else leave) + "encode the slices with the A-VAE and text encoder meant",
        )
    try:
        return network.completed(**found)
    except ValueError as error:
        raise ConfigError(
            f"latent shards in {folder}: {error}",
            "latents that divide into whole patches",
            "give another flow.network.patch_size, or prepare the scans at another resolution",
        ) from None
