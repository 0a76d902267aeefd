"""One statement of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

Side = Literal["right", "left", "both"]


@dataclass(frozen=True)
class StatedFinding:
    """A finding that a report states or denies.

    Attributes:
        label: One of CT-RATE's 18 labels (``LABELS``).
        present: False where the report denies it.
        side: The patient's side, ``both`` for both, None where none is named.
        lobe: E.g. ``right upper lobe``; None where none is named.
        size_mm: Diameter or thickness; the longest of several axes, of lymph nodes the shortest.
        volume_ml: Millilitres.
        ratio: Cardiothoracic ratio.
        grade: ``small``, ``moderate``, ``large``, ``mild`` or ``severe`` (``minimal`` counts as small,
            ``massive`` as large); None where none is named.
        sentence: The sentence that says so.
    """

    label: str
    present: bool
    side: Side | None = None
    lobe: str | None = None
    size_mm: float | None = None
    volume_ml: float | None = None
    ratio: float | None = None
    grade: str | None = None
    sentence: str = ""

    def __str__(self) -> str:
        """E.g. ``pleural effusion right, large, 950 ml``; ``no cardiomegaly``."""
        place = self.lobe or self.side
        parts = [
            ("" if self.present else "no ") + self.label.lower() + (f" {place}" if place else ""),
            self.grade or "",
            f"{self.size_mm:g} mm" if self.size_mm is not None else "",
            f"{self.volume_ml:g} ml" if self.volume_ml is not None else "",
            f"ratio {self.ratio:g}" if self.ratio is not None else "",
        ]
        return ", ".join(part for part in parts if part)


def summarised(findings: Sequence[StatedFinding]) -> list[StatedFinding]:
    """One statement per finding and place, in the order of first mention.

    Findings and impression often tell the same thing: a statement joins one of its label that is at least as
    precise (place) and contradicts none of its sizes, and leaves it what it knows more. What is stated
    anywhere wins over a denial of the same label and place.
    """
    kept: list[StatedFinding] = []
    for new in findings:
        for i, old in enumerate(kept):
            joined = _joined(old, new)
            if joined is not None:
                kept[i] = joined
                break
        else:
            kept.append(new)
    if len(kept) < len(findings):
        return summarised(kept)
    kept = [f for f in kept if not _told_side_by_side(f, kept)]
    stated = [f for f in kept if f.present]
    return [f for f in kept if f.present or not any(_contradicts(f, other) for other in stated)]


def _told_side_by_side(finding: StatedFinding, among: Sequence[StatedFinding]) -> bool:
    """Whether a finding on both sides, without sizes, also counts as stated for either side."""
    sizes = (finding.size_mm, finding.volume_ml, finding.ratio, finding.grade)
    if finding.side != "both" or any(size is not None for size in sizes):
        return False
    alike = [f.side for f in among if (f.label, f.present) == (finding.label, finding.present)]
    return "right" in alike and "left" in alike


def _joined(a: StatedFinding, b: StatedFinding) -> StatedFinding | None:
    if (a.label, a.present) != (b.label, b.present):
        return None
    place = _precise_place(a, b)
    if place is None:
        return None
    sizes = {}
    for field in fields(a):
        if field.name in ("size_mm", "volume_ml", "ratio", "grade"):
            mine, other = getattr(a, field.name), getattr(b, field.name)
            if None not in (mine, other) and mine != other:
                return None
            sizes[field.name] = mine if mine is not None else other
    return replace(a, side=place.side, lobe=place.lobe, **sizes)


def _precise_place(a: StatedFinding, b: StatedFinding) -> StatedFinding | None:
    """Which of two names the more precise place, None where they are different places."""
    for rough, fine in ((b, a), (a, b)):
        if rough.lobe is None and rough.side in (None, fine.side):
            return fine
        if (rough.lobe, rough.side) == (fine.lobe, fine.side):
            return fine
    return None


def _contradicts(denied: StatedFinding, stated: StatedFinding) -> bool:
    same = denied.label == stated.label
    if denied.lobe is not None:
        return same and denied.lobe == stated.lobe
    return same and (denied.side in (None, "both") or denied.side == stated.side)
