"""The default data of training and evaluation: phantoms, made by the project's own commands where missing.

The commands of ``data_prep`` are started, never imported. Other folders than the default ones are the user's
own and left alone.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from ctflow.checkpoint import CONFIG_FILE
from ctflow.config import load_config
from ctflow.config.data import DataConfig
from ctflow.config.evaluation import EvalConfig
from ctflow.config.system import SystemConfig
from ctflow.config.training import TrainConfig
from ctflow.data.manifest import MANIFEST
from ctflow.errors import ConfigError
from ctflow.training.parts import TARGETS, newest_part
from ctflow.training.runs import first_process

log = logging.getLogger("ctflow")

SLICES = "shards/slices"
LATENTS = "shards/latents"
PHANTOMS = "phantoms"
SPLITS = ("train", "valid")
CASE_VOLUMES = 160
"""Phantoms for the cases of an evaluation; a tenth of them is held out from training."""


def ensure_training_data(config: TrainConfig) -> None:
    """Make the task's default shards if they are missing; ``default_data.make=false`` turns it off.

    Args:
        config: ``data.train`` and ``data.valid`` decide whether the default shards are meant.

    Raises:
        ConfigError: A command failed, or latents are to be made and there is no A-VAE or no text encoder.
    """
    runs, default = Path(config.runs_dir), config.default_data
    kind = LATENTS if config.task == "flow" else SLICES
    if not default.make or not _meant(config.data, runs / kind) or not first_process():
        return
    if not all(complete(runs / SLICES / split) for split in SPLITS):
        make_phantom_slices(
            runs, volumes=default.volumes, size=default.size, z_spacing=default.z_spacing, seed=default.seed
        )
    if config.task == "flow" and not all(complete(runs / LATENTS / split) for split in SPLITS):
        _latents(runs)


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
    command = [sys.executable, "-m", module, *arguments]
    log.info("running %s", " ".join(command[1:]))
    status = subprocess.run(command, check=False).returncode
    if status not in accepted:
        raise ConfigError(
            f"`python {' '.join(command[1:])}` ended with status {status}", "", "see its output above"
        )


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
