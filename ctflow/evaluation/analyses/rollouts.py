"""How blocks follow a real volume and join, and full-body volumes by length, solver and number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctflow.config.commands import SamplingChoice
from ctflow.config.system import SystemConfig
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import (
    AnalysisResult,
    Context,
    clip_distance,
    line_plot,
    mean_row,
    monitor_values,
    slice_distance,
)
from ctflow.evaluation.cases import RealCase, choose_cases
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor, Key
from ctflow.evaluation.results import ALL, MODEL, findings_table
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import EvalSystem, usable_in
from ctflow.generation import evaluations
from ctflow.metrics import bias
from ctflow.metrics.images import at_side, spacing_at
from ctflow.metrics.monitors import theil_sen
from ctflow.metrics.monitors.drift import window_distances
from ctflow.metrics.monitors.seam import SeamMonitor, step_sizes
from ctflow.metrics.reconstruction import ReconstructionMetric
from ctflow.metrics.statistics import PerCaseMean
from ctflow.pictures import LUNG, SOFT_TISSUE, axial, coronal
from ctflow.types import BLOCK_LENGTH, HUVolume

REAL, LIMIT = "real scan", "A-VAE"
ROLLOUTS = ("gt-head", "next-block")
_TILE = 256


def seams(context: Context) -> AnalysisResult:
    """Seam ratios and PSNR of two rollouts of the first case that has more than one block; a picture too.

    Raises:
        EvaluationError: No such case.
    """
    system, reader = context.system, context.reader()
    case = next((c for c in reader.cases() if usable_in(SETTINGS["gt-head"], c)), None)
    if case is None:
        raise EvaluationError(
            f"no case of more than {BLOCK_LENGTH} slices in {reader.folder}",
            "a scan longer than one block",
            "give slices=FOLDER",
        )
    real = reader.volume(case)
    limit = min(len(real.hu), context.rollout.max_slices)
    through = system.decode(system.encode(real))[:limit]
    side = through.shape[1]
    volumes = {REAL: at_side(torch.from_numpy(real.hu[:limit]), side).numpy(), LIMIT: through}
    volumes |= {name: context.generate(name, case, reader).hu for name in ROLLOUTS}
    spacing = spacing_at(real.spacing, real.hu.shape[1], side)
    # The blocks of next-block follow real slices and repeat none.
    overlaps = {"gt-head": context.rollout.overlap}
    records = [_record(name, hu, volumes[REAL], overlaps.get(name, 0)) for name, hu in volumes.items()]
    text = (
        f"Case {case.case_id}, {limit} slices of {spacing[0]:g} mm, blocks of {BLOCK_LENGTH}. The given "
        "first block of gt-head is not scored. A seam ratio near 1: the step over a boundary of blocks is "
        "like the steps beside it."
    )
    figures = {
        "volumes": (_picture(volumes, spacing), "The middle slice and a coronal cut"),
        "profile": (_profile(volumes), "Step from slice to slice"),
    }
    return AnalysisResult("Seams of rollouts from real blocks", text, records, figures)


def _record(name: str, hu: np.ndarray, real: np.ndarray, overlap: int) -> dict[str, Any]:
    """A line of the table; what is NaN (given) counts nowhere."""
    monitor, quality = SeamMonitor(), ReconstructionMetric()
    monitor.update(torch.from_numpy(hu), overlap)
    scored = np.flatnonzero(np.isfinite(hu).all(axis=(1, 2)))
    scored = scored[scored < len(real)]
    if name != REAL and len(scored):
        quality.update(*(torch.from_numpy(v[scored]).unsqueeze(1) for v in (hu, real)))
    values = quality.compute()
    return {
        "volume": name,
        "slices": len(hu),
        "scored slices": len(scored),
        **{key: round(value, 3) for key, value in monitor.compute().items()},
        "psnr to the scan": None if name == REAL else round(values["psnr"], 2),
        "ssim to the scan": None if name == REAL else round(values["ssim"], 3),
    }


def _picture(volumes: dict[str, np.ndarray], spacing: tuple[float, float, float]) -> Figure:
    """A column per volume: middle slice in two windows, coronal cut; given slices are black."""
    figure = Figure(figsize=(2.3 * len(volumes), 6.2), layout="tight")
    axes = figure.subplots(3, len(volumes))
    for column, (name, hu) in enumerate(volumes.items()):
        volume = HUVolume(np.nan_to_num(hu, nan=-3000.0), spacing)
        middle = len(hu) // 2
        tiles = [axial(volume, middle, window, _TILE) for window in (LUNG, SOFT_TISSUE)]
        for row, tile in enumerate([*tiles, coronal(volume, LUNG, _TILE)]):
            axes[row, column].imshow(tile, cmap="gray", vmin=0, vmax=255)
            axes[row, column].axis("off")
        axes[0, column].set_title(name, fontsize=9)
    return figure


def _profile(volumes: dict[str, np.ndarray]) -> Figure:
    """Mean absolute difference of neighbouring slices inside the body, block boundaries marked."""
    steps = {name: step_sizes(torch.from_numpy(hu)).numpy() for name, hu in volumes.items()}
    figure = line_plot(
        {name: (np.arange(len(values)) + 0.5, values) for name, values in steps.items()},
        "slice (dotted: every 16, the block boundaries without overlap)",
        "step in HU",
        ".-",
        (9, 3),
        linewidth=1,
    )
    for boundary in range(BLOCK_LENGTH, max(map(len, volumes.values())), BLOCK_LENGTH):
        figure.axes[0].axvline(boundary - 0.5, color="grey", linestyle=":", linewidth=1)
    return figure


MONITORS = ("seam_ratio", "drift_z", "drift_z_slope", "drift_last_over_first", "premature", "length_error")


def length(context: Context) -> AnalysisResult:
    """For every requested length: distance to all real slices, monitors, and the length that came out."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    distances: dict[str, Tensor] = {}
    spacings: list[float | None] = [*config.analysis.spacings] or [None]
    wanted = [(mm, slices) for mm in spacings for slices in config.analysis.lengths]
    volumes = len(sets.evaluated) * (1 + config.analysis.seeds * len(wanted))
    with context.progress(volumes) as bar:
        real = context.collector(reader, extractor, bar=bar).real(sets.evaluated)
        half = len(real) // 2
        for spacing, requested in wanted:
            cases = tuple(asked(case, requested, spacing) for case in sets.evaluated)
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
            windows = _window_distances(fake, real, extractor)
            distances[f"{requested} slices" + (f" of {spacing:g} mm" if spacing else "")] = windows
            slopes = [theil_sen(row.tolist()) for row in windows]
            records.append(
                {
                    "requested": requested,
                    "spacing in mm": spacing or "the case's own",
                    "volumes": len(fake),
                    "mean slices": sum(lengths) / max(len(lengths), 1),
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    **{name: values.get(name) for name in MONITORS},
                    "slope per block [95 %]": mean_row("slope", slopes, config.seed).text(),
                    "note": _note(requested, spacing, context.system.config),
                }
            )
    text = (
        f"{config.analysis.seeds} seeds × {len(sets.evaluated)} reports; the length is an input of the "
        "model, no volume is a prefix of a longer one. Distances are to all real slices of these cases. "
        "Those by window are of mean slice features from real slices at the same relative height, in "
        "standard deviations of these (RMS). The slope is per block of 16 slices."
    )
    figures = {
        "monitors": (_length_plot(records), "Monitors by length"),
        "windows": (
            _curve_plot(distances, config.seed),
            "Distance from real slices by window of 16 slices, with 95 % intervals",
        ),
    }
    return AnalysisResult("Error accumulation with length", text, records, figures)


