"""The model-free monitors over a set of volumes, their thresholds and alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.evaluation.backbones import Backbone
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.scores import MIN_SAMPLES, statistic_of
from ctflow.evaluation.settings import Setting
from ctflow.metrics.monitors import DriftMonitor, block_boundaries, theil_sen
from ctflow.metrics.monitors.checkerboard import PERIODS
from ctflow.metrics.monitors.drift import last_over_first
from ctflow.metrics.monitors.thresholds import limit, tripped
from ctflow.metrics.monitors.white import volume_end
from ctflow.types import BLOCK_LENGTH

LEAST_FLOOR = 1e-3
"""Smallest distance of a window, own or real against real, that a ratio is taken of."""


@dataclass(frozen=True)
class Reading:
    """One monitor over one set.

    Attributes:
        setting: Setting, or the name of an external set.
        source: The model, or which floor.
        monitor: Its name.
        value: NaN where it does not exist.
        threshold: Beyond it an alarm is raised; NaN without one.
        alarm: Whether it is.
        reason: Why there is no value.
    """

    setting: str
    source: str
    monitor: str
    value: float
    threshold: float
    alarm: bool
    reason: str = ""


def readings(
    setting: Setting,
    source: str,
    cases: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    others: Sequence[CaseFeatures],
    backbone: Backbone,
    side: int,
) -> list[Reading]:
    """All monitors over one set of volumes.

    Args:
        setting: Which volumes they are.
        source: The model, or which floor.
        cases: The scored volumes.
        real: The reference set, restricted to the setting.
        others: Other real cases, restricted to the setting; the floor of the windows' distances. Empty: no
            such ratio.
        backbone: Slice backbone of the windows' distances.
        side: Resolution of its features.
    """
    values, references = _checkerboards(cases), _checkerboards(real)
    if not setting.spliced:
        values |= _seams(cases) | _statistics(cases, real) | _windows(cases, real, others, backbone, side)
    if setting.stops and source == "model":
        values |= _ends(cases)
    ends = [float(c.info["end_slices"]) for c in cases if c.info.get("end_slices") is not None]
    if ends:  # of rollouts; volumes from elsewhere have no latents
        values["end_slices"] = _mean(ends)
    missing = "too few slices or cases" if others else "needs other real cases beside these"
    return [
        _reading(setting.name, source, name, value, references.get(name, math.nan), missing)
        for name, value in values.items()
    ]


def _reading(setting: str, source: str, name: str, value: float, real: float, missing: str) -> Reading:
    threshold = limit(name, real)
    reason = "" if math.isfinite(value) else missing
    return Reading(setting, source, name, value, threshold, tripped(name, value, real), reason)


def _checkerboards(cases: Sequence[CaseFeatures]) -> dict[str, float]:
    values = [c.arrays["checkerboard"] for c in cases if len(c.arrays["checkerboard"])]
    return {f"checkerboard_{p}": _mean([float(v[i]) for v in values]) for i, p in enumerate(PERIODS)}


def _seams(cases: Sequence[CaseFeatures]) -> dict[str, float]:
    found = {}
    for name in ("seam_ratio", "seam_ratio_patch"):
        logs = [np.log(c.arrays["ratios"][_boundaries(name, c)]) for c in cases]
        whole = np.concatenate(logs) if logs else np.zeros(0)
        whole = whole[np.isfinite(whole)]
        found[name] = float(np.exp(whole.mean())) if len(whole) else math.nan
    return found


def _boundaries(name: str, case: CaseFeatures) -> NDArray[np.bool_]:
    """Steps of a volume between its blocks, or between its depth patches of two."""
    steps = len(case.arrays["ratios"])
    if name == "seam_ratio_patch":
        return np.arange(steps) % 2 == 1
    return block_boundaries(steps, int(case.info.get("overlap", 0))).numpy()


def _statistics(cases: Sequence[CaseFeatures], real: Sequence[CaseFeatures]) -> dict[str, float]:
    if not cases or not real:
        return {"drift_z": math.nan, "drift_z_slope": math.nan}
    monitor = DriftMonitor()
    for is_real, group in ((False, cases), (True, real)):
        for case in group:
            monitor.update(torch.from_numpy(case.arrays["statistics"]), real=is_real)
    return monitor.compute()


def _windows(
    cases: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    others: Sequence[CaseFeatures],
    backbone: Backbone,
    side: int,
) -> dict[str, float]:
    """Distance of each 16-slice window to real windows at its position, over the same between real cases."""
    key = f"slice/{backbone.name}/{side}"
    last = max((int(c.arrays["positions"].max(initial=0)) for c in cases), default=0)
    ratios = []
    for window in range(last // BLOCK_LENGTH + 1):
        fake, ref, floor = (_in_window(group, key, window) for group in (cases, real, others))
        if min(sum(map(len, x)) for x in (fake, ref, floor)) < MIN_SAMPLES:
            ratios.append(math.nan)
            continue
        # The shorter sets decide: distances at different N are not compared.
        number = min(len(fake), len(ref), len(floor))
        numbers = list(range(number))
        own = statistic_of(backbone, fake[:number], ref[:number], frechet=True)(numbers, numbers)
        base = statistic_of(backbone, floor[:number], ref[:number], frechet=True)(numbers, numbers)
        # A distance of nothing (a set against itself) is rounding, and says nothing about drift.
        ratios.append(own / base if min(own, base) > LEAST_FLOOR else math.nan)
    return {"drift_last_over_first": last_over_first(ratios), "drift_slope": theil_sen(ratios)}


def _in_window(cases: Sequence[CaseFeatures], key: str, window: int) -> list[Tensor]:
    """Features of the slices of a full window, per case that has all of it."""
    found = []
    for case in cases:
        rows = case.arrays["positions"] // BLOCK_LENGTH == window
        if int(rows.sum()) == BLOCK_LENGTH:
            found.append(torch.from_numpy(case.arrays[key][rows]))
    return found


def _ends(cases: Sequence[CaseFeatures]) -> dict[str, float]:
    ends = [volume_end(torch.from_numpy(c.arrays["white"])) for c in cases]
    requested = [int(c.info["requested"]) for c in cases]
    pairs = list(zip(ends, requested, strict=True))
    return {
        "premature": _mean([float(end < asked - BLOCK_LENGTH) for end, asked in pairs]),
        "length_error": _mean([float(abs(end - asked)) for end, asked in pairs]),
        "interior_white": _mean(
            [float(c.arrays["white"][:end].sum()) for c, end in zip(cases, ends, strict=True)]
        ),
    }


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
