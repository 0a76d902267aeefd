"""The tables of a report: the paper's, the full one, monitors, findings, facts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ctflow.evaluation.report.glossary import explained, labelled
from ctflow.evaluation.report.page import Table
from ctflow.evaluation.results import MODEL, Reading, Results, Row, number


def summary_table(rows: Sequence[Row]) -> Table:
    """The paper's table: a line per setting, resolution and source, a column per metric.

    Metrics without a resolution (reports) stand in each of their setting's lines.

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
            lines.append(head + [_short(cells[name]) if name in cells else "" for name in metrics])
    header = ["setting", "px", "source", *map(labelled, metrics)]
    return Table(header, lines, [line[2] != MODEL for line in lines])


def rows_table(rows: Sequence[Row]) -> Table:
    """Every row with everything that stands beside its number."""
    header = ["setting", "source", "metric", "px", "value [95 %]", "at infinite N [95 %]"]
    lines = [
        [
            row.setting,
            row.source,
            row.metric,
            str(row.resolution or ""),
            row.text(),
            row.extrapolated_text(),
            *(str(n or "") for n in (row.samples, row.reference, row.cases)),
            row.reason,
        ]
        for row in rows
    ]
    header += ["N", "reference", "cases", "notes"]
    return Table(header, lines, [row.source != MODEL for row in rows])


def monitors_table(found: Sequence[Reading]) -> Table:
    """The monitors; alarms are marked."""
    lines = [
        [
            r.setting,
            r.source,
            r.monitor,
            number(r.value) if math.isfinite(r.value) else f"n/a ({r.reason})",
            number(r.threshold) if math.isfinite(r.threshold) else "",
            "ALARM" if r.alarm else "",
        ]
        for r in found
    ]
    header = ["setting", "source", "monitor", "value", "alarm above", ""]
    return Table(header, lines, [r.source != MODEL for r in found])


def records_table(records: Sequence[dict[str, Any]]) -> Table:
    """Dictionaries with equal keys."""
    header = list(records[0]) if records else []
    return Table(header, [[_cell(record[name]) for name in header] for record in records])


def glossary_table(results: Results) -> Table:
    """What every printed metric and monitor means."""
    names = [*(row.metric for row in results.rows), *(r.monitor for r in results.readings)]
    return Table(["name", "meaning"], explained(names))


def facts_table(facts: dict[str, Any]) -> Table:
    """A block of provenance."""
    lines = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in facts.items()
    ]
    return Table(["fact", "value"], lines)


def _short(row: Row) -> str:
    if row.missing:
        return row.text()
    value = number(row.value)
    return f"{value} → {number(row.extrapolated)}" if math.isfinite(row.extrapolated) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