def asked(case: RealCase, slices: int, spacing: float | None = None) -> RealCase:
    """The case as if its real volume had this many slices, and this many millimetres between them."""
    chosen = case.spacing if spacing is None else (spacing, *case.spacing[1:])
    return replace(case, shape=(slices, *case.shape[1:]), spacing=chosen)


def _note(requested: int, spacing: float | None, system: SystemConfig) -> str:
    """A note on requests outside the training."""
    notes = []
    if requested > system.max_slices:
        notes.append(f"longer than any training volume ({system.max_slices})")
    low, high = system.z_spacing_range or [system.z_spacing_mm] * 2
    if spacing is not None and not low <= spacing <= high:
        notes.append(f"the model was trained on {low:g} … {high:g} mm")
    return "; ".join(notes)


def _length_plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 3))
    for i, name in enumerate(("seam_ratio", "drift_z")):
        axes = figure.add_subplot(1, 2, i + 1)
        for spacing in dict.fromkeys(r["spacing in mm"] for r in records):
            rows = [r for r in records if r["spacing in mm"] == spacing]
            axes.plot([r["requested"] for r in rows], [r[name] for r in rows], "o-", label=str(spacing))
        axes.legend(title="mm", fontsize=7)
        axes.set_xlabel("slices requested")
        axes.set_title(name)
    return figure


def _window_distances(
    cases: Sequence[CaseFeatures], real: Sequence[CaseFeatures], extractor: FeatureExtractor
) -> Tensor:
    """``window_distances`` of every volume in the embedded backbone ``[cases, windows]``, padded by NaN."""
    key = Key(extractor.backbones.slices[0].name, extractor.plan.resolutions[0])
    heights = np.concatenate([(case.slices.starts + 0.5) / max(case.facts.slices, 1) for case in real])
    values = np.concatenate([case.slices.values[key] for case in real])
    rows = [
        window_distances(case.slices.values[key], case.facts.slices, values, heights)
        if len(case.slices)
        else []
        for case in cases
    ]
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=math.nan)


