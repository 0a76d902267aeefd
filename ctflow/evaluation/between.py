"""Settings against each other: only over the cases, slices and clips that all of them may score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.scores import Compared, clip_rows, slice_rows
from ctflow.evaluation.scoring import Scoring
from ctflow.evaluation.settings import REGISTRY
from ctflow.evaluation.table import MODEL, NOT_AVAILABLE, Row
from ctflow.types import BLOCK_LENGTH

BASE = "next-block"
"""Ratios are of the other settings over this one."""


def between_settings(scoring: Scoring, settings: Sequence[str]) -> list[Row]:
    """Rows of every setting over the common slices (blocks ≥ 1), and ratios of their extrapolated values.

    Empty where fewer than two settings were run.
    """
    if len(settings) < 2:
        return []
    compared = {name: scoring.compared(REGISTRY[name], MODEL) for name in settings}
    shared = _shared_cases(list(compared.values()))
    rows: list[Row] = []
    for name, own in compared.items():
        fake = [_only(f, shared[f.case_id]) for f in own.fake if f.case_id in shared]
        real = [_only(r, shared[r.case_id]) for r in own.real if r.case_id in shared]
        reduced = Compared(REGISTRY[name], MODEL, fake, real, own.plan, own.seed, own.protocol)
        for side in own.plan.resolutions:
            rows += slice_rows(reduced, scoring.backbones.slices[-1], side)[:1]
            for frames in own.plan.clip_lengths:
                if frames <= BLOCK_LENGTH:
                    rows += clip_rows(reduced, scoring.backbones.clips[-1], frames, side)
    return rows + _ratios(rows, settings)


def _shared_cases(compared: Sequence[Compared]) -> dict[str, dict[str, np.ndarray]]:
    """Per case in all settings: positions and clip starts that all of them have, from block 1 on."""
    by_case = [{f.case_id: f for f in c.fake} for c in compared]
    common = set.intersection(*(set(cases) for cases in by_case))
    shared: dict[str, dict[str, np.ndarray]] = {}
    for case_id in sorted(common):
        keys = [k for k in by_case[0][case_id].arrays if k == "positions" or k.startswith("starts/")]
        found = {}
        for key in keys:
            values = by_case[0][case_id].arrays[key]
            for cases in by_case[1:]:
                values = np.intersect1d(values, cases[case_id].arrays[key])
            found[key] = values[values >= BLOCK_LENGTH]
        if len(found["positions"]):
            shared[case_id] = found
    return shared


def _only(features: CaseFeatures, shared: dict[str, np.ndarray]) -> CaseFeatures:
    arrays = dict(features.arrays)
    for key, values in shared.items():
        keep = np.isin(features.arrays[key], values)
        arrays[key] = features.arrays[key][keep]
        prefix = "slice/" if key == "positions" else "clip/"
        for name in arrays:
            if name.startswith(prefix) and (key == "positions" or name.split("/")[2] == key.split("/")[1]):
                arrays[name] = features.arrays[name][keep]
    return CaseFeatures(features.case_id, arrays, features.info)


def _ratios(rows: Sequence[Row], settings: Sequence[str]) -> list[Row]:
    found = []
    for base in (row for row in rows if row.setting == BASE):
        for name in settings:
            other = next(
                r for r in rows if (r.setting, r.metric, r.resolution) == (name, base.metric, base.resolution)
            )
            if name == BASE:
                continue
            label = f"{base.metric} ratio"
            row = Row(
                f"{name} / {BASE}", MODEL, label, base.resolution, cases=base.cases, samples=base.samples
            )
            numbers = (other.extrapolated, base.extrapolated)
            if all(math.isfinite(n) for n in numbers) and base.extrapolated > 0:
                found.append(
                    Row(**{**row.__dict__, "value": numbers[0] / numbers[1]}).noted("of extrapolated values")
                )
            else:
                reason = "a ratio needs both extrapolated values, above zero"
                found.append(Row(**{**row.__dict__, "empty": NOT_AVAILABLE}).noted(reason))
    return found
