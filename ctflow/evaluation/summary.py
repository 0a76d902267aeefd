"""The paper's table: a line per setting, resolution and source, a column per metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ctflow.evaluation.glossary import labelled
from ctflow.evaluation.table import Row, number

CAPTION = (
    "Value → value at infinite N, where there is one. Intervals, N and notes are in the full table. A "
    "resolution marked * is above the volumes' own: they were upsampled to it."
)


def summary(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines; metrics without a resolution (reports) stand in each of their setting's lines.

    Args:
        rows: The whole table.
    """
    shown = [row for row in rows if row.metric != "all"]
    metrics = list(dict.fromkeys(row.metric for row in shown))
    lines = []
    for setting, source in dict.fromkeys((row.setting, row.source) for row in shown):
        own = [row for row in shown if (row.setting, row.source) == (setting, source)]
        sides = list(dict.fromkeys(row.resolution for row in own if row.resolution)) or [0]
        for side in sides:
            cells = {row.metric: row for row in own if row.resolution in (side, 0)}
            upsampled = any("upsampled" in row.reason for row in cells.values())
            head = [setting, f"{side or ''}{'*' if upsampled else ''}", source]
            lines.append(head + [_cell(cells[name]) if name in cells else "" for name in metrics])
    return ["setting", "px", "source", *map(labelled, metrics)], lines


def _cell(row: Row) -> str:
    if row.missing:
        return row.text()
    value = number(row.value)
    return f"{value} → {number(row.extrapolated)}" if math.isfinite(row.extrapolated) else value
