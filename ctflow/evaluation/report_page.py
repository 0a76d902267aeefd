"""One self-contained HTML page: table, plots, pictures, alarms, and how to make it again. No network."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

matplotlib.use("Agg")
from matplotlib.figure import Figure

from ctflow.evaluation.evaluation import Evaluation
from ctflow.evaluation.glossary import explained
from ctflow.evaluation.monitoring import Reading
from ctflow.evaluation.scoring import Picture
from ctflow.evaluation.summary import CAPTION, summary
from ctflow.evaluation.table import MODEL, OTHER_REAL, RECONSTRUCTION, Row, number
from ctflow.evaluation.writers import COLUMNS, DISCLAIMER

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#1b1f24}
table{border-collapse:collapse;font-size:13px;margin:1em 0}
td,th{border:1px solid #d0d7de;padding:3px 8px;text-align:left;vertical-align:top}
th{background:#f6f8fa}
tr.floor{color:#57606a}
.alarm{color:#b42318;font-weight:600}
img{max-width:100%;border:1px solid #d0d7de;background:#000}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}
figcaption{font-size:12px;color:#57606a}
code,pre{background:#f6f8fa;padding:2px 4px;white-space:pre-wrap;word-break:break-word}
.plot{background:#fff;border:0}
.half{width:560px}
.case{width:370px}
td:first-child{white-space:nowrap}
"""
COLOURS = {MODEL: "#1f6feb", OTHER_REAL: "#2da44e", RECONSTRUCTION: "#bf8700"}


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Write the page of an evaluation."""
    monitors = [reading.monitor for reading in evaluation.readings]
    sections = [
        "<h1>Evaluation</h1>",
        _paragraph(f"Checkpoint or volumes: {_subject(evaluation.provenance)}"),
        _alarms(evaluation.readings),
        "<h2>Summary</h2>",
        _summary(evaluation.rows),
        _paragraph(f"{CAPTION} {DISCLAIMER}".replace("`", "")),
        "<h2>Best, median and worst cases</h2>",
        _paragraph(
            "By the distance of a volume's mean slice features from the reference, in standard deviations of "
            "the reference. Above: lung window, below it soft tissue, then coronal and sagittal cuts."
        ),
        *_pictures(evaluation.pictures),
        "<h2>Plots</h2>",
        *_plots(evaluation.rows),
        "<h2>How to read it</h2>",
        _table(["name", "meaning"], explained([*(r.metric for r in evaluation.rows), *monitors])),
        "<h2>Full table</h2>",
        _rows(evaluation.rows),
    ]
    if evaluation.between:
        sections += [
            "<h2>Between settings (blocks ≥ 1, the same cases and slices)</h2>",
            _rows(evaluation.between),
        ]
    sections += ["<h2>Monitors</h2>", _readings(evaluation.readings)]
    if evaluation.findings:
        sections += ["<h2>Findings</h2>", records_table(evaluation.findings)]
    sections += ["<h2>How to reproduce</h2>", facts_html(evaluation.provenance)]
    path.write_text(page("Evaluation", sections), encoding="utf-8")


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page around sections of HTML."""
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(sections)}</body></html>"


def records_table(records: Sequence[dict[str, Any]]) -> str:
    """Dictionaries with equal keys as an HTML table."""
    if not records:
        return ""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in records[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in record.values()) + "</tr>" for record in records
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def figure_html(figure: Figure, caption: str, kind: str = "plot") -> str:
    """A matplotlib figure as an embedded PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return _image(buffer.getvalue(), caption, kind)


def image_html(image: NDArray[np.uint8], caption: str, kind: str = "") -> str:
    """An 8-bit image as an embedded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return _image(buffer.getvalue(), caption, kind)


