"""The model-free monitors over a set of volumes, their thresholds and alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ctflow.evaluation.backbones import Backbone
from ctflow.evaluation.features import CaseFeatures, Key
from ctflow.evaluation.results import MODEL, Reading
from ctflow.evaluation.rows import MIN_SAMPLES, statistic_of
from ctflow.evaluation.settings import Setting
from ctflow.metrics.monitors import VolumeMonitors, theil_sen
from ctflow.metrics.monitors.drift import last_over_first
from ctflow.metrics.monitors.thresholds import limit, tripped
from ctflow.types import BLOCK_LENGTH

LEAST_FLOOR = 1e-3
"""Smallest distance of a window, own or real against real, that a ratio is taken of."""


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
    monitors, reference = _monitors(cases), _monitors(real).checkerboard.compute()
    for case in real:
        monitors.update_real(case.monitors)
    values = monitors.checkerboard.compute()
    if not setting.spliced:
        values |= monitors.seam.compute() | monitors.drift.compute()
        values |= _windows(cases, real, others, Key(backbone.name, side), backbone)
    if setting.stops and source == MODEL:
        values |= monitors.end.compute()
    ends = [case.facts.end_slices for case in cases if case.facts.end_slices is not None]
    if ends:  # of rollouts; volumes from elsewhere have no latents
        values["end_slices"] = float(np.mean(ends))
    missing = "too few slices or cases" if others else "needs other real cases beside these"
    return [
        _reading(setting.name, source, name, value, reference.get(name, math.nan), missing)
        for name, value in values.items()
    ]


def _monitors(cases: Sequence[CaseFeatures]) -> VolumeMonitors:
    """The monitors of validation; every rank has all cases, so that nothing is summed over ranks."""
    monitors = VolumeMonitors(sync_on_compute=False)
    for case in cases:
        monitors.update(case.monitors, case.facts.requested, case.facts.overlap)
    return monitors


def _reading(setting: str, source: str, name: str, value: float, real: float, missing: str) -> Reading:
    threshold = limit(name, real)
    reason = "" if math.isfinite(value) else missing
    return Reading(setting, source, name, value, threshold, tripped(name, value, real), reason)


def _windows(
    cases: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    others: Sequence[CaseFeatures],
    key: Key,
    backbone: Backbone,
) -> dict[str, float]:
    """Distance of each 16-slice window to real windows at its position, over the same between real cases."""
    last = max((int(case.slices.starts.max(initial=0)) for case in cases), default=0)
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


def _in_window(cases: Sequence[CaseFeatures], key: Key, window: int) -> list[Tensor]:
    """Features of the slices of a full window, per case that has all of it."""
    found = []
    for case in cases:
        inside = case.slices.keep(case.slices.starts // BLOCK_LENGTH == window)
        if len(inside) == BLOCK_LENGTH:
            found.append(torch.from_numpy(inside.values[key]))
    return found
