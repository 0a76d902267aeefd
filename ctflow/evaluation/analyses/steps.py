"""``steps``: quality against solver and number of steps, full-body, on the same cases and noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from ctflow.evaluation.analyses.base import AnalysisResult, Context, slice_distance
from ctflow.evaluation.cases import choose_cases
from ctflow.evaluation.collect import REAL_SET
from ctflow.evaluation.monitoring import readings
from ctflow.evaluation.settings import REGISTRY
from ctflow.evaluation.table import MODEL

EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2}
"""Network evaluations per step."""


def steps(context: Context) -> AnalysisResult:
    """Distance, seam ratio and time for every solver and number of steps of ``config.analysis``."""
    config, setting = context.config, REGISTRY["full-body"]
    reader = context.reader()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    backbones, plan = context.tools()
    records: list[dict[str, Any]] = []
    for solver in config.analysis.solvers:
        for number in config.analysis.steps:
            sampling = replace(config.sampling, solver=solver, steps=number)
            collector = context.collector(reader, backbones, plan, replace(config, sampling=sampling))
            collected = collector.collect(sets, [setting.name])
            fake, real = (collected.of(kind, sets.evaluated) for kind in (setting.name, REAL_SET))
            found = readings(setting, MODEL, fake, real, real, backbones.slices[0], plan.resolutions[0])
            seam = next(r.value for r in found if r.monitor == "seam_ratio")
            records.append(
                {
                    "solver": solver,
                    "steps": number,
                    "evaluations per block": number * EVALUATIONS.get(solver, 0) or "adaptive",
                    **slice_distance(setting, fake, real, backbones, plan, config.seed),
                    "seam ratio": seam,
                    "seconds per volume": sum(f.info["seconds"] for f in fake) / max(len(fake), 1),
                }
            )
    text = f"full-body on {len(sets.evaluated)} cases, equal noise for every row."
    return AnalysisResult(
        "Quality against solver and steps", text, records, [(_plot(records), "Distance by cost")]
    )


def _plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    metric = next(name for name in records[0] if name.startswith("fid") and "infinite" not in name)
    for solver in dict.fromkeys(r["solver"] for r in records):
        rows = [r for r in records if r["solver"] == solver and isinstance(r["evaluations per block"], int)]
        points = [(r["evaluations per block"], r[metric].split(" ")[0]) for r in rows]
        points = [(x, float(y)) for x, y in points if y != "n/a"]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=solver)
    axes.set_xlabel("network evaluations per block")
    axes.set_ylabel(metric)
    axes.legend()
    return figure
