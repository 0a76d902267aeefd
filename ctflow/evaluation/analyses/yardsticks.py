"""References for a table: other real volumes, the loss of the A-VAE, damage, one overfitted volume, and real
blocks that are noised and drawn back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ctflow.data import SliceShards
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context, line_plot
from ctflow.evaluation.cases import CaseReader, CaseSets, HalvedReader, RealCase, choose_cases, halved
from ctflow.evaluation.collect import Batch, Group, Wanted
from ctflow.evaluation.compare import FLOORS, Comparer, readings
from ctflow.evaluation.features import FeatureExtractor, real_volume
from ctflow.evaluation.results import OTHER_REAL
from ctflow.evaluation.rows import Compared, clip_rows, slice_rows, volume_rows
from ctflow.evaluation.settings import REAL, ScoredVolume
from ctflow.flow import time_grid
from ctflow.generation import redraw
from ctflow.metrics.damage import DAMAGES
from ctflow.metrics.images import SCORE_WINDOW, at_side, spacing_at
from ctflow.metrics.reconstruction import ReconstructionMetric, load_lpips, lpips_input
from ctflow.metrics.tissues import tissue_shares
from ctflow.pictures import LUNG, SOFT_TISSUE
from ctflow.seeding import derived_generator
from ctflow.types import BLOCK_LENGTH, HUVolume

UNDAMAGED = "none"
FIRST, LATER = "first", "later"
SHOWN = (
    "fid_rand2d", "kid_rand2d", "fvd_rand3d_f16", "seam_ratio", "checkerboard_2", "drift_z", "fd_ct3d",
    "kd_ct3d",
)  # fmt: skip
WINDOWS = {"lung": LUNG, "soft tissue": SOFT_TISSUE}
NOTES = {
    "psnr": "dB, of the squared error pooled over all slices, 2000 HU range; higher is better",
    "ssim": "0 … 1, 2000 HU range; higher is better",
    "ms_ssim": "0 … 1, five scales; higher is better",
    "ms_ssim_s3": "0 … 1, three scales (sides up to 160); not comparable with ms_ssim",
}


def floors(context: Context) -> AnalysisResult:
    """Every metric of both floors over whole volumes; nothing is generated.

    The features are those of the table's floors, so that a table on the same cases, A-VAE and CT-CLIP finds
    them in the cache.
    """
    config = context.config
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=True, choice=config.evaluated)
    findings = any(case.truth_path for case in sets.evaluated)
    collected = context.collector(reader, extractor, findings=findings).collect(sets, [])
    comparer = Comparer(config, extractor.plan, extractor.backbones, sets, collected)
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
        for row in comparer.source_rows(REAL, source)
    ]
    text = (
        f"{len(sets.others)} real cases of other patients, and their A-VAE reconstructions, against "
        f"{len(sets.evaluated)} real cases. A generator on this A-VAE is not expected below the second."
    )
    return AnalysisResult("Floors", text, records)


def reconstruction(context: Context) -> AnalysisResult:
    """PSNR, SSIM, MS-SSIM in HU, by window too, and LPIPS of ``analysis.reconstructed_slices`` slices."""
    reader = context.reader()
    cases = reader.cases()
    wanted = context.config.analysis.reconstructed_slices
    metrics = {"": ReconstructionMetric()}
    metrics |= {f" ({name} window)": ReconstructionMetric(_limits(w)) for name, w in WINDOWS.items()}
    files = context.config.backbones
    lpips = load_lpips(Path(files.lpips), files.lpips_sha256) if files.lpips else None
    distances: dict[str, list[float]] = {name: [] for name in WINDOWS}
    for case, indices in zip(cases, spread([c.shape[0] for c in cases], wanted), strict=True):
        if not indices:
            continue
        real = reader.volume(case)
        chosen = HUVolume(real.hu[indices], real.spacing)
        made = torch.from_numpy(context.system.decode(context.system.encode(chosen))).unsqueeze(1)
        original = at_side(torch.from_numpy(chosen.hu), made.shape[-1]).unsqueeze(1)
        for metric in metrics.values():
            metric.update(made, original)
        for name, window in WINDOWS.items() if lpips is not None else ():
            assert lpips is not None
            distances[name] += lpips(lpips_input(made, window), lpips_input(original, window)).tolist()
    slices = int(metrics[""].slices)
    records: list[dict[str, Any]] = [
        {"metric": name + words, "value": value, "slices": slices, "note": NOTES[name]}
        for words, metric in metrics.items()
        for name, value in metric.compute().items()
    ]
    for name, values in distances.items():
        note = "" if values else "n/a: no AlexNet weights given (backbones.lpips)"
        value = float(np.mean(values)) if values else None
        records.append(
            {"metric": f"lpips ({name} window)", "value": value, "slices": len(values), "note": note}
        )
    text = f"{slices} slices of {len(cases)} real cases through the A-VAE's posterior mean and back."
    return AnalysisResult("A-VAE reconstruction", text, records)


def capacity(context: Context) -> AnalysisResult:
    """PSNR and SSIM of each teacher-forced block of the first training volume, and those of the A-VAE."""
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
    starts = [r["first slice"] for r in records]
    lines = {name: (starts, [r[name] for r in records]) for name in ("psnr generated", "psnr A-VAE")}
    figures = {"blocks": (line_plot(lines, "first slice of the block", "dB"), "PSNR by block")}
    return AnalysisResult("Capacity: one volume", text, records, figures)


def _quality(made: torch.Tensor, original: torch.Tensor) -> dict[str, float]:
    metric = ReconstructionMetric()
    metric.update(made.unsqueeze(1), original.unsqueeze(1))
    return metric.compute()


def spread(lengths: list[int], wanted: int) -> list[list[int]]:
    """Evenly spaced slices over volumes laid end to end: indices per volume, ``wanted`` in all at most."""
    total = sum(lengths)
    chosen = np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))
    starts = np.cumsum([0, *lengths[:-1]])
    return [
        [int(i - start) for i in chosen if start <= i < start + n]
        for start, n in zip(starts, lengths, strict=True)
    ]


def _limits(window: tuple[float, float]) -> tuple[float, float]:
    """Lowest and highest HU of a window, no further than what the metrics compare."""
    centre, width = window
    return max(centre - width / 2, SCORE_WINDOW[0]), min(centre + width / 2, SCORE_WINDOW[1])


def severity(context: Context) -> AnalysisResult:
    """Damaged copies of half of the cases (or slices) against the other half, with the undamaged floor."""
    config = context.config
    reader, sets = _halves(context)
    extractor = context.extractor()
    plan = extractor.plan
    backbones = replace(extractor.backbones, scorer=None)  # reports say nothing about damage
    wanted = [(UNDAMAGED, 0.0), *((name, s) for name, (_, levels) in DAMAGES.items() for s in levels)]
    with context.progress(len(sets.evaluated) + len(wanted) * len(sets.others)) as bar:
        own = FeatureExtractor(plan, backbones, extractor.device)
        collector = context.collector(reader, own, bar=bar)
        reference = collector.real(sets.evaluated)
        collected = collector.cache.collect(
            [
                _damaged(name, level, case, index, reader)
                for name, level in wanted
                for index, case in enumerate(sets.others)
            ],
            bar,
        )
    half = len(reference) // 2
    # The windows' distance needs a floor among the real volumes; a single one has none.
    real, others = (reference[:half], reference[half:]) if half else (reference, [])
    records: list[dict[str, Any]] = []
    first, side = backbones.slices[0], plan.resolutions[0]
    for name, level in wanted:
        fake = collected.of(_kind(name, level), sets.others)
        compared = Compared(REAL, OTHER_REAL, fake, reference, plan, config.seed, config.protocol)
        rows = slice_rows(compared, first, side)
        for frames in plan.clip_lengths:
            rows += clip_rows(compared, backbones.clips[0], frames, side)
        rows += volume_rows(compared, backbones) if backbones.volumes else []
        found = readings(REAL, OTHER_REAL, fake, real, others, first, side)
        values = {row.metric: row.value for row in rows} | {r.monitor: r.value for r in found}
        numbers = {key: value if math.isfinite(value) else None for key, value in values.items()}
        records.append({"damage": name, "severity": level, **numbers})
    against = "the slices between" if config.analysis.split == "slices" else "others"
    text = (
        f"{len(sets.others)} real volumes, damaged, against {len(sets.evaluated)} {against}. The first line "
        "is the floor: the same volumes undamaged."
    )
    figures = {"metrics": (plot(records), "Over the floor, by severity (1 … 4)")}
    return AnalysisResult("Severity sweep", text, records, figures)


def plot(records: Sequence[dict[str, Any]]) -> Figure:
    """Every metric over its floor, by damage and severity."""
    shown = [name for name in SHOWN if any(record.get(name) is not None for record in records)]
    columns = 3
    figure = Figure(figsize=(12, 3.2 * math.ceil(len(shown) / columns)))
    for i, name in enumerate(shown):
        axes = figure.add_subplot(math.ceil(len(shown) / columns), columns, i + 1)
        floor = records[0][name]
        for damage in DAMAGES:
            values = [floor, *(r[name] for r in records if r["damage"] == damage)]
            axes.plot(range(len(values)), [math.nan if v is None else v for v in values], ".-", label=damage)
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(5), ["floor", "1", "2", "3", "4"])
        if name.startswith(("kid", "kd")):  # unbiased, so it may be negative
            values = [record[name] for record in records if record[name] is not None]
            linear = max(abs(floor or 0.01), 1e-4)
            axes.set_yscale("symlog", linthresh=linear)
            axes.set_ylim(min(0.0, *values) - linear, 2 * max(linear, *values))
            axes.set_yticks([0, *(tick for tick in (1, 10, 100, 1000) if tick < max(values))])
        else:
            axes.set_yscale("log")
        axes.axhline(floor or 0, color="grey", linestyle=":", linewidth=1)
    figure.axes[0].legend(fontsize=6)
    figure.supxlabel("severity of the damage", fontsize=9)
    figure.tight_layout()
    return figure


def _halves(context: Context) -> tuple[CaseReader, CaseSets]:
    config = context.config
    if config.analysis.split == "slices":
        scans = HalvedReader(Path(config.slices))
        sets = choose_cases(scans.cases(), config.cases, floors=False, choice=config.evaluated)
        return scans, halved(sets.evaluated)
    reader = context.reader()
    return reader, choose_cases(reader.cases(), config.cases, floors=True, choice=config.evaluated)


def _damaged(name: str, level: float, case: RealCase, index: int, reader: CaseReader) -> Group:
    def volume() -> ScoredVolume:
        real = reader.volume(case)
        hu = real.hu
        if name != UNDAMAGED:
            hu = DAMAGES[name][0](hu, level, np.random.default_rng(index))
        return real_volume(case.case_id, HUVolume(hu, real.spacing))

    return (Batch((Wanted(_kind(name, level), case),), lambda note: iter([volume()])),)


def _kind(name: str, level: float) -> str:
    return f"damage {name} {level}"


class Drawn(NamedTuple):
    """What is followed together.

    Attributes:
        blocks: ``first`` or ``later``.
        steps: Of the sampling grid that are taken; 0: the real block, encoded and decoded.
    """

    blocks: str
    steps: int


def response(context: Context) -> AnalysisResult:
    """Means and deviations over patients of what comes back from each time of the sampling grid."""
    config, rollout = context.config, context.rollout
    if rollout.solver == "dopri5":
        raise EvaluationError(
            "sampling with dopri5, which chooses its own steps",
            "a solver with a grid of times",
            "give another one, e.g. sampling.solver=euler",
        )
    shards = SliceShards(Path(config.slices))
    cases = sorted({int(i) for i in np.linspace(0, len(shards) - 1, min(config.cases, len(shards)))})
    if len(cases) < 2:
        raise EvaluationError(
            f"{len(cases)} case in {config.slices}", "two or more, to have a deviation", "give more cases"
        )
    grids = {
        blocks: time_grid(rollout.steps, rollout.time_shift, rollout.early(blocks == FIRST))
        for blocks in (FIRST, LATER)
    }
    found: dict[Drawn, list[dict[str, float]]] = {}
    for case in tqdm(cases, desc="response", unit="volume"):
        for group, measured in _drawn_back(context, shards, case, grids).items():
            found.setdefault(group, []).append(measured)
    times = {group: _begin(grids[group.blocks], group.steps) for group in found}
    records = _responses(found, times)
    text = (
        f"Blocks of {len(cases)} real volumes were noised to a time of the sampling grid and drawn back with "
        "their own report, as a rollout draws them: first blocks with the steps and the temperature of a "
        "volume's start, later ones under the real block before. 'difference' is the mean of what comes back "
        "minus that of the blocks encoded and decoded, in deviations over patients; 'ratio' divides the "
        "deviations, 'correlation' is over patients. An exact generator has differences of 0 and ratios of 1 "
        "at every time; correlations may fall towards t = 1."
    )
    return AnalysisResult(
        "Where is variety lost?", text, records, {"response": (_plot_response(records), "By time")}
    )


def _taken(total: int) -> list[int]:
    """Numbers of last steps that are taken, all of them first."""
    return sorted({total, *(max(1, ceil(total * share)) for share in (0.75, 0.5, 0.25)), 1}, reverse=True)


def _begin(grid: Tensor, steps: int) -> float:
    """Where the last so many steps begin."""
    return round(float(grid[len(grid) - 1 - steps]), 4)


@torch.no_grad()
def _drawn_back(
    context: Context, shards: SliceShards, case: int, grids: Mapping[str, Tensor]
) -> dict[Drawn, dict[str, float]]:
    """What is followed of one volume, by blocks and steps; later blocks only where there are some."""
    system, config = context.system, context.config
    entry, report = shards.cases[case], shards.metadata(case)["report"]
    volume = HUVolume(shards.hu(case).astype(np.float32), entry.spacing)
    latents = system.encode(volume)  # [C, S, h, w]
    side = system.config.image_size
    start = system.avae.air_latent(side)[:, None].expand(-1, BLOCK_LENGTH, -1, -1)
    white = system.avae.white_latent(side)
    embedded = system.text.encode([report])
    spacing = spacing_at(entry.spacing, volume.hu.shape[1], side)
    found = {}
    for blocks, grid in grids.items():
        first = blocks == FIRST
        shown = latents[:, :BLOCK_LENGTH] if first else latents
        if not first and latents.shape[1] <= BLOCK_LENGTH:
            continue
        kept = slice(0, BLOCK_LENGTH) if first else slice(BLOCK_LENGTH, None)
        found[Drawn(blocks, 0)] = _measured(context, shown[:, kept])
        count = -(-shown.shape[1] // BLOCK_LENGTH)
        for steps in _taken(len(grid) - 1):
            generator = derived_generator(config.seed, "response", entry.case_id, blocks, steps)
            shape = (steps, count, latents.shape[0], BLOCK_LENGTH, *latents.shape[2:])
            noise = torch.randn(shape, generator=generator).to(latents)
            if first and steps == len(grid) - 1:
                noise[0] *= context.rollout.start_temperature
            text = (embedded.tokens[0], embedded.mask[0])
            with torch.autocast(system.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                drawn = redraw(
                    system.fmvt,
                    shown,
                    start,
                    white,
                    text,
                    spacing,
                    context.rollout,
                    steps,
                    noise,
                    starts=first,
                )
            found[Drawn(blocks, steps)] = _measured(context, drawn[:, kept])
    return found


def _measured(context: Context, latents: Tensor) -> dict[str, float]:
    """What is followed of some slices ``[C, S, h, w]``."""
    shares = tissue_shares(context.system.decode(latents))
    return shares | {"latents' deviation": float(latents.std())}


def _responses(
    found: Mapping[Drawn, list[dict[str, float]]], times: Mapping[Drawn, float]
) -> list[dict[str, Any]]:
    records = []
    for group, measured in found.items():
        if not group.steps:
            continue
        real = found[Drawn(group.blocks, 0)]
        for name in measured[0]:
            a, b = (np.array([case[name] for case in cases]) for cases in (real, measured))
            deviation = float(a.std()) or math.nan  # nothing is measured in deviations of equal patients
            records.append(
                {
                    "blocks": group.blocks,
                    "t": times[group],
                    "quantity": name,
                    "volumes": len(b),
                    "real": round(float(a.mean()), 4),
                    "drawn": round(float(b.mean()), 4),
                    "difference": round(float(b.mean() - a.mean()) / deviation, 3),
                    "ratio": round(float(b.std()) / deviation, 3),
                    "correlation": round(_correlation(a, b), 3),
                }
            )
    return records


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; nan where one does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def _plot_response(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots(2, 2, sharex=True, squeeze=False)
    for column, blocks in enumerate((FIRST, LATER)):
        for row, value in enumerate(("difference", "ratio")):
            plot = axes[row][column]
            for name in dict.fromkeys(r["quantity"] for r in records):
                own = [r for r in records if r["blocks"] == blocks and r["quantity"] == name]
                plot.plot([r["t"] for r in own], [r[value] for r in own], "o-", label=name, markersize=3)
            plot.axhline(float(row), color="grey", linewidth=0.8)
            plot.set_ylabel(value)
            plot.set_title(f"{blocks} blocks" if row == 0 else "")
        axes[1][column].set_xlabel("noised to t")
    axes[0][0].legend(fontsize="x-small")
    figure.tight_layout()
    return figure
