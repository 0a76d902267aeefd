"""``diversity``: how much the volumes of one report differ by seed, and whether they cover the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import RealCase, choose_cases
from ctflow.evaluation.results import MODEL, Row
from ctflow.evaluation.rows import Compared
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.whole import neighbour_rows
from ctflow.metrics import bias
from ctflow.metrics.images import at_side
from ctflow.metrics.reconstruction import THREE_SCALES_ABOVE, ReconstructionMetric, multiscale_name
from ctflow.metrics.statistics import PerCaseMean

SEEDS, OTHERS = "one report, other seeds", "real volumes of other patients"


def diversity(context: Context) -> AnalysisResult:
    """MS-SSIM within a report's seeds and between real volumes; precision, recall, density and coverage.

    Volumes are made anew, since pixels are not kept; with ``analysis.seeds`` of one there is no MS-SSIM.
    """
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    cases, side = sets.evaluated, context.system.config.image_size
    within = []
    for case in tqdm(cases, "reports", unit="report", disable=not context.ranks.first):
        made = [_volume(context, case, seed) for seed in range(config.analysis.seeds)]
        within.append(_mean([similarity(a, b) for a, b in combinations(made, 2)]))
    real = [at_side(torch.from_numpy(reader.volume(case).hu), side).numpy() for case in cases]
    # Each real volume against the next one: as many pairs as volumes, every volume twice.
    between = [similarity(real[i], real[i - 1]) for i in range(len(real))] if len(real) > 1 else []
    records = [
        _record(similarity_name(side), SEEDS, within, config.seed),
        _record(similarity_name(side), OTHERS, between, config.seed),
    ]
    collector = context.collector(reader, extractor)
    compared = Compared(
        setting, MODEL, collector.generated(setting, cases), collector.real(cases), extractor.plan,
        config.seed, config.protocol,
    )  # fmt: skip
    records += [_of_row(row) for row in neighbour_rows(compared, extractor.backbones)]
    text = (
        f"{config.analysis.seeds} seeds × {len(cases)} reports at {side} px. MS-SSIM over the slices both "
        "volumes have, HU [−1000, 1000]: 1 for equal volumes. Seeds of one report should differ no more than "
        "patients do."
    )
    return AnalysisResult("Diversity", text, records)


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean MS-SSIM of two volumes ``[S, H, W]`` in HU over the slices that both have; NaN without any."""
    common = min(len(first), len(second))
    if not common:
        return float("nan")
    metric = ReconstructionMetric()
    metric.update(*(torch.from_numpy(volume[:common]).unsqueeze(1) for volume in (first, second)))
    found = metric.compute()
    return found[similarity_name(first.shape[1])]


def similarity_name(side: int) -> str:
    """MS-SSIM with as many scales as the slices have room for; below that, SSIM."""
    return multiscale_name(side) if side > THREE_SCALES_ABOVE else "ssim"


def _volume(context: Context, case: RealCase, seed: int) -> NDArray[np.float32]:
    own = replace(context, config=replace(context.config, seed=context.config.seed + seed))
    return own.generate("full-body", case, context.reader()).hu


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _record(metric: str, of: str, values: Sequence[float], seed: int) -> dict[str, Any]:
    numbers = torch.tensor(values, dtype=torch.float64)
    row = Row("full-body", MODEL, metric, cases=len(values))
    finite = int(torch.isfinite(numbers).sum())
    filled = row.with_value(bias.jackknife(PerCaseMean(numbers), seed)) if finite else row.without("no pairs")
    return _of_row(filled) | {"of": of, "N": finite}


def _of_row(row: Row) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "of": row.source,
        "value [95 %]": row.text(),
        "N": row.cases,
        "note": row.reason,
    }
