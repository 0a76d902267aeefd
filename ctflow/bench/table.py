"""The benchmark as JSON and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctflow.bench.measure import Row
from ctflow.files import write_text

_COLUMNS = [
    "stage",
    "precision",
    "seconds",
    "reference",
    "times faster",
    "outputs differ by",
    "of peak",
    "peak MiB",
    "note",
]


def write_tables(rows: Sequence[Row], facts: Mapping[str, Any], output: Path) -> None:
    """Write ``output`` (JSON) and the same as Markdown in its folder."""
    content = {**facts, "rows": [asdict(row) for row in rows]}
    write_text(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(output.with_suffix(".md"), markdown(rows, facts))


def markdown(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """A table with one line per row, and what it was measured on above it."""
    head = "; ".join(f"{name}: {value}" for name, value in facts.items())
    lines = [head, "", f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)]) + "\n"


def _cells(row: Row) -> list[str]:
    low, high = row.spread
    reference = row.reference
    if row.reference_seconds is not None:
        reference += f": {row.reference_seconds:.3g} s"
    ratio = ""
    if row.ratio is not None and row.ratio_spread is not None:
        ratio = f"{row.ratio:.2f} ({row.ratio_spread[0]:.2f}–{row.ratio_spread[1]:.2f})"
    return [
        row.stage,
        row.precision,
        f"{row.seconds:.3g} ({low:.3g}–{high:.3g})",
        reference,
        ratio,
        "" if row.difference is None else f"{row.difference:.1e}",
        "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}",
        "" if row.peak_mib is None else f"{row.peak_mib:.0f}",
        row.note,
    ]
