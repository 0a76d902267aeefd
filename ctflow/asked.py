"""What a report asks for beside what is measured in the volume that was made from it."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.anatomy import LABELS, Found, findings, measure
from ctflow.reports import parse_report, summarised
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


def asked_and_found(report: str, volume: HUVolume) -> AskedAndFound:
    """Compare a report's statements with the findings measured in a volume (docs/anatomy.md).

    Args:
        report: The text the volume was generated from.
        volume: HU with its true spacing.

    Raises:
        CTFlowError: A spacing that gives slices no body part's size.
    """
    stated = summarised(parse_report(report))
    found = findings(measure(volume))
    return AskedAndFound(
        asked=[str(finding) for finding in stated if finding.label in LABELS],
        unmeasured=[str(finding) for finding in stated if finding.label not in LABELS],
        found=[_told(label, one) for label, own in found.items() for one in own],
    )


def _told(label: str, found: Found) -> str:
    size = f"{found.size:.2f}" if found.unit == "ratio" else f"{found.size:.0f} {found.unit}"
    return " ".join(part for part in (label.lower(), found.side or "", size) if part)


def _listed(parts: list[str]) -> str:
    return ", ".join(parts) or "nothing"
