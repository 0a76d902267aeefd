"""The one LightningDataModule."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule

from ctflow.config.data import DataConfig
from ctflow.data.choice import scans_of
from ctflow.data.reader import LatentShards, SliceShards
from ctflow.data.stream import EvaluationLoader, TrainLoader
from ctflow.data.views import BlockView, PairView, SliceView, View, VolumeView


class LatentDataModule(LightningDataModule):
    """Streams shards to the A-VAE (``slices``), the FMvT (``blocks``) or the embedded pair (``volumes``).

    The place in the epoch is saved in every Lightning checkpoint and restored from it. Ranks are split here:
    the trainer adds no distributed samplers, whatever its settings.

    Args:
        config: What is streamed.

    Attributes:
        config: As given.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.config = config
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._views: dict[str, View] = {}

    def view(self, split: str) -> View:
        """The view of ``train`` or ``valid``, opened once; without a trainer too."""
        if split not in self._views:
            self._views[split] = self._open(split)
        return self._views[split]

    def train_dataloader(self) -> TrainLoader:
        """This rank's share of every global batch."""
        rank, world_size = self._ranks()
        return TrainLoader(
            self.view("train"),
            batch_size=self._samples(self.config.batch_size, self.view("train")),
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            repeat=self.config.repeat,
            seed=self.config.seed,
            shuffle_shards=self.config.shuffle_shards,
            rank=rank,
            world_size=world_size,
            num_workers=self.config.num_workers,
            pin_memory=self._pin(),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Every validation case once, on one of the ranks."""
        rank, world_size = self._ranks()
        return EvaluationLoader(
            self.view("valid"),
            batch_size=self._samples(
                self.config.valid_batch_size or self.config.batch_size, self.view("valid")
            ),
            rank=rank,
            world_size=world_size,
            num_workers=self.config.num_workers,
            pin_memory=self._pin(),
        )

    def _open(self, split: str) -> View:
        config = self.config
        folder = config.train if split == "train" else config.valid
        # Training draws among all reconstructions, so all are read; validation chooses before it reads.
        drawn = split == "train"
        cases, choice = (0, None) if drawn else (config.max_valid_cases, config.valid_choice)
        seed = config.seed
        if config.view == "blocks" and config.pairs:  # both scans of a patient, in validation too
            both = LatentShards(folder, cases, config.in_memory, posterior_noise=config.posterior_noise)
            return PairView(both, seed, config.p_start, config.differing_share)
        if config.view == "blocks":
            latents = LatentShards(folder, cases, config.in_memory, choice, config.posterior_noise)
            return BlockView(latents, seed, config.p_start, scans_of(latents.cases) if drawn else None)
        slices = SliceShards(folder, cases, config.in_memory and config.view == "slices", choice)
        scans = scans_of(slices.cases) if drawn else None
        if config.view == "slices":
            redrawn = LatentShards(config.redrawn) if drawn and config.redrawn else None
            return SliceView(slices, seed, scans, redrawn)
        return VolumeView(slices, config.grid, config.in_memory, seed, scans)

    def _samples(self, rows: int, view: View) -> int:
        """Samples that make a batch of so many rows."""
        return max(rows // view.rows, 1)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _pin(self) -> bool:
        return torch.cuda.is_available()
