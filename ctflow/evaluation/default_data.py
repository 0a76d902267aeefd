"""The default cases: phantoms, made by the project's own commands where the default shards are missing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from ctflow.config.evaluation import EvalConfig
from ctflow.config.system import SystemConfig
from ctflow.data.manifest import MANIFEST
from ctflow.evaluation.cases import EvaluationError

log = logging.getLogger(__name__)

PHANTOM_VOLUMES = 160
"""Of which a share is for validation; see ``data_prep.phantom``."""


def ensure_default_cases(config: EvalConfig, system: SystemConfig) -> None:
    """Make the default slice shards from phantoms if they are missing; other folders are the user's own.

    Args:
        config: ``slices`` decides whether the default shards are meant.
        system: Size and spacing of the slices.

    Raises:
        EvaluationError: A preparation command failed.
    """
    folder = Path(config.slices)
    if config.slices != EvalConfig().slices or (folder / MANIFEST).is_file():
        return
    phantoms = folder.parents[2] / "phantoms"
    log.info("no slice shards at %s: making them from %d phantoms", folder, PHANTOM_VOLUMES)
    size = str(system.image_size)
    _run("data_prep.phantom", "--output", str(phantoms), "--volumes", str(PHANTOM_VOLUMES), "--size", size)
    prepare = ["--source", str(phantoms), "--output", str(folder.parent)]
    # Status 1 says that scans were refused by name; the rest is prepared.
    _run(
        "data_prep.ct_rate",
        *prepare,
        f"resolution={size}",
        f"z_spacing={system.z_spacing_mm}",
        accepted=(0, 1),
    )


def _run(module: str, *arguments: str, accepted: tuple[int, ...] = (0,)) -> None:
    log.info("running python -m %s %s", module, " ".join(arguments))
    status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if status not in accepted:
        raise EvaluationError(
            f"python -m {module} ended with status {status}",
            "a prepared set of phantoms",
            "see its output above",
        )
