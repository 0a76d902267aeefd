"""The analyses by name, and how one is run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ctflow.config.evaluation import ANALYSIS_NAMES, EvalConfig
from ctflow.evaluation.analyses.alignment import alignment
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.analyses.contrast import contrast
from ctflow.evaluation.analyses.diversity import diversity
from ctflow.evaluation.analyses.limits import floors, reconstruction
from ctflow.evaluation.analyses.memorisation import memorisation
from ctflow.evaluation.analyses.pairs import pairs
from ctflow.evaluation.analyses.reading import reading
from ctflow.evaluation.analyses.severity import severity
from ctflow.evaluation.analyses.single import capacity, seams
from ctflow.evaluation.analyses.sweeps import length, steps
from ctflow.evaluation.analyses.utility import utility
from ctflow.evaluation.processes import Ranks
from ctflow.evaluation.provenance import run_facts
from ctflow.evaluation.report import write_analysis
from ctflow.evaluation.system import EvalSystem

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
