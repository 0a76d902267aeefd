"""Phantoms that show what a report states: a truth to lay beside volumes generated from the same report."""

from __future__ import annotations

import dataclasses
from typing import Any

from ctflow.errors import CTFlowError
from ctflow.reports import StatedFinding, parse_report, summarised
from data_prep.phantom.contrast import LARGE_ML, MIRRORED, SMALL_ML, requested_finding
from data_prep.phantom.spec import Finding, PhantomSpec

_GRADED_ML = {
    "small": SMALL_ML,
    "mild": SMALL_ML,
    "moderate": (SMALL_ML[1], LARGE_ML[0]),
    "large": LARGE_ML,
    "severe": LARGE_ML,
}
"""Millilitres of an effusion that a report grades in words."""
_SIDED = (*MIRRORED, "Lung opacity", "Bronchiectasis", "Pulmonary fibrotic sequela")


def with_stated(spec: PhantomSpec, report: str) -> PhantomSpec:
    """A patient whose findings are those that a report states, and no others.

    Args:
        spec: Gives patient and scan; its own findings are taken out.
        report: Findings in words; sides, lobes, sizes, volumes and grades are read (``ctflow.reports``).

    Raises:
        CTFlowError: The report states or denies no finding.
    """
    stated = summarised(parse_report(report))
    if not stated:
        raise CTFlowError(
            f"no finding in the report {report[:80]!r}",
            "sentences that state or deny findings, e.g. `There is a large right pleural effusion.`",
        )
    drawn = spec.with_findings()
    for statement in stated:
        if statement.present:
            drawn = drawn.plus(*_drawn(drawn, statement))
    return drawn


def _drawn(spec: PhantomSpec, stated: StatedFinding) -> list[Finding]:
    both = stated.side == "both" and stated.label in _SIDED
    sides = ["right", "left"] if both else [stated.side if stated.label in _SIDED else None]
    return [_sized(requested_finding(spec, stated.label, side), stated) for side in sides]


def _sized(finding: Finding, stated: StatedFinding) -> Finding:
    """The finding with the lobe and the size that the report gives it."""
    told: dict[str, Any] = {
        name: value
        for name in ("lobe", "size_mm", "ratio", "volume_ml")
        if getattr(finding, name) is not None and (value := getattr(stated, name)) is not None
    }
    if "lobe" in told:
        told["side"] = told["lobe"].split()[0]
    if finding.volume_ml is not None and stated.volume_ml is None and stated.grade:
        low, high = _GRADED_ML[stated.grade]
        told["volume_ml"] = (low + high) / 2
    return dataclasses.replace(finding, **told)
