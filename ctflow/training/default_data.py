"""The default data set of a training, made from phantoms where it is missing."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ctflow.config.data import DataConfig
from ctflow.config.training import TrainConfig
from ctflow.data import LatentShards, SliceShards, shards_to_encode
from ctflow.data.default_shards import SLICES, complete, make_phantom_slices, run_preparation
from ctflow.training.cluster import first_process
from ctflow.training.parts import TARGETS, matching_avae, matching_clip, newest_part

log = logging.getLogger("ctflow")

LATENTS = "shards/latents"
SPLITS = ("train", "valid")


def ensure_default_data(config: TrainConfig) -> None:
    """Make the task's default shards if they are missing; other folders are the user's own and left alone.

    Args:
        config: ``data.train`` and ``data.valid`` decide whether the default shards are meant.

    Raises:
        ConfigError: A command failed, or latents are to be made and there is no A-VAE or no text encoder.
    """
    runs = Path(config.runs_dir)
    kind = LATENTS if config.task == "flow" else SLICES
    if not _meant(config.data, runs / kind) or not first_process():
        return
    if config.task == "flow" and not _splits(runs / SLICES) and _splits(runs / LATENTS):
        return  # latents alone have come here: they are trained on as they are
    if not _splits(runs / SLICES) or _phantoms_cut_short(runs / SLICES):
        default = config.default_data
        make_phantom_slices(
            runs, volumes=default.volumes, size=default.size, z_spacing=default.z_spacing, seed=default.seed
        )
    if config.task == "flow" and any(_unencoded(runs, split) for split in _splits(runs / SLICES)):
        _latents(runs)


def without_missing_validation(config: TrainConfig) -> TrainConfig:
    """Default shards without a ``valid`` split (few scans) are trained on without validation.

    A folder that the user names is never replaced.
    """
    kind = LATENTS if config.task == "flow" else SLICES
    folder = Path(config.runs_dir) / kind
    if not _meant(config.data, folder) or _splits(folder) != ["train"]:
        return config
    log.warning(
        "no validation shards in %s: training goes on without validation (prepare with a larger "
        "valid_fraction to hold patients out)",
        folder / "valid",
    )
    return replace(config, data=replace(config.data, valid=""))


def _splits(folder: Path) -> list[str]:
    return [split for split in SPLITS if complete(folder / split)]


def _unencoded(runs: Path, split: str) -> bool:
    slices, latents = runs / SLICES / split, runs / LATENTS / split
    return not complete(latents) or bool(shards_to_encode(slices, latents))


def _phantoms_cut_short(folder: Path) -> bool:
    """Whether a preparation of phantoms was killed before its second split began."""
    return _splits(folder) == ["train"] and bool(SliceShards(folder / "train").metadata(0)["truth_path"])


def _meant(data: DataConfig, folder: Path) -> bool:
    return Path(data.train) == folder / "train" and Path(data.valid) == folder / "valid"


def _latents(runs: Path) -> None:
    """Encode the splits that are missing, with the networks that the others were encoded with."""
    if done := _splits(runs / LATENTS):
        header = LatentShards(runs / LATENTS / done[0]).header
        parts = {"autoencoder": matching_avae(runs, header), "clip": matching_clip(runs, header)}
    else:
        parts = {name: newest_part(runs, name).folder for name in TARGETS}
    weights = [f"avae={parts['autoencoder']}", f"clip={parts['clip']}"]
    run_preparation("data_prep.encode", [f"source={runs / SLICES}", f"output={runs / LATENTS}", *weights])
