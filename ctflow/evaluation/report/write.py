"""The files of a run: Markdown and HTML from one page, CSV, JSON, TensorBoard scalars; and the log."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ctflow.config import config_to_yaml
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.report.tables import (
    facts_table,
    glossary_table,
    monitors_table,
    records_table,
    rows_table,
    summary_table,
)
from ctflow.evaluation.results import (
    MODEL,
    OTHER_REAL,
    RECONSTRUCTION,
    Picture,
    Reading,
    Results,
    Row,
    number,
    placed,
)
from ctflow.files import write_text
from ctflow.pages import Page

log = logging.getLogger("ctflow")

CAPTION = (
    "Value → value at infinite N, where there is one. Intervals, N and notes are in the full table. A "
    "resolution marked * is above the volumes' own: they were upsampled to it."
)
DISCLAIMER = (
    "Metrics named *_rand2d, *_rand3d use frozen random convolutions: they order damage, they do not measure "
    "clinical realism. clip_phantom is the embedded pair trained on phantoms, not CT-CLIP. Fréchet values at "
    "different N, clip lengths or slice sets are not comparable; compare the extrapolated ones."
)
PLACES = (
    "By the distance of a volume's mean slice features from the reference, in standard deviations of the "
    "reference. Above: lung window, below it soft tissue, then coronal and sagittal cuts. The patient's "
    "right is on the left."
)
COLOURS = {MODEL: "#1f6feb", OTHER_REAL: "#2da44e", RECONSTRUCTION: "#bf8700"}


@dataclass
class AnalysisResult:
    """The result of an analysis.

    Attributes:
        title: Heading.
        text: What the numbers mean, and how they were made.
        records: A table: dictionaries with equal keys.
        figures: Name to a plot with its caption; each is also a file of its own.
    """

    title: str
    text: str
    records: list[dict[str, Any]]
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)


def write_report(results: Results, config: EvalConfig, folder: Path) -> None:
    """Write ``report.html``, ``table.md``, ``table.csv``, ``monitors.csv``, ``results.json``, ``config.yaml``
    and TensorBoard scalars in ``folder``, and say the main lines in the log.
    """
    page = evaluation_page(results)
    page.save(folder / "report.html")
    write_text(folder / "table.md", page.markdown())
    _write_csv(folder / "table.csv", _columns(Row), map(asdict, [*results.rows, *results.between]))
    _write_csv(folder / "monitors.csv", _columns(Reading), map(asdict, results.readings))
    write_text(folder / "results.json", json.dumps(as_json(results), indent=1))
    write_text(folder / "config.yaml", config_to_yaml(config))
    _write_scalars(results, folder)
    log.info("results\n\n%s\n", rows_table(results.rows).markdown())
    log.info("monitors\n\n%s\n", monitors_table(results.readings).markdown())
    for line in _alarms(results):
        log.warning("ALARM %s", line)
    log.info("written to %s (open %s)", folder, folder / "report.html")


def write_analysis(
    name: str, result: AnalysisResult, facts: dict[str, Any], config: EvalConfig, folder: Path
) -> None:
    """Write an analysis as Markdown, CSV, JSON and a page, with its plots and the configuration."""
    page = Page(result.title)
    page.text(result.text)
    table = records_table(result.records)
    page.table(table)
    for key, (figure, caption) in result.figures.items():
        figure.savefig(_made(folder) / f"{name}-{key}.png", dpi=110, bbox_inches="tight")
        page.picture(figure, caption)
    _add_facts(page, facts)
    page.save(folder / f"{name}.html")
    write_text(folder / f"{name}.md", page.markdown())
    write_text(folder / f"{name}.json", json.dumps(_plain(result.records), indent=1))
    _write_csv(folder / f"{name}.csv", list(table.header), result.records)
    write_text(folder / "config.yaml", config_to_yaml(config))
    log.info("%s\n\n%s\n\n%s", result.title, result.text, table.markdown())
    log.info("written to %s", folder)


def as_json(results: Results) -> dict[str, Any]:
    """Everything but the pictures; missing numbers are null."""
    return _plain(
        {
            "rows": [asdict(row) for row in results.rows],
            "between_settings": [asdict(row) for row in results.between],
            "monitors": [asdict(reading) for reading in results.readings],
            "findings": results.findings,
            "provenance": results.provenance,
        }
    )


def evaluation_page(results: Results) -> Page:
    """The whole report: alarms and the paper's table first, how to make it again last."""
    facts = results.provenance
    page = Page("Evaluation")
    page.text(f"Checkpoint or volumes: {facts.get('checkpoint') or facts.get('volumes', '')}")
    if alarms := _alarms(results):
        page.heading("Alarms")
        page.alarms(alarms)
    else:
        page.text("No monitor raised an alarm.")
    page.heading("Summary")
    page.table(summary_table(results.rows))
    page.text(f"{CAPTION} {DISCLAIMER}")
    _add_pictures(page, results)
    page.heading("How to read it")
    page.table(glossary_table(results))
    page.heading("Full table")
    page.table(rows_table(results.rows))
    if results.between:
        page.heading("Between settings (blocks ≥ 1, the same cases and slices)")
        page.table(rows_table(results.between))
    page.heading("Monitors")
    page.table(monitors_table(results.readings))
    if results.findings:
        page.heading("Findings")
        page.table(records_table(results.findings))
    _add_facts(page, facts)
    return page


