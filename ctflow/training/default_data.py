"""The default data set, made from phantoms by the project's own commands where it is missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from ctflow.config.data import DataConfig
from ctflow.config.training import TrainConfig
from ctflow.errors import ConfigError
from ctflow.training.parts import TARGETS, newest_part
from ctflow.training.runs import first_process

log = logging.getLogger("ctflow")

SLICES = "shards/slices"
LATENTS = "shards/latents"
PHANTOMS = "phantoms"
MANIFEST = "manifest.jsonl"


def ensure_default_data(config: TrainConfig) -> None:
    """Make the task's default shards if they are missing; other folders are the user's own and left alone.

    Args:
        config: ``data.train`` and ``data.valid`` decide whether the default shards are meant.

    Raises:
        ConfigError: A command failed, or latents are to be made and there is no A-VAE or no text encoder.
    """
    kind = LATENTS if config.task == "flow" else SLICES
    if not _meant(config.data, Path(config.runs_dir) / kind) or not first_process():
        return
    _slices(config)
    if config.task == "flow":
        _latents(config)


def _meant(data: DataConfig, folder: Path) -> bool:
    return Path(data.train) == folder / "train" and Path(data.valid) == folder / "valid"


def _complete(folder: Path) -> bool:
    return all((folder / split / MANIFEST).is_file() for split in ("train", "valid"))


def _slices(config: TrainConfig) -> None:
    runs, default = Path(config.runs_dir), config.default_data
    if _complete(runs / SLICES):
        return
    log.info("no slice shards in %s: making them from %d phantoms", runs / SLICES, default.volumes)
    phantoms = runs / PHANTOMS
    size = ["--volumes", str(default.volumes), "--seed", str(default.seed), "--size", str(default.size)]
    _run("data_prep.phantom", ["--output", str(phantoms), *size])
    prepare = ["--source", str(phantoms), "--output", str(runs / SLICES)]
    # Status 1 says that scans were refused by name; the rest is prepared.
    _run(
        "data_prep.ct_rate",
        [*prepare, f"resolution={default.size}", f"z_spacing={default.z_spacing}"],
        (0, 1),
    )


def _latents(config: TrainConfig) -> None:
    runs = Path(config.runs_dir)
    if _complete(runs / LATENTS):
        return
    parts = {name: newest_part(runs, name) for name in TARGETS}
    log.info(
        "no latent shards in %s: encoding with %s", runs / LATENTS, " and ".join(map(str, parts.values()))
    )
    for split in ("train", "valid"):
        source, output = runs / SLICES / split, runs / LATENTS / split
        weights = [f"avae={parts['autoencoder']}", f"clip={parts['clip']}"]
        _run("data_prep.encode", [f"source={source}", f"output={output}", *weights])


def _run(module: str, arguments: list[str], accepted: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", module, *arguments]
    log.info("running %s", " ".join(command[1:]))
    status = subprocess.run(command, check=False).returncode
    if status not in accepted:
        raise ConfigError(
            f"`python {' '.join(command[1:])}` ended with status {status}", "", "see its output above"
        )
