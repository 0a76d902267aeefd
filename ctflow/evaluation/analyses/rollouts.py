"""How blocks follow a real volume and join, full-body volumes by length, and one volume held by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ctflow.config.system import SystemConfig
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context, monitor_values, slice_distance
from ctflow.evaluation.analyses.windows import curve_plot, window_curve, window_distances, window_slope
from ctflow.evaluation.cases import RealCase, choose_cases
from ctflow.evaluation.features import CaseFeatures
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import usable_in
from ctflow.metrics.bias import Interval
from ctflow.metrics.images import at_side, spacing_at
from ctflow.metrics.monitors.seam import SeamMonitor, step_sizes
from ctflow.metrics.reconstruction import ReconstructionMetric
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
    figure = Figure(figsize=(9, 3), layout="tight")
    axes = figure.add_subplot()
    for name, hu in volumes.items():
        steps = step_sizes(torch.from_numpy(hu)).numpy()
        axes.plot(np.arange(len(steps)) + 0.5, steps, ".-", label=name, linewidth=1)
    longest = max(len(hu) for hu in volumes.values())
    for boundary in range(BLOCK_LENGTH, longest, BLOCK_LENGTH):
        axes.axvline(boundary - 0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("slice (dotted: every 16, the block boundaries without overlap)")
    axes.set_ylabel("step in HU")
    axes.legend(fontsize=8)
    return figure


MONITORS = ("seam_ratio", "drift_z", "drift_z_slope", "drift_last_over_first", "premature", "length_error")


def length(context: Context) -> AnalysisResult:
    """For every requested length: distance to all real slices, monitors, and the length that came out."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    records: list[dict[str, Any]] = []
    curves: dict[str, list[Interval]] = {}
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
            windows = window_distances(fake, real, extractor)
            name = f"{requested} slices" + (f" of {spacing:g} mm" if spacing else "")
            curves[name] = window_curve(windows, config.seed)
            records.append(
                {
                    "requested": requested,
                    "spacing in mm": spacing or "the case's own",
                    "volumes": len(fake),
                    "mean slices": sum(lengths) / max(len(lengths), 1),
                    **slice_distance(setting, fake, real, extractor, config.seed),
                    **{name: values.get(name) for name in MONITORS},
                    "slope per block [95 %]": window_slope(windows, config.seed),
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
            curve_plot(curves),
            "Distance from real slices by window of 16 slices, with 95 % intervals",
        ),
    }
    return AnalysisResult("Error accumulation with length", text, records, figures)


def asked(case: RealCase, slices: int, spacing: float | None = None) -> RealCase:
    """The case as if its real volume had this many slices, and this many millimetres between them."""
    chosen = case.spacing if spacing is None else (spacing, *case.spacing[1:])
    return replace(case, shape=(slices, *case.shape[1:]), spacing=chosen)


def _note(requested: int, spacing: float | None, system: SystemConfig) -> str:
    """What the model has not seen in training."""
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


def capacity(context: Context) -> AnalysisResult:
    """PSNR and SSIM of each teacher-forced block of the first training volume, beside the A-VAE's own."""
    system, reader = context.system, context.reader(context.config.analysis.train_slices)
    case = reader.cases()[0]
    real = reader.volume(case)
    made = context.generate("next-block", case, reader)
    sides = made.hu.shape[1]
    original = at_side(torch.from_numpy(real.hu[: len(made.hu)]), sides)
    through = torch.from_numpy(system.decode(system.encode(real)))[: len(made.hu)]
    records: list[dict[str, Any]] = []
    for start in range(0, len(made.hu), BLOCK_LENGTH):
        rows = slice(start, start + BLOCK_LENGTH)
        generated = _quality(torch.from_numpy(made.hu[rows]), original[rows])
        limit = _quality(through[rows], original[rows])
        records.append(
            {
                "first slice": start,
                "psnr generated": generated["psnr"],
                "psnr A-VAE": limit["psnr"],
                "ssim generated": generated["ssim"],
                "ssim A-VAE": limit["ssim"],
            }
        )
    text = (
        f"Case {case.case_id}, {len(made.hu)} slices: a model overfitted on it must come near the "
        "A-VAE's own reconstruction; a model trained on many volumes need not."
    )
    figures = {"blocks": (_capacity_plot(records), "PSNR by block")}
    return AnalysisResult("Capacity: one volume", text, records, figures)


def _quality(made: torch.Tensor, original: torch.Tensor) -> dict[str, float]:
    metric = ReconstructionMetric()
    metric.update(made.unsqueeze(1), original.unsqueeze(1))
    return metric.compute()


def _capacity_plot(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    for name in ("psnr generated", "psnr A-VAE"):
        axes.plot([r["first slice"] for r in records], [r[name] for r in records], "o-", label=name)
    axes.set_xlabel("first slice of the block")
    axes.set_ylabel("dB")
    axes.legend()
    return figure
