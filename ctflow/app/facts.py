"""Facts shown with a volume: findings against the report, score, seams, by the project's own measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ctflow.anatomy import SIDES, measure
from ctflow.asked import asked_beside, verdicts
from ctflow.errors import CTFlowError
from ctflow.evaluation.system import ClipScorer
from ctflow.metrics.monitors import block_boundaries, boundary_ratios
from ctflow.types import HUVolume


def findings_of(
    report: str, volume: HUVolume, between: Callable[[], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Findings asked for and found, and the sizes of lungs, heart and fluid, as JSON values.

    Args:
        report: What was asked for; may be empty.
        volume: The volume.
        between: Called several times a second; its exception ends the measuring.

    Returns:
        For the page; and for the volume's JSON, under ``measured`` as ``ctflow generate`` writes it.
    """
    try:
        measured = measure(volume, between)
    except CTFlowError as error:
        return {"error": error.found}, {}
    heart = measured.heart
    shown = {
        "verdicts": [asdict(line) for line in verdicts(report, measured)],
        "lung_ml": {side: round(measured.lungs.volume_ml[side]) for side in SIDES},
        "effusion_ml": {side: round(measured.effusion_ml[side]) for side in SIDES},
        "cardiothoracic_ratio": round(heart.cardiothoracic_ratio, 3) if heart.present else None,
    }
    return shown, {"measured": asdict(asked_beside(report, measured))}


def score_of(scorer: ClipScorer, report: str, volume: HUVolume) -> dict[str, Any]:
    """The agreement of report and volume under the name of its text and image pair."""
    return {"name": scorer.name, "score": round(scorer.score(report, volume), 2)}


def seams_of(volume: HUVolume, overlap: int | None, first: int) -> dict[str, Any]:
    """The step between slices over the steps around it, slice by slice.

    Args:
        volume: The volume.
        overlap: Slices that each block repeats; None: the volume was made of no blocks.
        first: Slices before the first boundary.

    Returns:
        ``ratios`` (None where a neighbour is missing), ``boundaries`` (their indices at blocks' ends), and
        ``seam_ratio``, the geometric mean over those.
    """
    ratios = boundary_ratios(torch.from_numpy(volume.hu))
    at = torch.zeros(len(ratios), dtype=torch.bool)
    if overlap is not None:
        at = block_boundaries(len(ratios), overlap, first)
    return {
        "ratios": [None if math.isnan(r) else round(r, 3) for r in ratios.tolist()],
        "boundaries": torch.nonzero(at).flatten().tolist(),
        "seam_ratio": _mean(ratios[at]),
    }


def _mean(ratios: Tensor) -> float | None:
    """Geometric mean of what is a number; None of nothing."""
    usable = ratios[torch.isfinite(ratios)]
    return round(float(usable.log().mean().exp()), 3) if len(usable) else None
