"""Findings on phantoms: what a report names against what is read from the volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctflow.anatomy import LABELS, Agreement, check_labels
from ctflow.evaluation.cases import RealCase, read_truth
from ctflow.evaluation.features import CaseFeatures

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
