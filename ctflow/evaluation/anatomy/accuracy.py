"""The module's own accuracy over many phantoms, as numbers and as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctflow.evaluation.anatomy.truth import SIDED, UNSIDED, Comparison

NODULE_BINS_MM = ((0.0, 6.0), (6.0, 8.0), (8.0, 12.0), (12.0, 20.0), (20.0, 100.0))


@dataclass(frozen=True)
class ErrorSummary:
    """A set of signed errors.

    Attributes:
        n: How many.
        bias: Mean.
        median_absolute: Median of the absolute values.
        p95_absolute: 95th percentile of the absolute values.
    """

    n: int
    bias: float
    median_absolute: float
    p95_absolute: float


def summarise(errors: Iterable[float | None]) -> ErrorSummary:
    """Mean, median and 95th percentile; entries that are None (not measured) are left out."""
    values = np.asarray([error for error in errors if error is not None], dtype=float)
    if values.size == 0:
        return ErrorSummary(0, float("nan"), float("nan"), float("nan"))
    size = np.abs(values)
    return ErrorSummary(
        int(values.size), float(values.mean()), float(np.median(size)), float(np.percentile(size, 95))
    )


def aggregate(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracy over volumes.

    Returns:
        ``volumes``; ``anatomy`` (shares found, error summaries); ``findings`` per label with ``n``
        (volumes that have it), ``recall`` (of true sides), ``false_positive_rate`` (of sides without it),
        ``side_accuracy`` (volumes found at all whose set of sides is exactly right) and
        ``size_error_percent``; ``nodules`` by diameter and ``nodule_false_positives_per_volume``.
    """
    sides = ("left", "right")
    anatomy = {
        "two_lungs": _share(c.two_lungs for c in comparisons),
        "spine": _share(c.spine_error_mm is not None for c in comparisons),
        "heart": _share(c.heart_error_mm is not None for c in comparisons),
        "trachea": _share(c.trachea_error_mm is not None for c in comparisons),
        "lung_error_percent": summarise(
            100.0 * c.lung_error_ml[side] / c.lung_true_ml[side]
            for c in comparisons
            for side in sides
            if c.lung_true_ml[side] > 0
        ),
        "spine_error_mm": summarise(c.spine_error_mm for c in comparisons),
        "heart_error_mm": summarise(c.heart_error_mm for c in comparisons),
        "trachea_error_mm": summarise(c.trachea_error_mm for c in comparisons),
    }
    return {
        "volumes": len(comparisons),
        "anatomy": {k: v if isinstance(v, float) else vars(v) for k, v in anatomy.items()},
        "findings": {label: _label_row(comparisons, label) for label in (*SIDED, *UNSIDED)},
        "nodules": _nodule_rows(comparisons),
        "nodule_side_accuracy": _share(
            m.same_side for c in comparisons for m in c.nodules if m.same_side is not None
        ),
        "nodule_false_positives_per_volume": (
            float(np.mean([len(c.extra_nodules_mm) for c in comparisons])) if comparisons else float("nan")
        ),
    }


def _share(flags: Iterable[bool | None]) -> float:
    values = [bool(flag) for flag in flags]
    return float(np.mean(values)) if values else float("nan")


def _label_row(comparisons: Sequence[Comparison], label: str) -> dict[str, Any]:
    sides = ("left", "right") if label in SIDED else ("none",)
    checks = [c.labels[label] for c in comparisons]
    pairs = [(side in check.true_sides, side in check.found_sides) for check in checks for side in sides]
    errors = [100.0 * (found - true) / true for check in checks for true, found in check.sizes if true > 0]
    return {
        "n": sum(bool(check.true_sides) for check in checks),
        "recall": _share(found for true, found in pairs if true),
        "false_positive_rate": _share(found for true, found in pairs if not true),
        "side_accuracy": _share(
            check.true_sides == check.found_sides
            for check in checks
            if check.true_sides and check.found_sides
        ),
        "size_error_percent": vars(summarise(errors)),
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
                "false_positives_per_volume": (
                    float(np.mean([sum(low <= d < high for d in c.extra_nodules_mm) for c in comparisons]))
                    if comparisons
                    else float("nan")
                ),
            }
        )
    return rows


def to_markdown(result: dict[str, Any]) -> str:
    """The aggregate as three Markdown tables: anatomy, findings, nodules by diameter."""
    anatomy = result["anatomy"]
    lines = [
        f"{result['volumes']} volumes.",
        "",
        "| anatomy | found | error, mean | error, median of absolute | error, 95 % of absolute |",
        "|---|---|---|---|---|",
    ]
    for name, share, error, unit in (
        ("two lungs; aerated volume of each", "two_lungs", "lung_error_percent", "%"),
        ("spine; centre", "spine", "spine_error_mm", "mm"),
        ("heart; width", "heart", "heart_error_mm", "mm"),
        ("trachea; carina", "trachea", "trachea_error_mm", "mm"),
    ):
        e = anatomy[error]
        lines.append(
            f"| {name} | {_percent(anatomy[share])} | {_number(e['bias'])} {unit} | "
            f"{_number(e['median_absolute'])} {unit} | {_number(e['p95_absolute'])} {unit} |"
        )
    lines += [
        "",
        "| finding | volumes with it | recall | false positives | side right | size error, mean "
        "| median of absolute |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in result["findings"].items():
        e = row["size_error_percent"]
        size = f"{_number(e['bias'])} % | {_number(e['median_absolute'])} %" if e["n"] else "– | –"
        side = _percent(row["side_accuracy"]) if label in SIDED else "–"
        lines.append(
            f"| {label} | {row['n']} | {_percent(row['recall'])} | {_percent(row['false_positive_rate'])} "
            f"| {side} | {size} |"
        )
    lines += [
        "",
        "| nodule diameter | true | recall | diameter error, mean | median of absolute "
        "| false positives per volume |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["nodules"]:
        e = row["diameter_error_mm"]
        lines.append(
            f"| {row['from_mm']:.0f}–{row['to_mm']:.0f} mm | {row['n']} | {_percent(row['recall'])} | "
            f"{_number(e['bias'])} mm | {_number(e['median_absolute'])} mm "
            f"| {row['false_positives_per_volume']:.2f} |"
        )
    lines += ["", f"Nodules given the right side: {_percent(result['nodule_side_accuracy'])}."]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1f}"
