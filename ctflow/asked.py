"""The findings of a report compared with a measurement of its volume."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.anatomy import LABELS, SIDES, Found, Measurement, findings, measure
from ctflow.reports import StatedFinding, parse_report, summarised
from ctflow.types import HUVolume


@dataclass(frozen=True)
class AskedAndFound:
    """Findings in words, for the log and for provenance.

    Attributes:
        asked: What the report states, e.g. ``pleural effusion right, large`` or ``no cardiomegaly``.
        unmeasured: What it states of labels that the measuring module does not read.
        found: What the measuring module finds, e.g. ``pleural effusion left 118 ml``.
    """

    asked: list[str]
    unmeasured: list[str]
    found: list[str]

    def __str__(self) -> str:
        """One line: ``asked: …; found: …``."""
        parts = [f"asked: {_listed(self.asked)}", f"found: {_listed(self.found)}"]
        if self.unmeasured:
            parts.append(f"not measured: {_listed(self.unmeasured)}")
        return "; ".join(parts)


FOUND, MISSING, ABSENT, UNWANTED, UNASKED = (
    "found",
    "missing",
    "absent, as asked",
    "found against it",
    "not asked",
)
UNMEASURED = "not measured"
"""Verdicts; see ``Verdict``."""


@dataclass(frozen=True)
class Verdict:
    """One finding, as the report has it and as the volume has it.

    Attributes:
        asked: The report's statement; empty where it says nothing of it.
        found: What is measured under its label, on its side; empty where nothing is.
        verdict: ``found`` or ``missing`` (the report states it), ``absent, as asked`` or ``found against it``
            (the report denies it), ``not asked``, or ``not measured``.
    """

    asked: str
    found: str
    verdict: str


def verdicts(report: str, measurement: Measurement) -> list[Verdict]:
    """A report's statements with their measurements, then the measured findings beyond them.

    Args:
        report: The text; may be empty.
        measurement: Of the volume.
    """
    found = findings(measurement)
    lines, told = [], set()
    for stated in summarised(parse_report(report)):
        if stated.label not in LABELS:
            lines.append(Verdict(str(stated), "", UNMEASURED))
            continue
        own = [one for one in found.get(stated.label, []) if _beside(stated, one)]
        told |= {(stated.label, one) for one in own}
        words = ", ".join(_told(stated.label, one) for one in own)
        if not stated.present:
            lines.append(Verdict(str(stated), words, UNWANTED if own else ABSENT))
        else:
            sides = {one.side for one in own}
            whole = bool(own) and (stated.side != "both" or sides >= {*SIDES})
            lines.append(Verdict(str(stated), words, FOUND if whole else MISSING))
    beyond = ((label, one) for label, own in found.items() for one in own if (label, one) not in told)
    return lines + [Verdict("", _told(label, one), UNASKED) for label, one in beyond]


def _beside(stated: StatedFinding, found: Found) -> bool:
    """Whether something measured lies on the side that is stated."""
    return stated.side in (None, "both") or found.side in (None, stated.side)


def asked_and_found(report: str, volume: HUVolume) -> AskedAndFound:
    """Compare a report's statements with the findings measured in a volume (docs/anatomy.md).

    Args:
        report: The text the volume was generated from.
        volume: HU with its true spacing.

    Raises:
        CTFlowError: A spacing that gives slices no body part's size.
    """
    return asked_beside(report, measure(volume))


def asked_beside(report: str, measurement: Measurement) -> AskedAndFound:
    """``asked_and_found`` of a volume that has been measured."""
    stated = summarised(parse_report(report))
    found = findings(measurement)
    return AskedAndFound(
        asked=[str(finding) for finding in stated if finding.label in LABELS],
        unmeasured=[str(finding) for finding in stated if finding.label not in LABELS],
        found=[_told(label, one) for label, own in found.items() for one in own],
    )


def _told(label: str, found: Found) -> str:
    if found.unit == "ratio":
        size = f"{found.size:.2f}"
    else:  # calcium of less than 1 ml is a finding: "0 ml" would deny it
        size = f"{found.size:{'.1g' if found.size < 1 else '.0f'}} {found.unit}"
    return " ".join(part for part in (label.lower(), found.side or "", size) if part)


def _listed(parts: list[str]) -> str:
    return ", ".join(parts) or "nothing"
