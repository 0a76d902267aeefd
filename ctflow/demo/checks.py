"""The checks of ``make demo``: anatomy in each volume, and the effusions of the reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctflow.anatomy import SIDES, Found, Measurement, findings, measure, phantom_ranges
from ctflow.data.nifti import read_nifti
from ctflow.errors import CTFlowError
from ctflow.reports import parse_report, summarised

EFFUSION = "Pleural effusion"


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: What must hold.
        holds: Whether it does.
        found: The measured value in words.
    """

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Draw:
    """One generated volume, measured.

    Attributes:
        report: Number of its report.
        seed: Its seed.
        path: Where it lies.
        missing: Parts of the anatomy that a phantom has and this volume lacks.
        effusions: The effusions found in it.
    """

    report: int
    seed: int
    path: Path
    missing: list[str]
    effusions: list[Found]

    @property
    def sides(self) -> set[str]:
        """Sides on which an effusion is found."""
        return {found.side for found in self.effusions if found.side}

    @property
    def told(self) -> str:
        """The effusions in words."""
        return ", ".join(f"{f.side} {f.size:.0f} {f.unit}" for f in self.effusions) or "no effusion"


def asked_sides(report: str) -> set[str]:
    """Sides on which a report states a pleural effusion; empty where it denies one.

    Raises:
        CTFlowError: It says nothing about effusions, or names no side.
    """
    stated = [finding for finding in summarised(parse_report(report)) if finding.label == EFFUSION]
    sides: set[str] = set()
    for finding in stated:
        if finding.present and finding.side is None:
            stated = []
        elif finding.present:
            sides |= set(SIDES) if finding.side == "both" else {str(finding.side)}
    if not stated:
        raise CTFlowError(
            f"the report {report[:80]!r}",
            "a sentence with a pleural effusion and its side, or one that denies it",
        )
    return sides


def measured(report: int, seed: int, path: Path) -> Draw:
    """Measure a generated volume."""
    measurement = measure(read_nifti(path))
    effusions = findings(measurement).get(EFFUSION, [])
    return Draw(report, seed, path, missing_anatomy(measurement), effusions)


def missing_anatomy(measurement: Measurement) -> list[str]:
    """Which of two lungs of a phantom's volume, spine, heart and trachea are missing."""
    inside = phantom_ranges().holds(measurement)
    held = {f"{side} lung": inside[side] for side in SIDES} | {
        "spine": measurement.spine.present,
        "heart": measurement.heart.present,
        "trachea": measurement.trachea.present,
    }
    return [name for name, present in held.items() if not present]


def check_draws(draws: list[Draw], reports: list[str], least: float) -> list[Check]:
    """Count over the reports and seeds.

    Args:
        draws: Every volume that was generated.
        reports: The reports by number.
        least: Share of all volumes that must show exactly what was asked for, and share that must show the
            anatomy.
    """
    told, hits = [], 0
    for number, report in enumerate(reports):
        own, asked = [draw for draw in draws if draw.report == number], asked_sides(report)
        exact = sum(draw.sides == asked for draw in own)
        hits += exact
        if asked:
            some = sum(bool(draw.sides) for draw in own)
            where = f"on the {' and '.join(sorted(asked))}, there alone, in {exact}"
            told.append(f"“{report}”: effusion in {some} of {len(own)}, {where}")
        else:
            told.append(f"“{report}”: none in {exact} of {len(own)}")
    whole = sum(not draw.missing for draw in draws)
    lacking = sorted({name for draw in draws for name in draw.missing})
    missing = f"; elsewhere not found: {', '.join(lacking)}" if lacking else ""
    wanted = least * len(draws)
    return [
        Check("effusions exactly as asked", hits >= wanted, f"{hits} of {len(draws)}. " + "; ".join(told)),
        Check("two lungs, spine, heart and trachea", whole >= wanted, f"{whole} of {len(draws)}{missing}"),
    ]
