"""Analyses by name: each is a function that answers another question than the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ctflow.config.evaluation import ANALYSIS_NAMES, EvalConfig
from ctflow.evaluation.analyses.alignment import alignment
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.analyses.pairs import contrast, pairs
from ctflow.evaluation.analyses.reading import reading
from ctflow.evaluation.analyses.rollouts import length, seams, steps
from ctflow.evaluation.analyses.sets import diversity, memorisation, utility
from ctflow.evaluation.analyses.yardsticks import capacity, floors, reconstruction, response, severity
from ctflow.evaluation.report import write_analysis
from ctflow.evaluation.results import run_facts
from ctflow.evaluation.system import EvalSystem
from ctflow.processes import Ranks

__all__ = ["ANALYSES", "AnalysisResult", "Context", "run_analysis"]

ANALYSES: dict[str, Callable[[Context], AnalysisResult]] = {
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
    "diversity": diversity,
    "alignment": alignment,
    "utility": utility,
    "response": response,
}
assert tuple(ANALYSES) == ANALYSIS_NAMES


def run_analysis(config: EvalConfig, system: EvalSystem, ranks: Ranks, output: Path) -> None:
    """Run ``config.analysis.name``; the first rank writes Markdown, CSV, JSON and a page."""
    started, name = time.monotonic(), config.analysis.name
    result = ANALYSES[name](Context(config, system, ranks, output))
    if not ranks.first:
        return
    facts = run_facts(config, time.monotonic() - started)
    facts |= {"checkpoint": system.name, "checkpoint_sha256": system.fingerprint, "slices": config.slices}
    write_analysis(name, result, facts, config, output)
