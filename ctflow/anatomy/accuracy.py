"""How well findings and anatomy agree with the truth over many phantoms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctflow.anatomy.comparison import ANYWHERE, Comparison, LabelCheck
from ctflow.anatomy.findings import LABELS
from ctflow.anatomy.types import SIDES

NODULE_BINS_MM = ((0.0, 6.0), (6.0, 8.0), (8.0, 12.0), (12.0, 20.0), (20.0, 100.0))


@dataclass(frozen=True)
class ErrorSummary:
    """A set of signed errors; None where there are none.

    Attributes:
        n: How many.
        bias: Mean.
        median_absolute: Median of the absolute values.
        p95_absolute: 95th percentile of the absolute values.
    """

    n: int
    bias: float | None = None
    median_absolute: float | None = None
    p95_absolute: float | None = None


def summarise(errors: Iterable[float | None]) -> ErrorSummary:
    """Mean, median and 95th percentile; entries that are None (not measured) are left out."""
    values = np.asarray([error for error in errors if error is not None], dtype=float)
    if values.size == 0:
        return ErrorSummary(0)
    size = np.abs(values)
    return ErrorSummary(
        int(values.size), float(values.mean()), float(np.median(size)), float(np.percentile(size, 95))
    )


@dataclass(frozen=True)
class Agreement:
    """Found against true findings over many checks; places are sides, or whole volumes for labels without.

    Attributes:
        volumes: Checks whose phantom has the finding.
        present: Places that have it.
        hit: Of those, places where it was found.
        absent: Places without it.
        false: Of those, places where it was found nevertheless.
        one_sided: Checks that have it on one side only and in which it was found.
        right_side: Of those, found on that side only.
        size_errors: Measured over true size less 1, per side found.
    """

    volumes: int
    present: int
    hit: int
    absent: int
    false: int
    one_sided: int
    right_side: int
    size_errors: tuple[float, ...]

    @classmethod
    def of(cls, checks: Sequence[LabelCheck]) -> Agreement:
        """Counts over checks, of one label or of several."""
        flags = [(p in check.true, p in check.found) for check in checks for p in check.places]
        one_sided = [c for c in checks if ANYWHERE not in c.places and len(c.true) == 1 and c.found]
        return cls(
            volumes=sum(bool(check.true) for check in checks),
            present=sum(true for true, _ in flags),
            hit=sum(true and found for true, found in flags),
            absent=sum(not true for true, _ in flags),
            false=sum(found and not true for true, found in flags),
            one_sided=len(one_sided),
            right_side=sum(set(check.found) == set(check.true) for check in one_sided),
            size_errors=tuple(error for check in checks for error in check.size_errors),
        )

    @property
    def recall(self) -> float | None:
        """Share of the places with the finding where it was found; None without any."""
        return _ratio(self.hit, self.present)

    @property
    def false_positive_rate(self) -> float | None:
        """Share of the places without the finding where it was found; None without any."""
        return _ratio(self.false, self.absent)

    @property
    def side_accuracy(self) -> float | None:
        """Share of the one-sided findings that were found on their side only; None without any."""
        return _ratio(self.right_side, self.one_sided)


def aggregate(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracy over volumes.

    Returns:
        ``volumes``; ``anatomy`` (shares found, error summaries); ``findings`` per label with ``n``
        (volumes that have it), ``recall``, ``false_positive_rate`` and ``side_accuracy`` (see ``Agreement``)
        and ``size_error_percent``; ``nodules`` by diameter and ``nodule_false_positives_per_volume``.
    """
    anatomy = {
        "two_lungs": _share(c.two_lungs for c in comparisons),
        "spine": _share(c.spine_error_mm is not None for c in comparisons),
        "heart": _share(c.heart_error_mm is not None for c in comparisons),
        "trachea": _share(c.trachea_error_mm is not None for c in comparisons),
        "lung_error_percent": summarise(
            100.0 * c.lung_error_ml[side] / c.lung_true_ml[side]
            for c in comparisons
            for side in SIDES
            if c.lung_true_ml[side] > 0
        ),
        "spine_error_mm": summarise(c.spine_error_mm for c in comparisons),
        "heart_error_mm": summarise(c.heart_error_mm for c in comparisons),
        "trachea_error_mm": summarise(c.trachea_error_mm for c in comparisons),
    }
    return {
        "volumes": len(comparisons),
        "anatomy": {k: vars(v) if isinstance(v, ErrorSummary) else v for k, v in anatomy.items()},
        "findings": {label: _label_row([c.labels[label] for c in comparisons]) for label in LABELS},
        "nodules": _nodule_rows(comparisons),
        "nodule_side_accuracy": _share(
            m.same_side for c in comparisons for m in c.nodules if m.same_side is not None
        ),
        "nodule_false_positives_per_volume": _ratio(
            sum(len(c.extra_nodules_mm) for c in comparisons), len(comparisons)
        ),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share(flags: Iterable[bool | None]) -> float | None:
    values = [bool(flag) for flag in flags]
    return _ratio(sum(values), len(values))


def _label_row(checks: Sequence[LabelCheck]) -> dict[str, Any]:
    agreement = Agreement.of(checks)
    return {
        "n": agreement.volumes,
        "recall": agreement.recall,
        "false_positive_rate": agreement.false_positive_rate,
        "side_accuracy": agreement.side_accuracy,
        "size_error_percent": vars(summarise(100.0 * error for error in agreement.size_errors)),
    }


def _nodule_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    rows = []
    for low, high in NODULE_BINS_MM:
        true = [m for c in comparisons for m in c.nodules if low <= m.diameter_mm < high]
        rows.append(
            {
                "from_mm": low,
                "to_mm": high,
                "n": len(true),
                "recall": _share(m.found_mm is not None for m in true),
                "diameter_error_mm": vars(
                    summarise(m.found_mm - m.diameter_mm for m in true if m.found_mm is not None)
                ),
                "false_positives_per_volume": _ratio(
                    sum(low <= d < high for c in comparisons for d in c.extra_nodules_mm), len(comparisons)
                ),
            }
        )
    return rows
