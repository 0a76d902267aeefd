"""``length``: error accumulation when volumes of different lengths are asked for (asked for, not cut)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from ctflow.evaluation.analyses.base import AnalysisResult, Context, slice_distance
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.cases import RealCase, choose_cases
from ctflow.evaluation.monitoring import readings
from ctflow.evaluation.settings import REGISTRY
from ctflow.evaluation.table import MODEL

MONITORS = ("seam_ratio", "drift_z", "drift_z_slope", "drift_last_over_first", "premature", "length_error")


def length(context: Context) -> AnalysisResult:
    """For every requested length: distance to all real slices, monitors, and the length that came out."""
    config, setting = context.config, REGISTRY["full-body"]
    reader = context.reader()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    backbones, plan = context.tools()
    real = context.collector(reader, backbones, plan).real(sets.evaluated)
    half = len(real) // 2
    records: list[dict[str, Any]] = []
    for requested in config.analysis.lengths:
        cases = tuple(asked(case, requested) for case in sets.evaluated)
        fake: list[CaseFeatures] = []
        for seed in range(config.analysis.seeds):
            own = replace(
                config,
                seed=config.seed + seed,
                sampling=replace(config.sampling, max_slices=max(requested, 1)),
            )
            collector = context.collector(reader, backbones, plan, own)
            fake += collector.generated(setting, cases)
        found = readings(
            setting, MODEL, fake, real[:half], real[half:], backbones.slices[0], plan.resolutions[0]
        )
        values = {r.monitor: r.value for r in found}
        lengths = [int(f.info["slices"]) for f in fake]
        records.append(
            {
                "requested": requested,
                "volumes": len(fake),
                "mean slices": sum(lengths) / max(len(lengths), 1),
                **slice_distance(setting, fake, real, backbones, plan, config.seed),
                **{name: values.get(name) for name in MONITORS},
                "note": _note(requested, context.system.config.max_slices),
            }
        )
    text = (
        f"{config.analysis.seeds} seeds × {len(sets.evaluated)} reports; the length is an input of the "
        "model, no volume is a prefix of a longer one. Distances are to all real slices of these cases."
    )
    return AnalysisResult(
        "Error accumulation with length", text, records, [(_plot(records), "Monitors by length")]
    )


def asked(case: RealCase, slices: int) -> RealCase:
    """The case as if its real volume had this many slices."""
    return replace(case, shape=(slices, *case.shape[1:]))


def _note(requested: int, longest: int) -> str:
    return f"longer than any training volume ({longest})" if requested > longest else ""


def _plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 3))
    for i, name in enumerate(("seam_ratio", "drift_z")):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.plot([r["requested"] for r in records], [r[name] for r in records], "o-")
        axes.set_xlabel("slices requested")
        axes.set_title(name)
    return figure
