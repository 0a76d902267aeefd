"""Results as Markdown, CSV and JSON, and as text for the log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ctflow.evaluation.evaluation import Evaluation
from ctflow.evaluation.glossary import explained
from ctflow.evaluation.monitoring import Reading
from ctflow.evaluation.summary import CAPTION, summary
from ctflow.evaluation.table import MODEL, Row, number

COLUMNS = (
    "setting",
    "source",
    "metric",
    "px",
    "value [95 %]",
    "at infinite N [95 %]",
    "N",
    "reference",
    "cases",
    "notes",
)
DISCLAIMER = (
    "Metrics named `*_rand2d`, `*_rand3d` use frozen random convolutions: they order damage, they do not "
    "measure clinical realism. `clip_phantom` is the embedded pair trained on phantoms, not CT-CLIP. "
    "Fréchet values at different N, clip lengths or slice sets are not comparable; compare the extrapolated "
    "ones."
)


def write_all(evaluation: Evaluation, folder: Path) -> None:
    """``table.md``, ``table.csv``, ``monitors.csv`` and ``results.json`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown(evaluation), encoding="utf-8")
    _write_csv(folder / "table.csv", Row, [*evaluation.rows, *evaluation.between])
    _write_csv(folder / "monitors.csv", Reading, evaluation.readings)
    (folder / "results.json").write_text(json.dumps(as_json(evaluation), indent=1), encoding="utf-8")


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the pictures; missing numbers are null."""
    return _without_nan(
        {
            "rows": [asdict(row) for row in evaluation.rows],
            "between_settings": [asdict(row) for row in evaluation.between],
            "monitors": [asdict(reading) for reading in evaluation.readings],
            "findings": evaluation.findings,
            "provenance": evaluation.provenance,
        }
    )


def markdown(evaluation: Evaluation) -> str:
    """The whole report as Markdown."""
    header, lines = summary(evaluation.rows)
    parts = ["# Evaluation", *_alarm_lines(evaluation.readings)]
    parts += ["## Summary", _markdown_table(header, lines), CAPTION, DISCLAIMER]
    names = [*(row.metric for row in evaluation.rows), *(r.monitor for r in evaluation.readings)]
    parts += ["## How to read it", _markdown_table(["name", "meaning"], explained(names))]
    parts += ["## Full table", table_markdown(evaluation.rows)]
    if evaluation.between:
        parts += [
            "## Between settings (blocks ≥ 1, the same cases and slices)",
            table_markdown(evaluation.between),
        ]
    parts += ["## Monitors", monitors_markdown(evaluation.readings)]
    if evaluation.findings:
        parts += ["## Findings", records_markdown(evaluation.findings)]
    return "\n\n".join([*parts, "## Provenance", facts_markdown(evaluation.provenance)]) + "\n"


def facts_markdown(facts: dict[str, Any]) -> str:
    """A block of provenance as a Markdown list."""
    return "\n".join(f"- {key}: `{_compact(value)}`" for key, value in facts.items())


def table_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = [
            row.setting,
            row.source,
            row.metric,
            str(row.resolution or ""),
            row.text(),
            row.extrapolated_text(),
        ]
        cells += [str(n) if n else "" for n in (row.samples, row.reference, row.cases)] + [row.reason]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def monitors_markdown(found: Sequence[Reading]) -> str:
    """The monitors as a Markdown table; alarms are marked."""
    lines = [
        "| setting | source | monitor | value | alarm above | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in found:
        value = number(r.value) if math.isfinite(r.value) else f"n/a ({r.reason})"
        limit = number(r.threshold) if math.isfinite(r.threshold) else ""
        lines.append(
            f"| {r.setting} | {r.source} | {r.monitor} | {value} | {limit} | {'ALARM' if r.alarm else ''} |"
        )
    return "\n".join(lines)


def records_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Dictionaries with equal keys as a Markdown table."""
    names = list(records[0])
    return _markdown_table(names, [[_cell(entry[name]) for name in names] for entry in records])


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|" + " --- |" * len(header)
    return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(x) + " |" for x in lines)])


def _alarm_lines(found: Sequence[Reading]) -> list[str]:
    raised = [r for r in found if r.alarm and r.source == MODEL]
    lines = [
        f"- **ALARM** {r.setting}: {r.monitor} = {number(r.value)}, above {number(r.threshold)}"
        for r in raised
    ]
    return ["\n".join(lines) if lines else "No monitor raised an alarm."]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def _write_csv(path: Path, kind: type, items: Sequence[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f.name for f in fields(kind)]
        writer.writerow(names)
        for item in items:
            values = [getattr(item, name) for name in names]
            writer.writerow(["" if isinstance(v, float) and not math.isfinite(v) else v for v in values])


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
