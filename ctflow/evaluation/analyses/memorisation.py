"""What the model keeps of its training volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import choose_cases
from ctflow.evaluation.collect import REAL_SET
from ctflow.evaluation.features import CaseFeatures, Key
from ctflow.evaluation.settings import SETTINGS
from ctflow.metrics.images import at_side
from ctflow.metrics.reconstruction import ReconstructionMetric
from ctflow.types import BLOCK_LENGTH

LOW = 0.05
LEAST = 4


def memorisation(context: Context) -> AnalysisResult:
    """Distance of every generated volume to its nearest training volume, against held-out real volumes'."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    held_out = context.collector(reader, extractor).collect(sets, [setting.name])
    train_reader = context.reader(config.analysis.train_slices)
    trained = train_reader.cases()
    known = {case.digest for case in trained}
    if twice := [case.case_id for case in sets.evaluated if case.digest in known]:
        raise EvaluationError(
            f"{len(twice)} evaluated cases are training cases, e.g. {twice[0]}", "held-out cases", ""
        )
    train = context.collector(train_reader, extractor).real(trained)
    key = Key(extractor.backbones.slices[-1].name, extractor.plan.resolutions[0])
    groups = {
        "generated": held_out.of(setting.name, sets.evaluated),
        "held-out real": held_out.of(REAL_SET, sets.evaluated),
    }
    if min(map(len, groups.values())) < LEAST or len(train) < LEAST:
        raise EvaluationError(
            f"{len(sets.evaluated)} held-out and {len(train)} training volumes", f"at least {LEAST} of each"
        )
    nearest = {name: nearest_distances(cases, train, key) for name, cases in groups.items()}
    limit = float(np.quantile(nearest["held-out real"], LOW))
    test = mannwhitneyu(nearest["generated"], nearest["held-out real"], alternative="less")
    records: list[dict[str, Any]] = [
        {
            "volumes": name,
            "number": len(values),
            "5 %": float(np.quantile(values, LOW)),
            "median": float(np.median(values)),
            "95 %": float(np.quantile(values, 1 - LOW)),
            f"share below the real {LOW:.0%}": float((values < limit).mean()),
        }
        for name, values in nearest.items()
    ]
    text = (
        f"Distance to the nearest of {len(train)} training volumes in mean slice features, in their standard "
        f"deviations. Generated nearer than held-out real: p = {test.pvalue:.3g} (Mann-Whitney, one-sided). "
        "A share well above 5 % would say that training volumes are repeated."
    )
    figures = {"nearest": (_plot(nearest), "Distance to the nearest training volume")}
    return AnalysisResult("Memorisation", text, records, figures)


def nearest_distances(
    cases: Sequence[CaseFeatures], train: Sequence[CaseFeatures], key: Key
) -> NDArray[np.float64]:
    """RMS distance of each case's mean features to the nearest training case's, in training deviations."""
    pool = np.stack([case.slices.values[key].mean(0) for case in train]).astype(np.float64)
    spread = pool.std(0) + 1e-6
    found = [
        np.sqrt((((pool - case.slices.values[key].mean(0)) / spread) ** 2).mean(1)).min()
        for case in cases
        if len(case.slices)
    ]
    return np.array(found)


def _plot(nearest: dict[str, NDArray[np.float64]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for name, values in nearest.items():
        axes.plot(np.sort(values), np.linspace(0, 1, len(values)), drawstyle="steps-post", label=name)
    axes.set_xlabel("distance to the nearest training volume")
    axes.set_ylabel("share of volumes")
    axes.legend()
    return figure


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
