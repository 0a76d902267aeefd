"""How far each window of 16 slices is from real slices at its height: curves with intervals, and slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ctflow.evaluation.features import CaseFeatures, FeatureExtractor, Key
from ctflow.evaluation.results import MODEL, Row
from ctflow.metrics import bias
from ctflow.metrics.bias import Interval
from ctflow.metrics.monitors import theil_sen
from ctflow.metrics.random_backbone import SPREAD_FLOOR
from ctflow.metrics.statistics import PerCaseMean
from ctflow.types import BLOCK_LENGTH

MIN_REAL = 8
"""Fewest real slices at a height that a window is held against."""


def window_distances(
    cases: Sequence[CaseFeatures], real: Sequence[CaseFeatures], extractor: FeatureExtractor
) -> Tensor:
    """Distance of every full window of every volume ``[cases, windows]``; NaN where there is none.

    A window's mean features (embedded 2D backbone) less the mean of the real slices at the same relative
    height, in those slices' standard deviations, root mean square over the features.
    """
    key = Key(extractor.backbones.slices[0].name, extractor.plan.resolutions[0])
    heights, values = [], []
    for case in real:
        heights.append((case.slices.starts + 0.5) / max(case.facts.slices, 1))
        values.append(case.slices.values[key])
    height, value = np.concatenate(heights), np.concatenate(values)
    longest = max((len(case.slices) // BLOCK_LENGTH for case in cases), default=0)
    found = torch.full((len(cases), longest), math.nan, dtype=torch.float64)
    for row, case in enumerate(cases):
        total = case.facts.slices
        for window in range(len(case.slices) // BLOCK_LENGTH):
            first, last = window * BLOCK_LENGTH, (window + 1) * BLOCK_LENGTH
            near = value[(height >= first / total) & (height <= last / total)]
            if len(near) >= MIN_REAL:
                spread = np.std(near, 0)
                spread = np.maximum(spread, SPREAD_FLOOR * max(float(np.median(spread)), 1e-12))
                own = case.slices.values[key][first:last].mean(0)
                found[row, window] = float(np.sqrt((((own - near.mean(0)) / spread) ** 2).mean()))
    return found


def window_curve(distances: Tensor, seed: int) -> list[Interval]:
    """Mean over the volumes with its interval, per window."""
    return [
        bias.jackknife(PerCaseMean(column), seed) if torch.isfinite(column).any() else Interval(math.nan)
        for column in distances.T
    ]


def window_slope(distances: Tensor, seed: int) -> str:
    """Mean over the volumes of the Theil–Sen slope per window, as printed."""
    slopes = torch.tensor([theil_sen(row.tolist()) for row in distances], dtype=torch.float64)
    row = Row("full-body", MODEL, "slope")
    if not torch.isfinite(slopes).any():
        return row.without("").text()
    return row.with_value(bias.jackknife(PerCaseMean(slopes), seed)).text()


def curve_plot(curves: Mapping[str, Sequence[Interval]]) -> Figure:
    """Every length's curve with its band."""
    figure = Figure(figsize=(7, 3.5))
    axes = figure.add_subplot()
    for name, curve in curves.items():
        x = range(1, len(curve) + 1)
        (line,) = axes.plot(x, [point.value for point in curve], "o-", markersize=3, label=name)
        low, high = ([getattr(point, end) for point in curve] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("window of 16 slices, from the inferior end")
    axes.set_ylabel("distance, standard deviations")
    axes.legend(fontsize=7)
    return figure
