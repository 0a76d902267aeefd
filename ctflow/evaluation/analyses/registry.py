"""The analyses by name, and how a result is written."""

from __future__ import annotations

import csv
import html
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ctflow.config import config_to_yaml
from ctflow.config.evaluation import ANALYSES, EvalConfig
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.analyses.capacity import capacity
from ctflow.evaluation.analyses.contrast import contrast
from ctflow.evaluation.analyses.floors import floors
from ctflow.evaluation.analyses.length import length
from ctflow.evaluation.analyses.memorisation import memorisation
from ctflow.evaluation.analyses.pairs import pairs
from ctflow.evaluation.analyses.reading import reading
from ctflow.evaluation.analyses.reconstruction import reconstruction
from ctflow.evaluation.analyses.seams import seams
from ctflow.evaluation.analyses.severity import severity
from ctflow.evaluation.analyses.steps import steps
from ctflow.evaluation.provenance import run_facts
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.report_page import facts_html, figure_html, page, records_table
from ctflow.evaluation.system import EvalSystem
from ctflow.evaluation.writers import facts_markdown, records_markdown

log = logging.getLogger("ctflow")

REGISTRY: dict[str, Callable[[Context], AnalysisResult]] = {
    "floors": floors,
    "reconstruction": reconstruction,
    "length": length,
    "capacity": capacity,
    "steps": steps,
    "memorisation": memorisation,
    "contrast": contrast,
    "pairs": pairs,
    "severity": severity,
    "reading": reading,
    "seams": seams,
}
assert tuple(REGISTRY) == ANALYSES
SUFFIXES = (".md", ".json", ".csv", ".html")
"""Of the files with an analysis's results; those an analysis writes itself have other names."""


def run_analysis(config: EvalConfig, system: EvalSystem, ranks: Ranks, output: Path) -> None:
    """Run ``config.analysis.name``; the first rank writes Markdown, CSV, JSON and a page."""
    started, name = time.monotonic(), config.analysis.name
    result = REGISTRY[name](Context(config, system, ranks, output))
    if not ranks.first:
        return
    output.mkdir(parents=True, exist_ok=True)
    taken = {path.name for path in output.iterdir()} & {f"{name}{suffix}" for suffix in SUFFIXES}
    assert not taken, f"{name} wrote {taken}, which are the names of its results"
    table = records_markdown(result.records) if result.records else ""
    (output / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    facts = run_facts(config, time.monotonic() - started)
    facts |= {"checkpoint": system.name, "checkpoint_sha256": system.fingerprint, "slices": config.slices}
    text = "\n\n".join(
        [f"# {result.title}", result.text, table, "## How to reproduce", facts_markdown(facts)]
    )
    (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (output / f"{name}.json").write_text(json.dumps(result.records, indent=1), encoding="utf-8")
    with (output / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(result.records[0]) if result.records else [])
        writer.writeheader()
        writer.writerows(result.records)
    sections = [f"<h1>{html.escape(result.title)}</h1>", f"<p>{html.escape(result.text)}</p>"]
    sections += [records_table(result.records)]
    sections += [figure_html(figure, caption) for figure, caption in result.figures]
    sections += ["<h2>How to reproduce</h2>", facts_html(facts)]
    (output / f"{name}.html").write_text(page(result.title, sections), encoding="utf-8")
    log.info("%s\n\n%s\n\n%s", result.title, result.text, table)
    log.info("written to %s", output)