def _add_pictures(page: Page, results: Results) -> None:
    """Best, median and worst cases, and a plot per metric."""
    page.heading("Best, median and worst cases")
    page.text(PLACES)
    for setting, found in results.pictures.items():
        if found:
            page.heading(setting, level=3)
        shown = placed(found)
        for name, picture in shown.items():
            page.picture(picture.image, _caption(name, picture), "third")
        for name, picture in shown.items():
            if picture.volumes:
                page.volumes(picture.volumes, _caption(name, picture))
    page.heading("Plots")
    page.text("● value, ◆ at infinite N, bars 95 % intervals.")
    for metric, side in dict.fromkeys((r.metric, r.resolution) for r in results.rows if not r.missing):
        chosen = [r for r in results.rows if (r.metric, r.resolution) == (metric, side) and not r.missing]
        title = f"{metric} at {side} px" if side else metric
        page.picture(_plot(title, chosen), title, "half")


def _caption(name: str, picture: Picture) -> str:
    return f"{name}: {picture.case_id}, distance {number(picture.distance)}"


def _add_facts(page: Page, facts: dict[str, Any]) -> None:
    page.heading("How to reproduce")
    page.code(str(facts.get("command", "")))
    page.table(facts_table(facts))


def _alarms(results: Results) -> list[str]:
    return [
        f"{r.setting}: {r.monitor} = {number(r.value)} is above {number(r.threshold)}" for r in results.alarms
    ]


def _plot(title: str, rows: Sequence[Row]) -> Figure:
    """Every setting's value and extrapolation with intervals, and the floors."""
    figure = Figure(figsize=(4.6, 0.5 + 0.34 * len(rows)))
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        colour = COLOURS.get(row.source, "#57606a")
        for y, value, low, high, marker in (
            (i - 0.12, row.value, row.low, row.high, "o"),
            (i + 0.12, row.extrapolated, row.extrapolated_low, row.extrapolated_high, "D"),
        ):
            # Matplotlib leaves out what is NaN.
            axes.plot([value], [y], marker, color=colour, markersize=4)
            axes.plot([low, high], [y, y], "-", color=colour, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{r.setting}, {r.source}" for r in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(title, fontsize=9)
    return figure


def _write_scalars(results: Results, folder: Path) -> None:
    """Every number of the model's rows and monitors as ``eval/<setting>/<name>`` for TensorBoard."""
    with SummaryWriter(str(folder)) as writer:
        for row in results.rows:
            if row.source == MODEL and not row.missing:
                name = f"{row.metric}_{row.resolution}" if row.resolution else row.metric
                writer.add_scalar(f"eval/{row.setting}/{name}", row.value)
        for reading in results.readings:
            if reading.source == MODEL and not reading.reason:
                writer.add_scalar(f"eval/{reading.setting}/{reading.monitor}", reading.value)


def _write_csv(path: Path, columns: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(list(records)))
    write_text(path, text.getvalue())


def _columns(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


def _plain(value: Any) -> Any:
    """JSON values in which missing numbers are None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