def _image(data: bytes, caption: str, kind: str = "") -> str:
    source = base64.b64encode(data).decode()
    text = html.escape(caption)
    return (
        f"<figure><img class='{kind}' alt='{text}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def _rows(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    lines = []
    for row in rows:
        cells = [
            row.setting,
            row.source,
            row.metric,
            row.resolution or "",
            row.text(),
            row.extrapolated_text(),
        ]
        cells += [n or "" for n in (row.samples, row.reference, row.cases)] + [row.reason]
        kind = "" if row.source == MODEL else " class='floor'"
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _summary(rows: Sequence[Row]) -> str:
    header, lines = summary(rows)
    return _table(header, lines, [line[2] != MODEL for line in lines])


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], grey: Sequence[bool] = ()) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = []
    for i, line in enumerate(lines):
        kind = " class='floor'" if grey and grey[i] else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _readings(found: Sequence[Reading]) -> str:
    lines = []
    for r in found:
        value = number(r.value) if math.isfinite(r.value) else f"n/a ({r.reason})"
        limit = number(r.threshold) if math.isfinite(r.threshold) else ""
        alarm = "<span class='alarm'>ALARM</span>" if r.alarm else ""
        cells = [html.escape(text) for text in (r.setting, r.source, r.monitor, value, limit)] + [alarm]
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    names = ("setting", "source", "monitor", "value", "alarm above", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _alarms(found: Sequence[Reading]) -> str:
    raised = [r for r in found if r.alarm and r.source == MODEL]
    if not raised:
        return _paragraph("No monitor raised an alarm.")
    items = "".join(
        f"<li class='alarm'>{html.escape(r.setting)}: {html.escape(r.monitor)} = {number(r.value)}, above "
        f"{number(r.threshold)}</li>"
        for r in raised
    )
    return f"<h2>Alarms</h2><ul>{items}</ul>"


def _plots(rows: Sequence[Row]) -> list[str]:
    """Per metric and resolution: every setting's value and extrapolation with intervals, floors beside."""
    figures = []
    for metric, side in dict.fromkeys((r.metric, r.resolution) for r in rows if not r.missing):
        chosen = [r for r in rows if (r.metric, r.resolution) == (metric, side) and not r.missing]
        figure = Figure(figsize=(4.6, 0.5 + 0.34 * len(chosen)))
        axes = figure.add_subplot()
        for i, row in enumerate(chosen):
            colour = COLOURS.get(row.source, "#57606a")
            _point(axes, i - 0.12, row.value, row.low, row.high, colour, "o")
            _point(axes, i + 0.12, row.extrapolated, row.extrapolated_low, row.extrapolated_high, colour, "D")
        axes.set_yticks(range(len(chosen)), [f"{r.setting}, {r.source}" for r in chosen], fontsize=7)
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        title = f"{metric} at {side} px" if side else metric
        axes.set_title(title, fontsize=9)
        caption = f"{title}: ● value, ◆ at infinite N, bars 95 % intervals"
        figures.append(figure_html(figure, caption, "plot half"))
    return figures


def _point(axes: Any, y: float, value: float, low: float, high: float, colour: str, marker: str) -> None:
    if not math.isfinite(value):
        return
    axes.plot([value], [y], marker, color=colour, markersize=4)
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], "-", color=colour, linewidth=1)


def _pictures(pictures: dict[str, list[Picture]]) -> list[str]:
    parts = []
    for setting, found in pictures.items():
        if not found:
            continue
        places = {"nearest to the real set": 0, "median": len(found) // 2, "farthest": len(found) - 1}
        parts.append(f"<h3>{html.escape(setting)}</h3>")
        for name, place in places.items():
            picture = found[place]
            parts.append(
                image_html(
                    picture.image, f"{name}: {picture.case_id}, distance {number(picture.distance)}", "case"
                )
            )
    return parts


def facts_html(block: dict[str, Any]) -> str:
    """A block of provenance: the command, and all facts as a table."""
    items = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in block.items()
    )
    command = html.escape(str(block.get("command", "")))
    return f"<pre>{command}</pre><table>{items}</table>"


def _subject(block: dict[str, Any]) -> str:
    return str(block.get("checkpoint") or block.get("volumes", ""))


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else html.escape(str(value))
