"""The default data set of a training, made from phantoms where it is missing."""

from __future__ import annotations

import logging
from pathlib import Path

from ctflow.config.data import DataConfig
from ctflow.config.training import TrainConfig
from ctflow.data.default_shards import SLICES, complete, make_phantom_slices, run_preparation
from ctflow.training.parts import TARGETS, newest_part
from ctflow.training.runs import first_process

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
    if not all(complete(runs / SLICES / split) for split in SPLITS):
        default = config.default_data
        make_phantom_slices(
            runs, volumes=default.volumes, size=default.size, z_spacing=default.z_spacing, seed=default.seed
        )
    if config.task == "flow" and not all(complete(runs / LATENTS / split) for split in SPLITS):
        _latents(runs)


def _meant(data: DataConfig, folder: Path) -> bool:
    return Path(data.train) == folder / "train" and Path(data.valid) == folder / "valid"


def _latents(runs: Path) -> None:
    parts = {name: newest_part(runs, name) for name in TARGETS}
    log.info(
        "no latent shards in %s: encoding with %s", runs / LATENTS, " and ".join(map(str, parts.values()))
    )
    weights = [f"avae={parts['autoencoder']}", f"clip={parts['clip']}"]
    for split in SPLITS:
        folders = [f"source={runs / SLICES / split}", f"output={runs / LATENTS / split}"]
        run_preparation("data_prep.encode", [*folders, *weights])
