"""``capacity``: can the model hold one volume? Next-block output against the real blocks, slice by slice."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.features import at_side
from ctflow.evaluation.settings import REGISTRY
from ctflow.evaluation.system import generate_batch
from ctflow.metrics.reconstruction import ReconstructionMetric
from ctflow.types import BLOCK_LENGTH


def capacity(context: Context) -> AnalysisResult:
    """PSNR and SSIM of each teacher-forced block of the first training volume, beside the A-VAE's own."""
    config, system = context.config, context.system
    reader = context.reader(config.analysis.train_slices)
    case = reader.cases()[0]
    real = reader.volume(case)
    rollout = config.sampling.applied_to(system.config.rollout)
    setting = REGISTRY["next-block"]
    made = next(
        generate_batch(system, setting, [case], reader.volume, rollout, config.seed, config.precision)
    )
    sides = made.hu.shape[1]
    original = at_side(torch.from_numpy(real.hu[: len(made.hu)]), sides)
    through = torch.from_numpy(system.decode(system.encode(real)))[: len(made.hu)]
    records: list[dict[str, Any]] = []
    for start in range(0, len(made.hu), BLOCK_LENGTH):
        rows = slice(start, start + BLOCK_LENGTH)
        generated = _scores(torch.from_numpy(made.hu[rows]), original[rows])
        limit = _scores(through[rows], original[rows])
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
    return AnalysisResult("Capacity: one volume", text, records, [(_plot(records), "PSNR by block")])


def _scores(made: torch.Tensor, original: torch.Tensor) -> dict[str, float]:
    metric = ReconstructionMetric()
    metric.update(made.unsqueeze(1), original.unsqueeze(1))
    return metric.compute()


def _plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for name in ("psnr generated", "psnr A-VAE"):
        axes.plot([r["first slice"] for r in records], [r[name] for r in records], "o-", label=name)
    axes.set_xlabel("first slice of the block")
    axes.set_ylabel("dB")
    axes.legend()
    return figure
