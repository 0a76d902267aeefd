"""Findings on phantoms: what the report asked for against what the measuring module finds in the volume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.cases import EvaluationError, RealCase

SIDED = ("Pleural effusion", "Consolidation", "Lung nodule")
UNSIDED = (
    "Cardiomegaly",
    "Pericardial effusion",
    "Emphysema",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Medical material",
)
LABELS = (*SIDED, *UNSIDED)
SIDES = ("left", "right")
ANYWHERE = "none"
ALL = "all (micro-average)"


@dataclass
class Tally:
    """Counts over cases for one finding.

    Attributes:
        true: Slots (a side, or the whole volume) that have the finding.
        hit: Of those, found.
        absent: Slots without it.
        false: Of those, found nevertheless.
        one_sided: Cases that have it on one side only and in which it was found.
        right_side: Of those, found on that side only.
        size_errors: Measured over true size, minus 1.
    """

    true: int = 0
    hit: int = 0
    absent: int = 0
    false: int = 0
    one_sided: int = 0
    right_side: int = 0
    size_errors: list[float] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.true + other.true,
            self.hit + other.hit,
            self.absent + other.absent,
            self.false + other.false,
            self.one_sided + other.one_sided,
            self.right_side + other.right_side,
            self.size_errors + other.size_errors,
        )


def scorecard(
    source: str, cases: Sequence[RealCase], features: Sequence[CaseFeatures], setting: str
) -> list[dict[str, Any]]:
    """One line per finding and their micro-average; empty where no case has ground truth.

    Args:
        source: What was measured: the model's volumes, or the phantoms themselves (the module's own error).
        cases: The cases, with ground truth beside the phantoms they come from.
        features: Of their volumes, measured.
        setting: For the lines.
    """
    truths = {case.case_id: read_truth(case) for case in cases if case.truth_path}
    tallies = {label: Tally() for label in LABELS}
    measured = [f for f in features if "findings" in f.info and f.case_id in truths]
    for case in measured:
        for label in LABELS:
            tallies[label] += _tally(label, truths[case.case_id], case.info["findings"])
    if not measured:
        return []
    whole = sum(tallies.values(), Tally())
    return [_line(setting, source, label, tally) for label, tally in (*tallies.items(), (ALL, whole))]


def read_truth(case: RealCase) -> dict[str, Any]:
    """The ground truth beside a phantom.

    Raises:
        EvaluationError: The file is gone or is no JSON.
    """
    assert case.truth_path is not None
    try:
        return json.loads(Path(case.truth_path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"case {case.case_id}: no ground truth at {case.truth_path} ({error})",
            "the phantoms the shards were made from, still in their place",
            "make them again with data_prep.phantom and data_prep.ct_rate",
        ) from error


def true_slots(label: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """Sides that have a finding, with its size (ml; the largest nodule's mm) or NaN."""
    slots: dict[str, float] = {}
    for item in truth["findings"]:
        if item["label"] != label:
            continue
        sides = (
            (ANYWHERE,) if label in UNSIDED else SIDES if item.get("side") == "both" else (item.get("side"),)
        )
        size = item.get("size_mm") if label == "Lung nodule" else item.get("volume_ml")
        # A volume stated for both sides together says nothing about either.
        value = math.nan if size is None or item.get("side") == "both" else float(size)
        for side in sides:
            old = slots.get(str(side))
            both = [v for v in (old, value) if v is not None]
            slots[str(side)] = max(both) if label == "Lung nodule" else sum(both)
    return slots


def found_slots(label: str, findings: Mapping[str, Any]) -> dict[str, float]:
    """Sides on which the measuring module found it, with the size."""
    slots: dict[str, float] = {}
    for side, size in findings.get(label, []):
        name = ANYWHERE if label in UNSIDED else str(side)
        slots[name] = max(float(size), slots.get(name, 0.0))
    return slots


def _tally(label: str, truth: Mapping[str, Any], findings: Mapping[str, Any]) -> Tally:
    true, found = true_slots(label, truth), found_slots(label, findings)
    slots = (ANYWHERE,) if label in UNSIDED else SIDES
    hits = [slot for slot in slots if slot in true and slot in found]
    tally = Tally(
        true=sum(slot in true for slot in slots),
        hit=len(hits),
        absent=sum(slot not in true for slot in slots),
        false=sum(slot in found and slot not in true for slot in slots),
    )
    if label in SIDED and len(true) == 1 and found:
        tally.one_sided, tally.right_side = 1, int(set(found) == set(true))
    if label in SIDED:
        tally.size_errors = [found[s] / true[s] - 1 for s in hits if math.isfinite(true[s]) and true[s] > 0]
    return tally


def _line(setting: str, source: str, label: str, tally: Tally) -> dict[str, Any]:
    return {
        "setting": setting,
        "source": source,
        "finding": label,
        "present": tally.true,
        "recall": _ratio(tally.hit, tally.true),
        "absent": tally.absent,
        "false positives": _ratio(tally.false, tally.absent),
        "right side": _ratio(tally.right_side, tally.one_sided),
        "median size error": float(np.median(np.abs(tally.size_errors))) if tally.size_errors else None,
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
