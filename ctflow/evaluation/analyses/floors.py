"""``floors``: what other real cases, and the A-VAE alone, score, before any model is run."""

from __future__ import annotations

from typing import Any

from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import choose_cases
from ctflow.evaluation.scoring import FLOORS, Scoring
from ctflow.evaluation.settings import REAL


def floors(context: Context) -> AnalysisResult:
    """Every metric of both floors over whole volumes; nothing is generated.

    The features are those of the table's floors, so that a table on the same cases, A-VAE and CT-CLIP finds
    them in the cache.
    """
    config = context.config
    reader = context.reader()
    sets = choose_cases(reader.cases(), config.cases, floors=True, choice=config.evaluated)
    backbones, plan = context.tools()
    measured = any(case.truth_path for case in sets.evaluated)
    collector = context.collector(reader, backbones, plan, measured=measured)
    scoring = Scoring(config, plan, backbones, sets, collector.collect(sets, []))
    records: list[dict[str, Any]] = [
        {
            "source": row.source,
            "metric": row.metric,
            "px": row.resolution or "",
            "value [95 %]": row.text(),
            "at infinite N [95 %]": row.extrapolated_text(),
            "N": row.samples,
            "note": row.reason,
        }
        for source in FLOORS
        for row in scoring.source_rows(REAL, source)
    ]
    text = (
        f"{len(sets.others)} real cases of other patients, and their A-VAE reconstructions, against "
        f"{len(sets.evaluated)} real cases. A generator on this A-VAE is not expected below the second."
    )
    return AnalysisResult("Floors", text, records)
