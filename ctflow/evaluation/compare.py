"""All rows, monitor readings, pictures and findings of a setting, and settings against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.anatomy import LABELS, Agreement, check_labels
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones
from ctflow.evaluation.cases import CaseSets, RealCase, read_truth
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
from ctflow.evaluation.rows import Compared, clip_rows, readings, slice_rows
from ctflow.evaluation.settings import SETTINGS, Setting
from ctflow.evaluation.whole import source_rows
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
        """The monitors of one setting: the model, and beside it other real cases (else the reference)."""
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


ALL = "all (micro-average)"


def findings_table(
    source: str, cases: Sequence[RealCase], features: Sequence[CaseFeatures], setting: str
) -> list[dict[str, Any]]:
    """One line per finding and their micro-average; empty where no case has ground truth.

    Args:
        source: What was read: the model's volumes, or the phantoms themselves (the error of reading).
        cases: The cases, with ground truth beside the phantoms they come from.
        features: Of their volumes, with findings.
        setting: For the lines.
    """
    truths = {case.case_id: read_truth(case) for case in cases if case.truth_path}
    checks = [
        check_labels(case.findings, truths[case.case_id])
        for case in features
        if case.findings is not None and case.case_id in truths
    ]
    if not checks:
        return []
    lines = {label: Agreement.of([case[label] for case in checks]) for label in LABELS}
    lines[ALL] = Agreement.of([case[label] for label in LABELS for case in checks])
    return [{"setting": setting, "source": source, "finding": k, **_columns(v)} for k, v in lines.items()]


def _columns(agreement: Agreement) -> dict[str, Any]:
    errors = agreement.size_errors
    return {
        "present": agreement.present,
        "recall": agreement.recall,
        "absent": agreement.absent,
        "false positives": agreement.false_positive_rate,
        "right side": agreement.side_accuracy,
        "median size error": float(np.median(np.abs(errors))) if errors else None,
    }
