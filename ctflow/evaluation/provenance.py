"""What must be known to compare or repeat an evaluation."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ctflow
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones
from ctflow.evaluation.cases import CaseSets
from ctflow.evaluation.features import FeaturePlan
from ctflow.metrics.images import SCORE_WINDOW

PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "numpy", "scipy")


def run_facts(config: EvalConfig, seconds: float, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What is known of any run of the command, as JSON values.

    Args:
        config: What was asked for.
        seconds: Wall time so far.
        argv: Arguments of the command; None: this process's own.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    return {
        "command": f"{launcher} -m ctflow.eval {arguments}".rstrip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), "ctflow": ctflow.__version__, **_versions()},
        "processes": processes,
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def provenance(
    config: EvalConfig,
    plan: FeaturePlan,
    backbones: Backbones,
    sets: CaseSets,
    model: dict[str, Any],
    seconds: float,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything that stands under a table, as JSON values."""
    low, high = SCORE_WINDOW
    strides = ", ".join(f"{n} slices every {plan.stride(n)}" for n in plan.clip_lengths)
    return {
        **run_facts(config, seconds, argv),
        **model,
        "case_set_sha256": sets.digest,
        "cases": len(sets.evaluated),
        "floor_cases": len(sets.others),
        "protocol": config.protocol,
        "hu_window": f"[{low:g}, {high:g}] HU to 0 … 255, rounded",
        "resize": "bilinear, antialiased, after clipping to the window",
        "slices": "all that the setting may score; reference: real slices at the positions it may score",
        "clips": f"{strides}, from the inferior end",
        "resolutions": list(plan.resolutions),
        "covariance_ddof": 1,
        "interval": "95 %, delete-a-group jackknife over cases (10 groups); extrapolation: linear in 1/N",
        "backbones_sha256": backbones.hashes,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
