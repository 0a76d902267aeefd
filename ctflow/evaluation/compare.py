"""All rows, monitor readings and pictures of a setting, and settings against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.cases import CaseSets, RealCase
from ctflow.evaluation.collect import REAL_SET, RECONSTRUCTED, Collected
from ctflow.evaluation.features import SLICE, CaseFeatures, FeaturePlan, Key
from ctflow.evaluation.results import (
    MODEL,
    NOT_AVAILABLE,
    OTHER_REAL,
    RECONSTRUCTION,
    Picture,
    Reading,
    Row,
)
from ctflow.evaluation.rows import (
    MIN_SAMPLES,
    Compared,
    clip_rows,
    slice_rows,
    source_rows,
    statistic_of,
)
from ctflow.evaluation.settings import SETTINGS, Setting
from ctflow.metrics.backbones import Backbone, Backbones
from ctflow.metrics.monitors import VolumeMonitors, theil_sen
from ctflow.metrics.monitors.drift import last_over_first
from ctflow.metrics.monitors.thresholds import limit, tripped
from ctflow.types import BLOCK_LENGTH

FLOORS = {OTHER_REAL: REAL_SET, RECONSTRUCTION: RECONSTRUCTED}
BASE = "next-block"
"""Ratios between settings are of the other ones over this one."""


@dataclass(frozen=True)
class Comparer:
    """Rows and readings of settings from collected features.

    Attributes:
        config: The evaluation.
        plan: What was extracted.
        backbones: With what.
        sets: Evaluated and other cases.
        collected: Their features.
    """

    config: EvalConfig
    plan: FeaturePlan
    backbones: Backbones
    sets: CaseSets
    collected: Collected

    def compared(self, setting: Setting, source: str) -> Compared:
        """The scored set and its reference, case by case."""
        reference: Sequence[RealCase] = self.sets.evaluated
        if source == MODEL:
            fake = self.collected.of(setting.name, self.sets.evaluated)
            chosen = {f.case_id for f in fake}
            reference = [case for case in reference if case.case_id in chosen]
        else:
            fake = self._restricted(FLOORS[source], self.sets.others, setting)
        real = self._restricted(REAL_SET, reference, setting)
        return Compared(setting, source, fake, real, self.plan, self.config.seed, self.config.protocol)

    def rows(self, setting: Setting) -> list[Row]:
        """The table's rows of one setting: the model, then both floors."""
        rows = self.source_rows(setting, MODEL)
        if not self.sets.others:
            reason = (
                "floors are off" if not self.config.floors else "no real cases of other patients are left"
            )
            return rows + [Row(setting.name, f, "all", empty=NOT_AVAILABLE, reason=reason) for f in FLOORS]
        return rows + [row for source in FLOORS for row in self.source_rows(setting, source)]

    def source_rows(self, setting: Setting, source: str) -> list[Row]:
        """All metrics of the model or of one floor."""
        reports = {case.case_id: case.report for case in (*self.sets.evaluated, *self.sets.others)}
        return source_rows(self.compared(setting, source), self.backbones, reports)

    def readings(self, setting: Setting) -> list[Reading]:
        """The monitors of one setting: the model, and other real cases (else the reference)."""
        compared = self.compared(setting, MODEL)
        others = self._restricted(REAL_SET, self.sets.others, setting)
        backbone, side = self.backbones.slices[0], self.plan.resolutions[0]
        found = readings(setting, MODEL, compared.fake, compared.real, others, backbone, side)
        return found + readings(setting, "real", others or compared.real, compared.real, [], backbone, side)

    def pictures(self, setting: Setting) -> list[Picture]:
        """Montages of the scored volumes, nearest to the reference first."""
        return pictures(self.compared(setting, MODEL), self.backbones)

    def between_settings(self, names: Sequence[str]) -> list[Row]:
        """Rows of every setting over the slices that all may score (blocks ≥ 1), and ratios of their
        extrapolated values; empty where fewer than two settings were run.
        """
        if len(names) < 2:
            return []
        compared = [self.compared(SETTINGS[name], MODEL) for name in names]
        shared = _shared_starts(compared)
        rows: list[Row] = []
        for own in compared:
            fake, real = (
                [_only(case, shared[case.case_id]) for case in cases if case.case_id in shared]
                for cases in (own.fake, own.real)
            )
            reduced = replace(own, fake=fake, real=real)
            for side in self.plan.resolutions:
                rows += slice_rows(reduced, self.backbones.slices[-1], side)[:1]
                for frames in self.plan.clip_lengths:
                    if frames <= BLOCK_LENGTH:
                        rows += clip_rows(reduced, self.backbones.clips[-1], frames, side)
        return rows + _ratios(rows)

    def _restricted(self, kind: str, cases: Sequence[RealCase], setting: Setting) -> list[CaseFeatures]:
        return [features.restricted(setting) for features in self.collected.of(kind, cases)]


def pictures(compared: Compared, backbones: Backbones) -> list[Picture]:
    """Montages of the scored volumes, nearest to the reference first."""
    key = Key(backbones.slices[0].name, compared.plan.resolutions[0])
    means = [case.slices.values[key].mean(0) for case in compared.real if len(case.slices)]
    if not means:
        return []
    centre, spread = np.mean(means, 0), np.std(means, 0) + 1e-6
    found = []
    for case in compared.fake:
        if case.picture is not None and len(case.slices):
            distance = np.sqrt((((case.slices.values[key].mean(0) - centre) / spread) ** 2).mean())
            found.append(Picture(case.case_id, float(distance), case.picture))
    return sorted(found, key=lambda picture: picture.distance)


Starts = dict[int, NDArray[np.int32]]
"""Slices in a sample to first slices."""


def _shared_starts(compared: Sequence[Compared]) -> dict[str, Starts]:
    """Per case in all settings: first slices of the samples that all of them have, from block 1 on."""
    by_case = [{case.case_id: case for case in own.fake} for own in compared]
    shared: dict[str, Starts] = {}
    for case_id in sorted(set.intersection(*(set(cases) for cases in by_case))):
        same = [cases[case_id] for cases in by_case]
        found: Starts = {}
        for frames in (SLICE, *same[0].clips):
            starts = same[0].samples(frames).starts
            for other in same[1:]:
                starts = np.intersect1d(starts, other.samples(frames).starts)
            found[frames] = starts[starts >= BLOCK_LENGTH]
        if len(found[SLICE]):
            shared[case_id] = found
    return shared


def _only(features: CaseFeatures, shared: Starts) -> CaseFeatures:
    return features.keep(lambda starts, frames: np.isin(starts, shared[frames]))


def _ratios(rows: Sequence[Row]) -> list[Row]:
    found = []
    for base in (row for row in rows if row.setting == BASE):
        same = [r for r in rows if (r.metric, r.resolution) == (base.metric, base.resolution)]
        for other in (row for row in same if row.setting != BASE):
            row = Row(
                f"{other.setting} / {BASE}",
                MODEL,
                f"{base.metric} ratio",
                base.resolution,
                cases=base.cases,
                samples=base.samples,
            )
            numbers = (other.extrapolated, base.extrapolated)
            if all(math.isfinite(n) for n in numbers) and base.extrapolated > 0:
                found.append(replace(row, value=numbers[0] / numbers[1]).noted("of extrapolated values"))
            else:
                found.append(row.without("a ratio needs both extrapolated values, above zero"))
    return found


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
        values["sharpest_steps"] = float(monitors.sharpest.compute())
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
