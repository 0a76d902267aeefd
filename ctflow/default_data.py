"""The default data of training and evaluation: phantoms, made by the project's own commands where missing.

The commands of ``data_prep`` are started, never imported. Other folders than the default ones are the user's
own and left alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ctflow.checkpoint import CONFIG_FILE
from ctflow.config import load_config
from ctflow.config.data import DataConfig
from ctflow.config.evaluation import EvalConfig
from ctflow.config.system import SystemConfig
from ctflow.config.training import TrainConfig
from ctflow.data import LatentShards, SliceShards, shards_to_encode
from ctflow.data.manifest import MANIFEST
from ctflow.errors import ConfigError
from ctflow.processes import run_module
from ctflow.training.cluster import first_process
from ctflow.training.parts import TARGETS, matching_avae, matching_clip, newest_part

log = logging.getLogger("ctflow")

SLICES = "shards/slices"
LATENTS = "shards/latents"
PHANTOMS = "phantoms"
SPLITS = ("train", "valid")
CASE_VOLUMES = 160
"""Phantoms for the cases of an evaluation; a tenth of them is held out from training."""


def ensure_training_data(config: TrainConfig) -> TrainConfig:
    """Make the task's default shards if they are missing; ``default_data.make=false`` turns it off.

    Args:
        config: ``data.train`` and ``data.valid`` decide whether the default shards are meant.

    Returns:
        The configuration, without validation where the default shards have no ``valid`` split.

    Raises:
        ConfigError: A command failed, or latents are to be made and there is no A-VAE or no text encoder.
    """
    if config.default_data.make:
        _make_training_data(config)
    return _without_missing_validation(config)


def ensure_cases(config: EvalConfig, checkpoint: Path) -> None:
    """Make the default cases of an evaluation, at a checkpoint's own size, if they are missing.

    Raises:
        ConfigError: A command failed.
    """
    folder = Path(config.slices)
    if config.slices == EvalConfig().slices and not complete(folder):
        system = load_config(SystemConfig, checkpoint / CONFIG_FILE)
        make_phantom_slices(
            folder.parents[2], volumes=CASE_VOLUMES, size=system.image_size, z_spacing=system.z_spacing_mm
        )


def complete(folder: Path) -> bool:
    """Whether a folder of shards has its manifest, which is written last."""
    return (folder / MANIFEST).is_file()


def make_phantom_slices(runs: Path, *, volumes: int, size: int, z_spacing: float, seed: int = 0) -> None:
    """Make ``runs/shards/slices/{train,valid}`` from phantoms in ``runs/phantoms``.

    Args:
        runs: Folder of the runs.
        volumes: Number of phantoms; ``data_prep.phantom`` says which share is for validation.
        size: Rows and columns of the slices.
        z_spacing: Millimetres between slices.
        seed: Of the set of phantoms.

    Raises:
        ConfigError: A command failed.
    """
    log.info("no slice shards in %s: making them from %d phantoms", runs / SLICES, volumes)
    phantoms = str(runs / PHANTOMS)
    numbers = ["--volumes", str(volumes), "--seed", str(seed), "--size", str(size)]
    run_preparation("data_prep.phantom", ["--output", phantoms, *numbers])
    prepare = ["--source", phantoms, "--output", str(runs / SLICES)]
    # Status 1 says that scans were refused by name; the rest is prepared.
    keys = [f"resolution={size}", f"z_spacing={z_spacing}"]
    run_preparation("data_prep.ct_rate", [*prepare, *keys], accepted=(0, 1))


def run_preparation(module: str, arguments: list[str], accepted: tuple[int, ...] = (0,)) -> None:
    """Run ``python -m module`` with these arguments.

    Raises:
        ConfigError: It ended with a status that is not ``accepted``.
    """
    command = " ".join(["-m", module, *arguments])
    log.info("running %s", command)
    status = run_module(module, arguments)
    if status not in accepted:
        raise ConfigError(f"`python {command}` ended with status {status}", "", "see its output above")


def _make_training_data(config: TrainConfig) -> None:
    runs, default = Path(config.runs_dir), config.default_data
    kind = LATENTS if config.task == "flow" else SLICES
    if not _meant(config.data, runs / kind) or not first_process():
        return
    if config.task == "flow" and not _splits(runs / SLICES) and _splits(runs / LATENTS):
        return  # latents alone have come here: they are trained on as they are
    if not _splits(runs / SLICES) or _phantoms_cut_short(runs / SLICES):
        make_phantom_slices(
            runs, volumes=default.volumes, size=default.size, z_spacing=default.z_spacing, seed=default.seed
        )
    if config.task == "flow" and any(_unencoded(runs, split) for split in _splits(runs / SLICES)):
        _latents(runs)


def _without_missing_validation(config: TrainConfig) -> TrainConfig:
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
