"""``contrast``: pairs of reports that differ in one finding, on equal noise, measured as pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctflow.anatomy import LABELS, SIDED, found_places
from ctflow.config.system import SystemConfig
from ctflow.errors import CTFlowError, EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import RealCase
from ctflow.evaluation.features import CaseFeatures
from ctflow.evaluation.settings import SETTINGS
from ctflow.shipped import shipped_path
from ctflow.text_files import read_table

COLUMNS = ("pair", "label", "slices", "report_a", "side_a", "report_b", "side_b")
EXPECTED = ("left", "right", "present", "absent")


@dataclass(frozen=True)
class ReportPair:
    """Two reports that differ in one finding.

    Attributes:
        name: Of the pair; names its noise.
        label: The finding.
        slices: Length asked for.
        reports: Both texts.
        sides: What each says of the finding: ``left``, ``right``, ``present`` (no side) or ``absent``.
    """

    name: str
    label: str
    slices: int
    reports: tuple[str, str]
    sides: tuple[str, str]

    @property
    def kind(self) -> str:
        """``present or absent``, or ``left or right``."""
        return "present or absent" if "absent" in self.sides else "left or right"


def contrast(context: Context) -> AnalysisResult:
    """Per finding: how often each half of a pair, and the pair as a whole, shows what its report says."""
    config = context.config
    pairs = read_pairs(shipped_path(config.analysis.pairs))
    extractor = context.extractor()
    outcomes: list[tuple[ReportPair, bool, bool]] = []
    with context.progress(2 * len(pairs) * config.analysis.pair_seeds) as bar:
        for seed in range(config.analysis.pair_seeds):
            halves: list[list[CaseFeatures]] = []
            for half in (0, 1):
                # Equal case ids give both halves equal noise; the report is part of the cache's key.
                own = replace(config, seed=config.seed + seed)
                collector = context.collector(None, extractor, own, findings=True, bar=bar)
                cases = [_case(pair, half, context.system.config) for pair in pairs]
                halves.append(collector.generated(SETTINGS["full-body"], cases))
            for pair, first, second in zip(pairs, *halves, strict=True):
                outcomes.append((pair, shows(first, pair, 0), shows(second, pair, 1)))
    records = [
        _record(label, kind, outcomes) for label, kind in dict.fromkeys((p.label, p.kind) for p in pairs)
    ]
    text = (
        f"{len(pairs)} pairs × {config.analysis.pair_seeds} seeds; both halves of a pair start from equal "
        "noise. Chance for a pair: 25 % if the module were a coin; 0 % for a model that ignores the report."
    )
    return AnalysisResult("Contrast pairs", text, records)


def read_pairs(path: Path) -> list[ReportPair]:
    """Pairs from a CSV with the columns of ``COLUMNS``.

    Raises:
        EvaluationError: No such file, other columns, an unknown label or side, no number of slices.
    """
    try:
        table = read_table(path)
    except CTFlowError as error:
        raise EvaluationError(
            f"no report pairs at {path}: {error.found}", f"a CSV with {', '.join(COLUMNS)}"
        ) from error
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise EvaluationError(f"{path} lacks the columns {', '.join(missing)}", f"{', '.join(COLUMNS)}")
    pairs = []
    for number, row in table.rows:
        sides = (row["side_a"], row["side_b"])
        if row["label"] not in LABELS or not set(sides) <= set(EXPECTED):
            raise EvaluationError(
                f"{path}, pair {row['pair']}: {row['label']!r} with the sides {sides}",
                f"a label of {', '.join(LABELS)}; sides of {', '.join(EXPECTED)}",
            )
        slices = row["slices"].removesuffix(".0")
        if not slices.isdecimal() or not int(slices):
            raise EvaluationError(
                f"{path}, row {number}: slices {row['slices']!r}", "a whole number of slices from 1 up"
            )
        reports = (row["report_a"], row["report_b"])
        pairs.append(ReportPair(row["pair"], row["label"], int(slices), reports, sides))
    return pairs


def shows(features: CaseFeatures, pair: ReportPair, half: int) -> bool:
    """Whether a volume shows of the pair's finding what its half of the pair says."""
    found, wanted = found_places(pair.label, features.findings or {}), pair.sides[half]
    if wanted == "absent":
        # Only the side that the other report names is in question.
        other = pair.sides[1 - half]
        return other not in found if other in ("left", "right") else not found
    return (
        wanted in found and (pair.kind != "left or right" or len(found) == 1)
        if pair.label in SIDED
        else bool(found)
    )


def _case(pair: ReportPair, half: int, system: SystemConfig) -> RealCase:
    side, pixel = system.image_size, system.pixel_spacing_mm
    return RealCase(
        case_id=f"contrast {pair.name}",
        patient_id=pair.name,
        report=pair.reports[half],
        shape=(pair.slices, side, side),
        spacing=(system.z_spacing_mm, pixel, pixel),
        digest=pair.name,
    )


def _record(label: str, kind: str, outcomes: Sequence[tuple[ReportPair, bool, bool]]) -> dict[str, Any]:
    own = [(a, b) for pair, a, b in outcomes if (pair.label, pair.kind) == (label, kind)]
    number = len(own)
    return {
        "finding": label,
        "pair": kind,
        "pairs": number,
        "first half right": sum(a for a, _ in own) / number,
        "second half right": sum(b for _, b in own) / number,
        "both right": sum(a and b for a, b in own) / number,
    }
