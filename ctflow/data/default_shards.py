"""The default slice shards: phantoms, made by the project's own commands where the shards are missing.

Training and evaluation share this. The commands of ``data_prep`` are started, never imported.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from ctflow.data.manifest import MANIFEST
from ctflow.errors import ConfigError

log = logging.getLogger("ctflow")

SLICES = "shards/slices"
PHANTOMS = "phantoms"


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
