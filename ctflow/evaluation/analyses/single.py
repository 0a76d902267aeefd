"""One case at a time: what a model holds of it, and how its blocks join."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.features import at_side
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import usable_in
from ctflow.metrics.monitors.seam import SeamMonitor, step_sizes
from ctflow.metrics.reconstruction import ReconstructionMetric
from ctflow.pictures import LUNG, SOFT_TISSUE, axial, coronal
from ctflow.types import BLOCK_LENGTH, HUVolume

REAL, LIMIT = "real scan", "A-VAE"
ROLLOUTS = ("gt-head", "next-block")
_TILE = 256


def capacity(context: Context) -> AnalysisResult:
    """PSNR and SSIM of each teacher-forced block of the first training volume, beside the A-VAE's own."""
    system, reader = context.system, context.reader(context.config.analysis.train_slices)
    case = reader.cases()[0]
    real = reader.volume(case)
    made = context.generate("next-block", case, reader)
    sides = made.hu.shape[1]
    original = at_side(torch.from_numpy(real.hu[: len(made.hu)]), sides)
    through = torch.from_numpy(system.decode(system.encode(real)))[: len(made.hu)]
    records: list[dict[str, Any]] = []
    for start in range(0, len(made.hu), BLOCK_LENGTH):
        rows = slice(start, start + BLOCK_LENGTH)
        generated = _quality(torch.from_numpy(made.hu[rows]), original[rows])
        limit = _quality(through[rows], original[rows])
        records.append(
            {
                "first slice": start,
                "psnr generated": generated["psnr"],
                "psnr A-VAE": limit["psnr"],
                "ssim generated": generated["ssim"],
                "ssim A-VAE": limit["ssim"],
            }
        )
    text = (
        f"Case {case.case_id}, {len(made.hu)} slices: a model overfitted on it must come near the "
        "A-VAE's own reconstruction; a model trained on many volumes need not."
    )
    figures = {"blocks": (_capacity_plot(records), "PSNR by block")}
    return AnalysisResult("Capacity: one volume", text, records, figures)


def _quality(made: torch.Tensor, original: torch.Tensor) -> dict[str, float]:
    metric = ReconstructionMetric()
    metric.update(made.unsqueeze(1), original.unsqueeze(1))
    return metric.compute()


def _capacity_plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for name in ("psnr generated", "psnr A-VAE"):
        axes.plot([r["first slice"] for r in records], [r[name] for r in records], "o-", label=name)
    axes.set_xlabel("first slice of the block")
    axes.set_ylabel("dB")
    axes.legend()
    return figure


def seams(context: Context) -> AnalysisResult:
    """Seam ratios and PSNR of two rollouts of the first case that has more than one block; a picture too.

    Raises:
        EvaluationError: No such case.
    """
    system, reader = context.system, context.reader()
    case = next((c for c in reader.cases() if usable_in(SETTINGS["gt-head"], c)), None)
    if case is None:
        raise EvaluationError(
            f"no case of more than {BLOCK_LENGTH} slices in {reader.folder}",
            "a scan longer than one block",
            "give slices=FOLDER",
        )
    real = reader.volume(case)
    limit = min(len(real.hu), context.rollout.max_slices)
    through = system.decode(system.encode(real))[:limit]
    side = through.shape[1]
    volumes = {REAL: at_side(torch.from_numpy(real.hu[:limit]), side).numpy(), LIMIT: through}
    volumes |= {name: context.generate(name, case, reader).hu for name in ROLLOUTS}
    zoom = real.hu.shape[1] / side
    spacing = (real.spacing[0], real.spacing[1] * zoom, real.spacing[2] * zoom)
    # The blocks of next-block follow real slices and repeat none.
    overlaps = {"gt-head": context.rollout.overlap}
    records = [_record(name, hu, volumes[REAL], overlaps.get(name, 0)) for name, hu in volumes.items()]
    text = (
        f"Case {case.case_id}, {limit} slices of {spacing[0]:g} mm, blocks of {BLOCK_LENGTH}. The given "
        "first block of gt-head is not scored. A seam ratio near 1: the step over a boundary of blocks is "
        "like the steps beside it."
    )
    figures = {
        "volumes": (_picture(volumes, spacing), "The middle slice and a coronal cut"),
        "profile": (_profile(volumes), "Step from slice to slice"),
    }
    return AnalysisResult("Seams of rollouts from real blocks", text, records, figures)


def _record(name: str, hu: np.ndarray, real: np.ndarray, overlap: int) -> dict[str, Any]:
    """A line of the table; what is NaN (given) counts nowhere."""
    monitor, quality = SeamMonitor(), ReconstructionMetric()
    monitor.update(torch.from_numpy(hu), overlap)
    scored = np.flatnonzero(np.isfinite(hu).all(axis=(1, 2)))
    scored = scored[scored < len(real)]
    if name != REAL and len(scored):
        quality.update(*(torch.from_numpy(v[scored]).unsqueeze(1) for v in (hu, real)))
    values = quality.compute()
    return {
        "volume": name,
        "slices": len(hu),
        "scored slices": len(scored),
        **{key: round(value, 3) for key, value in monitor.compute().items()},
        "psnr to the scan": None if name == REAL else round(values["psnr"], 2),
        "ssim to the scan": None if name == REAL else round(values["ssim"], 3),
    }


def _picture(volumes: dict[str, np.ndarray], spacing: tuple[float, float, float]) -> Figure:
    """A column per volume: middle slice in two windows, coronal cut; given slices are black."""
    figure = Figure(figsize=(2.3 * len(volumes), 6.2), layout="tight")
    axes = figure.subplots(3, len(volumes))
    for column, (name, hu) in enumerate(volumes.items()):
        volume = HUVolume(np.nan_to_num(hu, nan=-3000.0), spacing)
        middle = len(hu) // 2
        tiles = [axial(volume, middle, window, _TILE) for window in (LUNG, SOFT_TISSUE)]
        for row, tile in enumerate([*tiles, coronal(volume, LUNG, _TILE)]):
            axes[row, column].imshow(tile, cmap="gray", vmin=0, vmax=255)
            axes[row, column].axis("off")
        axes[0, column].set_title(name, fontsize=9)
    return figure


def _profile(volumes: dict[str, np.ndarray]) -> Figure:
    """Mean absolute difference of neighbouring slices inside the body, block boundaries marked."""
    figure = Figure(figsize=(9, 3), layout="tight")
    axes = figure.add_subplot()
    for name, hu in volumes.items():
        steps = step_sizes(torch.from_numpy(hu)).numpy()
        axes.plot(np.arange(len(steps)) + 0.5, steps, ".-", label=name, linewidth=1)
    longest = max(len(hu) for hu in volumes.values())
    for boundary in range(BLOCK_LENGTH, longest, BLOCK_LENGTH):
        axes.axvline(boundary - 0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("slice (dotted: every 16, the block boundaries without overlap)")
    axes.set_ylabel("step in HU")
    axes.legend(fontsize=8)
    return figure
