"""Full-body volumes over a range of lengths, and over solvers and numbers of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from ctflow.evaluation.analyses.base import AnalysisResult, Context, slice_distance
from ctflow.evaluation.cases import RealCase, choose_cases
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor
from ctflow.evaluation.monitoring import readings
from ctflow.evaluation.results import MODEL
from ctflow.evaluation.settings import SETTINGS, Setting

MONITORS = ("seam_ratio", "drift_z", "drift_z_slope", "drift_last_over_first", "premature", "length_error")
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2}
"""Network evaluations per step."""


def length(context: Context) -> AnalysisResult:
    """For every requested length: distance to all real slices, monitors, and the length that came out."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    volumes = len(sets.evaluated) * (1 + config.analysis.seeds * len(config.analysis.lengths))
    with context.progress(volumes) as bar:
        real = context.collector(reader, extractor, bar=bar).real(sets.evaluated)
        half = len(real) // 2
        for requested in config.analysis.lengths:
            cases = tuple(asked(case, requested) for case in sets.evaluated)
            fake: list[CaseFeatures] = []
            for seed in range(config.analysis.seeds):
                own = replace(
                    config,
                    seed=config.seed + seed,
                    sampling=replace(config.sampling, max_slices=max(requested, 1)),
                )
                fake += context.collector(reader, extractor, own, bar=bar).generated(setting, cases)
            values = monitor_values(setting, fake, real[:half], real[half:], extractor)
            lengths = [f.facts.slices for f in fake]
            records.append(
                {
                    "requested": requested,
                    "volumes": len(fake),
                    "mean slices": sum(lengths) / max(len(lengths), 1),
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    **{name: values.get(name) for name in MONITORS},
                    "note": _note(requested, context.system.config.max_slices),
                }
            )
    text = (
        f"{config.analysis.seeds} seeds × {len(sets.evaluated)} reports; the length is an input of the "
        "model, no volume is a prefix of a longer one. Distances are to all real slices of these cases."
    )
    figures = {"monitors": (_length_plot(records), "Monitors by length")}
    return AnalysisResult("Error accumulation with length", text, records, figures)


def asked(case: RealCase, slices: int) -> RealCase:
    """The case as if its real volume had this many slices."""
    return replace(case, shape=(slices, *case.shape[1:]))


def _note(requested: int, longest: int) -> str:
    return f"longer than any training volume ({longest})" if requested > longest else ""


def _length_plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 3))
    for i, name in enumerate(("seam_ratio", "drift_z")):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.plot([r["requested"] for r in records], [r[name] for r in records], "o-")
        axes.set_xlabel("slices requested")
        axes.set_title(name)
    return figure


def steps(context: Context) -> AnalysisResult:
    """Distance, seam ratio and time for every solver and number of steps of ``config.analysis``."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    rows = [(solver, number) for solver in config.analysis.solvers for number in config.analysis.steps]
    with context.progress(len(sets.evaluated) * (1 + len(rows))) as bar:
        real = context.collector(reader, extractor, bar=bar).real(sets.evaluated)
        for solver, number in rows:
            own = replace(config, sampling=replace(config.sampling, solver=solver, steps=number))
            fake = context.collector(reader, extractor, own, bar=bar).generated(setting, sets.evaluated)
            records.append(
                {
                    "solver": solver,
                    "steps": number,
                    "evaluations per block": number * EVALUATIONS.get(solver, 0) or "adaptive",
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    "seam ratio": monitor_values(setting, fake, real, real, extractor)["seam_ratio"],
                    "seconds per volume": sum(f.seconds for f in fake) / max(len(fake), 1),
                }
            )
    text = f"full-body on {len(sets.evaluated)} cases, equal noise for every row."
    figures = {"cost": (_steps_plot(records), "Distance by cost")}
    return AnalysisResult("Quality against solver and steps", text, records, figures)


def _steps_plot(records: list[dict[str, Any]]) -> Figure:
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


def monitor_values(
    setting: Setting,
    fake: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    others: Sequence[CaseFeatures],
    extractor: FeatureExtractor,
) -> dict[str, float]:
    """The monitors' numbers by name; arguments as of ``readings``."""
    backbone, side = extractor.backbones.slices[0], extractor.plan.resolutions[0]
    return {r.monitor: r.value for r in readings(setting, MODEL, fake, real, others, backbone, side)}