def _curve_plot(distances: Mapping[str, Tensor], seed: int) -> Figure:
    """Mean over the volumes by window with its interval, a line for each length."""
    curves = {
        name: [
            bias.jackknife(PerCaseMean(column), seed)
            if torch.isfinite(column).any()
            else bias.Interval(math.nan)
            for column in windows.T
        ]
        for name, windows in distances.items()
    }
    figure = line_plot(
        {n: (range(1, len(c) + 1), [point.value for point in c]) for n, c in curves.items()},
        "window of 16 slices, from the inferior end",
        "distance, standard deviations",
        size=(7, 3.5),
        markersize=3,
    )
    axes = figure.axes[0]
    for line, curve in zip(list(axes.lines), curves.values(), strict=True):
        low, high = ([getattr(point, end) for point in curve] for end in ("low", "high"))
        axes.fill_between(range(1, len(curve) + 1), low, high, color=line.get_color(), alpha=0.15)
    return figure


CHECKPOINT, RECOMMENDED, STUDENT = "checkpoint", "checkpoint, as recommended", "student"


def steps(context: Context) -> AnalysisResult:
    """Distances, findings, seam ratio, time: the checkpoint's own sampling, other solvers, a student.

    Raises:
        EvaluationError: The student's slices have another size.
    """
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    findings = any(case.truth_path for case in sets.evaluated)
    rows = [
        (CHECKPOINT, context, replace(config.sampling, solver=solver, steps=number))
        for solver in config.analysis.solvers
        for number in config.analysis.steps
    ]
    rows.insert(0, (RECOMMENDED, context, config.sampling))
    if config.analysis.student:
        rows.append((STUDENT, _student_of(context), _own_sampling(config.sampling)))
    with context.progress(len(sets.evaluated) * (1 + len(rows))) as bar:
        real = context.collector(reader, extractor, bar=bar).real(sets.evaluated)
        for network, own, sampling in rows:
            asked = replace(config, sampling=sampling)
            collector = own.collector(reader, extractor, asked, findings, bar)
            fake, rollout = collector.generated(setting, sets.evaluated), collector.rollout
            records.append(
                {
                    "network": network,
                    "solver": rollout.solver,
                    "steps": rollout.steps,
                    "evaluations per block": evaluations(rollout) or "adaptive",
                    "churn": rollout.churn,
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    **clip_distance(setting, fake, real, extractor, config.seed),
                    **obeyed(sets.evaluated, fake),
                    "seam ratio": monitor_values(setting, fake, real, real, extractor)["seam_ratio"],
                    "seconds per volume": sum(f.seconds for f in fake) / max(len(fake), 1),
                }
            )
    text = (
        f"full-body on {len(sets.evaluated)} cases, equal noise for every row; the first row samples as the "
        "checkpoint recommends. Evaluations of the network without text count too. Findings: over all kinds, "
        "read from phantoms' volumes."
    )
    figures = {"cost": (_steps_plot(records), "Distance by cost")}
    return AnalysisResult("Quality against solver and steps", text, records, figures)


def obeyed(cases: Sequence[RealCase], fake: Sequence[CaseFeatures]) -> dict[str, Any]:
    """Over all findings, of cases whose truth is known: recall, false positives, right side; else nothing."""
    table = findings_table(MODEL, cases, fake, "full-body")
    names = ("recall", "false positives", "right side")
    return {name: line[name] for line in table if line["finding"] == ALL for name in names}


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
    metric = next(name for name in records[0] if name.startswith("fid") and "infinite" not in name)
    lines = {}
    for network, solver in dict.fromkeys((r["network"], r["solver"]) for r in records):
        rows = [r for r in records if (r["network"], r["solver"]) == (network, solver)]
        rows = [r for r in rows if isinstance(r["evaluations per block"], int)]
        points = [(r["evaluations per block"], r[metric].split(" ")[0]) for r in rows]
        known = [(x, float(y)) for x, y in points if y != "n/a"]
        if known:
            name = solver if network == CHECKPOINT else network
            lines[name] = ([x for x, _ in known], [y for _, y in known])
    figure = line_plot(lines, "network evaluations per block", metric)
    axes = figure.axes[0]
    axes.set_xscale("log")
    counts = sorted({x for xs, _ in lines.values() for x in xs})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    for line in axes.lines:
        if line.get_label() in (STUDENT, RECOMMENDED):
            line.set(marker="*" if line.get_label() == STUDENT else "D", color="black")
    axes.legend(fontsize=8)
    return figure
