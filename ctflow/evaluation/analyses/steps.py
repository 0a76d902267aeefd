"""Quality against evaluations of the network: solvers and numbers of steps, and a student beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ctflow.config.commands import SamplingChoice
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context, monitor_values, slice_distance
from ctflow.evaluation.cases import choose_cases
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import EvalSystem
from ctflow.generation import evaluations

CHECKPOINT, STUDENT = "checkpoint", "student"


def steps(context: Context) -> AnalysisResult:
    """Distance, seam ratio and time for every solver and number of steps of ``config.analysis``; a student's.

    Raises:
        EvaluationError: The student's slices have another size.
    """
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    rows = [
        (CHECKPOINT, context, replace(config.sampling, solver=solver, steps=number))
        for solver in config.analysis.solvers
        for number in config.analysis.steps
    ]
    if config.analysis.student:
        rows.append((STUDENT, _student_of(context), _own_sampling(config.sampling)))
    with context.progress(len(sets.evaluated) * (1 + len(rows))) as bar:
        real = context.collector(reader, extractor, bar=bar).real(sets.evaluated)
        for network, own, sampling in rows:
            collector = own.collector(reader, extractor, replace(config, sampling=sampling), bar=bar)
            fake, rollout = collector.generated(setting, sets.evaluated), collector.rollout
            records.append(
                {
                    "network": network,
                    "solver": rollout.solver,
                    "steps": rollout.steps,
                    "evaluations per block": evaluations(rollout) or "adaptive",
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    "seam ratio": monitor_values(setting, fake, real, real, extractor)["seam_ratio"],
                    "seconds per volume": sum(f.seconds for f in fake) / max(len(fake), 1),
                }
            )
    text = (
        f"full-body on {len(sets.evaluated)} cases, equal noise for every row. Evaluations of the network "
        "without text count too."
    )
    figures = {"cost": (_steps_plot(records), "Distance by cost")}
    return AnalysisResult("Quality against solver and steps", text, records, figures)


def _student_of(context: Context) -> Context:
    """The same evaluation of the student.

    Raises:
        EvaluationError: Its slices have another size.
    """
    student = EvalSystem.load(Path(context.config.analysis.student), context.system.device)
    sizes = [system.config.image_size for system in (student, context.system)]
    if sizes[0] != sizes[1]:
        raise EvaluationError(
            f"{student.name} has slices of {sizes[0]} pixels",
            f"the checkpoint's {sizes[1]}",
            "give a student of this checkpoint as analysis.student",
        )
    return replace(context, system=student)


def _own_sampling(asked: SamplingChoice) -> SamplingChoice:
    """What is asked of a student: its grid and its guidance are its own."""
    return SamplingChoice(overlap=asked.overlap, max_slices=asked.max_slices)


def _steps_plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    metric = next(name for name in records[0] if name.startswith("fid") and "infinite" not in name)
    for network, solver in dict.fromkeys((r["network"], r["solver"]) for r in records):
        rows = [r for r in records if (r["network"], r["solver"]) == (network, solver)]
        rows = [r for r in rows if isinstance(r["evaluations per block"], int)]
        points = [(r["evaluations per block"], r[metric].split(" ")[0]) for r in rows]
        points = [(x, float(y)) for x, y in points if y != "n/a"]
        if points:
            style, label = ("k*", network) if network == STUDENT else ("o-", solver)
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("network evaluations per block")
    axes.set_ylabel(metric)
    axes.legend()
    return figure
