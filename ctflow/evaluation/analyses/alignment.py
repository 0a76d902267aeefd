"""``alignment``: do volumes show what their report says, and more so where the text weighs more?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from ctflow.anatomy import LABELS
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context, mean_row
from ctflow.evaluation.analyses.reading import named_findings, systematic
from ctflow.evaluation.cases import CaseReader, RealCase
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor
from ctflow.evaluation.settings import SETTINGS
from ctflow.generation import seeded_noise
from ctflow.metrics.clip_score import clip_scores
from ctflow.metrics.images import spacing_at
from ctflow.models import Conditions
from ctflow.types import BLOCK_LENGTH

EFFECT_AT = 0.5
"""Flow time at which the text's effect on the velocity is taken: half noise."""


def alignment(context: Context) -> AnalysisResult:
    """For every ``analysis.guidance``: findings obeyed, false ones, CT-CLIP score; ranks against strength.

    Readers' judgements of such volumes come with ``--analysis reading``.

    Raises:
        EvaluationError: No case has a report and known findings.
    """
    config = context.config
    reader, extractor = context.reader(), context.extractor()
    known = [case for case in reader.cases() if case.report.strip() and named_findings(case)]
    cases = systematic(known, config.analysis.reports)
    if not cases:
        raise EvaluationError(
            f"no case of {reader.folder} has a report and labels", "reports with ground truth or labels"
        )
    seeds = config.analysis.seeds
    effects = torch.tensor([text_effect(context, case) for case in cases], dtype=torch.float64)
    records: list[dict[str, Any]] = []
    points: list[tuple[float, float]] = []
    obeyed = torch.zeros(0)
    volumes = len(cases) * config.analysis.seeds * len(config.analysis.guidance)
    with context.progress(volumes) as bar:
        collected = {
            scale: [_generated(context, reader, extractor, cases, scale, seed, bar) for seed in range(seeds)]
            for scale in config.analysis.guidance
        }
    for scale, made in collected.items():
        per_case = [[volumes[i] for volumes in made] for i in range(len(cases))]
        obeyed, false = (torch.tensor(values, dtype=torch.float64) for values in shares(cases, per_case))
        points += [(scale, value) for value in obeyed.tolist() if math.isfinite(value)]
        records.append(
            {
                "text guidance": scale,
                "volumes": len(cases) * config.analysis.seeds,
                "findings obeyed [95 %]": mean_row("share", obeyed, config.seed).text(),
                "false findings [95 %]": mean_row("share", false, config.seed).text(),
                **_report_score(context, cases, per_case),
                "ρ(effect of the text, obeyed)": _rank(effects.tolist(), obeyed.tolist()),
            }
        )
    text = (
        f"{len(cases)} systematic reports × {config.analysis.seeds} seeds, full-body, read by the measuring "
        "module. Obeyed: share of a report's findings that its volume shows; false: share of the others that "
        f"it shows. Rank correlation of guidance scale and findings obeyed: {_rank(*_columns(points))}. The "
        "effect of the text is |v − v without text| / |v| of the first block at t = 0.5."
    )
    figures = {"effect": (_plot(effects, obeyed), "The text's effect and findings obeyed, last scale")}
    return AnalysisResult("Alignment of reports and volumes", text, records, figures)


def _generated(
    context: Context,
    reader: CaseReader,
    extractor: FeatureExtractor,
    cases: Sequence[RealCase],
    scale: float,
    seed: int,
    bar: tqdm,
) -> list[CaseFeatures]:
    config = context.config
    sampling = replace(config.sampling, text_guidance=scale)
    own = replace(config, seed=config.seed + seed, sampling=sampling)
    collector = context.collector(reader, extractor, own, findings=True, bar=bar)
    return collector.generated(SETTINGS["full-body"], cases)


@torch.no_grad()
def text_effect(context: Context, case: RealCase) -> float:
    """How much of the velocity of a case's first block is the report's: ``|v − v₀| / |v|`` at half noise."""
    system = context.system
    model, embedded = system.fmvt, system.text.encode([case.report])
    noise = seeded_noise(context.config.seed)(case.case_id, 0, _block_shape(context)).to(system.device)[None]
    spacing = spacing_at(case.spacing, case.shape[1], system.config.image_size)
    conditions = Conditions(
        text=model.encode_text(embedded.tokens.to(system.device), embedded.mask.to(system.device)),
        previous=system.generator().start[:, None].expand(-1, BLOCK_LENGTH, -1, -1)[None].to(system.device),
        position=torch.zeros(1, device=system.device),
        length=torch.tensor([float(case.shape[0])], device=system.device),
        spacing=torch.tensor([spacing], device=system.device),
    )
    z = EFFECT_AT * noise
    full = model(z, EFFECT_AT, conditions)
    without = model(z, EFFECT_AT, replace(conditions, text=model.encode_text(None, batch=1)))
    return float((full - without).norm() / full.norm())


def shares(
    cases: Sequence[RealCase], volumes: Sequence[Sequence[CaseFeatures]]
) -> tuple[list[float], list[float]]:
    """Per case over its volumes: share of the named findings that are found, and of the others that are.

    NaN where the report names none, or all, or where no volume could be read.
    """
    obeyed, false = [], []
    for case, own in zip(cases, volumes, strict=True):
        named = named_findings(case)
        read = [set(volume.findings) for volume in own if volume.findings is not None]
        hits = [label in found for found in read for label in LABELS if named.get(label) is True]
        wrong = [label in found for found in read for label in LABELS if named.get(label) is False]
        obeyed.append(float(np.mean(hits)) if hits else math.nan)
        false.append(float(np.mean(wrong)) if wrong else math.nan)
    return obeyed, false


def _block_shape(context: Context) -> tuple[int, ...]:
    start: Tensor = context.system.generator().start
    return (start.shape[0], BLOCK_LENGTH, *start.shape[1:])


def _report_score(
    context: Context, cases: Sequence[RealCase], volumes: Sequence[Sequence[CaseFeatures]]
) -> dict[str, str]:
    scorer = context.extractor().backbones.scorer
    if scorer is None:
        return {"clip [95 %]": "n/a"}
    texts = scorer.encode_reports([case.report for case in cases])
    scores = []
    for text, own in zip(texts, volumes, strict=True):
        latents = [torch.from_numpy(v.latent) for v in own if v.latent is not None]
        scores.append(float(clip_scores(text[None], torch.stack(latents)).mean()) if latents else math.nan)
    return {f"{scorer.name} [95 %]": mean_row(scorer.name, scores, context.config.seed).text()}


def _rank(first: Sequence[float], second: Sequence[float]) -> str:
    """Spearman's ρ with its p-value over the pairs that both exist."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    x, y = _columns(pairs)
    if len(pairs) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return f"n/a ({len(pairs)} pairs)"
    found = stats.spearmanr(x, y)
    return f"{found.statistic:.2f} (p = {found.pvalue:.2g}, {len(pairs)} pairs)"


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _plot(effects: Tensor, obeyed: Tensor) -> Figure:
    figure = Figure(figsize=(4.5, 3))
    axes = figure.add_subplot()
    axes.plot(effects.tolist(), obeyed.tolist(), "o", alpha=0.5)
    axes.set_xlabel("effect of the text on the velocity")
    axes.set_ylabel("findings obeyed")
    return figure
