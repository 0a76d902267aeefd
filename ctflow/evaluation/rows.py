"""From features of cases to rows of the table: all of a source, and one function per kind of metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctflow.config.evaluation import CT3D_PACKAGE
from ctflow.evaluation.features import CaseFeatures, FeaturePlan, Key
from ctflow.evaluation.results import DOES_NOT_EXIST, MODEL, NOT_EXTRAPOLATED, Row
from ctflow.evaluation.settings import Setting
from ctflow.metrics import bias
from ctflow.metrics.backbones import (
    CT3D,
    INCEPTION,
    LOGITS,
    PLANES_2P5D,
    WHOLE,
    Backbone,
    Backbones,
    VolumeBackbone,
)
from ctflow.metrics.clip_score import clip_scores, shuffled_scores
from ctflow.metrics.ct_backbone import INSTALL
from ctflow.metrics.neighbours import NAMES, NEIGHBOURS, NeighbourStatistic
from ctflow.metrics.planes import PLANES
from ctflow.metrics.random_backbone import SPREAD_FLOOR, projected_features
from ctflow.metrics.statistics import (
    CaseStatistic,
    DiagonalFrechetStatistic,
    FrechetStatistic,
    KernelStatistic,
    MeanOf,
    PerCaseMean,
)
from ctflow.metrics.trained_backbones import SPLITS, inception_score
from ctflow.types import BLOCK_LENGTH

MIN_SAMPLES = 17
"""Fewest slices or clips for a distance: more than the narrowest features have dimensions."""
FD_CT3D, KD_CT3D = "fd_ct3d", "kd_ct3d"
MIN_VOLUMES = 4
"""Fewest volumes for a distance between whole volumes."""
REGULARISED = "N ≤ {width} dimensions: covariances are their diagonals, not comparable with full ones"


@dataclass(frozen=True)
class Compared:
    """Two sets of cases whose features are compared.

    Attributes:
        setting: Whose rules hold; both sets are restricted to what it may score.
        source: The model, or which floor.
        fake: The scored set.
        real: The reference set; case i is at the same position of its set as ``fake[i]``.
        plan: What was extracted.
        seed: Of subsets and random offsets.
        protocol: ``matched`` or ``stylegan-v``.
    """

    setting: Setting
    source: str
    fake: Sequence[CaseFeatures]
    real: Sequence[CaseFeatures]
    plan: FeaturePlan
    seed: int
    protocol: str

    def row(self, metric: str, side: int = 0) -> Row:
        """An empty row; a resolution above that of the scored volumes is marked."""
        row = Row(self.setting.name, self.source, metric, side)
        own = min((f.facts.side for f in self.fake), default=side)
        return row.noted(f"upsampled from {own}") if side > own else row


def source_rows(compared: Compared, backbones: Backbones, reports: dict[str, str]) -> list[Row]:
    """All metrics of one scored set against its reference."""
    rows: list[Row] = []
    for side in compared.plan.resolutions:
        for backbone in backbones.slices:
            rows += slice_rows(compared, backbone, side)
        for backbone in backbones.clips:
            for frames in compared.plan.clip_lengths:
                rows += clip_rows(compared, backbone, frames, side)
        rows.append(inception_row(compared, backbones, side))
    rows += volume_rows(compared, backbones) + neighbour_rows(compared, backbones)
    return rows + report_rows(compared, backbones, reports)


def slice_rows(compared: Compared, backbone: Backbone, side: int) -> list[Row]:
    """Fréchet and kernel distance over slices."""
    key = Key(backbone.name, side)
    fake, real = slice_values(compared.fake, key), slice_values(compared.real, key)
    return [
        _distance_row(compared, compared.row(metric, side), backbone, fake, real, frechet)
        for metric, frechet in ((backbone.metric, True), (backbone.kernel, False))
    ]


def clip_rows(compared: Compared, backbone: Backbone, frames: int, side: int) -> list[Row]:
    """Fréchet distance over clips of ``frames`` slices under the protocol."""
    row = compared.row(f"{backbone.metric}_f{frames}", side)
    if compared.setting.spliced and frames > BLOCK_LENGTH:
        return [row.without("blocks are independent continuations: no longer clip exists", DOES_NOT_EXIST)]
    pairs = [
        _paired_clips(compared, f, r, Key(backbone.name, side), frames, i)
        for i, (f, r) in enumerate(zip(compared.fake, compared.real, strict=False))
    ]
    fake, real = [f for f, r in pairs if len(f) and len(r)], [r for f, r in pairs if len(f) and len(r)]
    if not fake:
        return [row.without(f"no pair of volumes has {frames} slices to score")]
    return [_distance_row(compared, row, backbone, fake, real, frechet=True)]


def inception_row(compared: Compared, backbones: Backbones, side: int) -> Row:
    """Inception score of the scored slices."""
    row = compared.row("is", side)
    if not backbones.has_inception:
        return row.without("no Inception weights given (backbones.inception)")
    logits = slice_values(compared.fake, Key(INCEPTION, side, LOGITS))
    samples = sum(map(len, logits))
    if samples < 2 * SPLITS:
        return row.without(f"{samples} slices; {SPLITS} splits need {2 * SPLITS}")
    mean, spread = inception_score(torch.cat(logits), SPLITS, compared.seed)
    interval = bias.Interval(mean, mean - 2 * spread, mean + 2 * spread)
    filled = replace(row, samples=samples, cases=len(logits)).with_value(interval)
    return filled.noted(f"interval: ± 2 standard deviations over {SPLITS} splits")


def report_rows(compared: Compared, backbones: Backbones, reports: dict[str, str]) -> list[Row]:
    """Agreement with the reports, and the same against the other cases' reports."""
    name = backbones.scorer.name if backbones.scorer else "clip"
    rows = [compared.row(name), compared.row(f"{name}_shuffled")]
    if backbones.scorer is None:
        return [row.without("no CT-CLIP to score with") for row in rows]
    if compared.setting.spliced and compared.source == MODEL:
        rows = [row.noted("blocks generated independently, laid end to end") for row in rows]
    if compared.setting.given:
        whole = "without the given slices" if compared.source == MODEL else "whole volumes"
        rows = [row.noted(whole) for row in rows]
    cases = [f for f in compared.fake if f.latent is not None and reports.get(f.case_id, "").strip()]
    if len(cases) < 2:
        return [row.without(f"{len(cases)} volumes with a report; at least 2 are needed") for row in rows]
    texts = [reports[f.case_id] for f in cases]
    volumes = torch.from_numpy(np.stack([f.latent for f in cases if f.latent is not None]))
    scores = clip_scores(backbones.scorer.encode_reports(texts), volumes)
    filled = []
    for row, values in zip(rows, (scores.diagonal(), shuffled_scores(scores, texts)), strict=True):
        row = replace(row, samples=int(torch.isfinite(values).sum()), cases=len(cases))
        if not row.samples:
            filled.append(row.without("all reports are equal"))
            continue
        filled.append(row.with_value(bias.jackknife(PerCaseMean(values), compared.seed)))
    return filled


def volume_rows(compared: Compared, backbones: Backbones) -> list[Row]:
    """``fd_ct3d`` and ``kd_ct3d``, and the distances over three planes where their network is given."""
    found = {backbone.name: backbone for backbone in backbones.volumes}
    rows = _ct3d_rows(compared, found.get(CT3D))
    return rows + (_plane_rows(compared, found[PLANES_2P5D]) if PLANES_2P5D in found else [])


def _ct3d_rows(compared: Compared, backbone: VolumeBackbone | None) -> list[Row]:
    rows = [compared.row(FD_CT3D), compared.row(KD_CT3D)]
    if backbone is None:
        return [row.without(f"no CT backbone: {INSTALL}, then backbones.ct3d={CT3D_PACKAGE}") for row in rows]
    ready = _sets(compared, rows, CT3D, WHOLE)
    if isinstance(ready, list):
        return ready
    rows, fake, real = ready
    width = fake[0].shape[1]
    few = min(rows[0].samples, rows[0].reference) <= width
    distance: CaseStatistic = DiagonalFrechetStatistic(fake, real) if few else FrechetStatistic(fake, real)
    first = rows[0].noted(REGULARISED.format(width=width)) if few else rows[0]
    return [
        _extrapolated(first, distance, 1 if few else width, compared.seed),
        rows[1].with_value(bias.jackknife(KernelStatistic(fake, real), compared.seed)),
    ]


def _plane_rows(compared: Compared, backbone: VolumeBackbone) -> list[Row]:
    """One distance per plane and their mean."""
    statistics: list[CaseStatistic] = []
    filled: list[Row] = []
    width = 0
    for plane in PLANES:
        ready = _sets(compared, [compared.row(f"{PLANES_2P5D}_{plane}")], PLANES_2P5D, plane)
        if isinstance(ready, list):
            return [*ready, replace(ready[0], metric=PLANES_2P5D)]
        (row,), fake, real = ready
        width = fake[0].shape[1]
        statistics.append(FrechetStatistic(fake, real))
        filled.append(_extrapolated(row.noted(backbone.label), statistics[-1], width, compared.seed))
    mean = replace(filled[0], metric=PLANES_2P5D, reason=f"{backbone.label}; mean of three planes")
    return [*filled, _extrapolated(mean, MeanOf(statistics), width, compared.seed)]


def _sets(
    compared: Compared, rows: list[Row], backbone: str, output: str
) -> list[Row] | tuple[list[Row], list[Tensor], list[Tensor]]:
    """Rows with their N, and both sets' features; or the rows with the reason why there is nothing."""
    if compared.setting.given:
        return [row.without("the scored slices are not a whole volume") for row in rows]
    fake, real = (volume_values(cases, backbone, output) for cases in (compared.fake, compared.real))
    if min(len(fake), len(real)) < MIN_VOLUMES:
        reason = f"{len(fake)} against {len(real)} volumes; at least {MIN_VOLUMES} are needed"
        return [row.without(reason) for row in rows]
    counts: dict[str, Any] = {
        "samples": sum(map(len, fake)),
        "reference": sum(map(len, real)),
        "cases": len(fake),
    }
    filled = [replace(row, **counts) for row in rows]
    if compared.setting.spliced and compared.source == MODEL:
        filled = [row.noted("blocks generated independently, laid end to end") for row in filled]
    return filled, fake, real


def neighbour_rows(compared: Compared, backbones: Backbones) -> list[Row]:
    """Precision, recall, density and coverage of whole volumes' features, else of slices' mean features."""
    if any(backbone.name == CT3D for backbone in backbones.volumes):
        name = CT3D
        fake, real = (volume_values(cases, CT3D) for cases in (compared.fake, compared.real))
    else:
        backbone, side = backbones.slices[-1], compared.plan.resolutions[0]
        name, key = backbone.name, Key(backbone.name, side)
        fake, real = (
            [values.mean(0, keepdim=True) for values in slice_values(cases, key)]
            for cases in (compared.fake, compared.real)
        )
        if backbone.projected and real:
            fake, real = _in_spreads(fake, real)
    rows = [compared.row(f"{metric}_{name}") for metric in NAMES]
    if compared.setting.given:
        return [row.without("the scored slices are not a whole volume") for row in rows]
    if min(len(fake), len(real)) <= NEIGHBOURS:
        reason = f"{len(fake)} against {len(real)} volumes; more than {NEIGHBOURS} are needed"
        return [row.without(reason) for row in rows]
    x, y = torch.cat(fake), torch.cat(real)
    counts: dict[str, Any] = {"samples": len(x), "reference": len(y), "cases": len(x)}
    found = [
        # Of the four only density may pass 1 (Naeem et al. 2020).
        bias.jackknife(
            NeighbourStatistic(metric, x, y), compared.seed, (0, math.inf if metric == "density" else 1)
        )
        for metric in NAMES
    ]
    return [replace(row, **counts).with_value(value) for row, value in zip(rows, found, strict=True)]


def _in_spreads(fake: Sequence[Tensor], real: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Raw features of a random network in the real set's standard deviations."""
    spread = torch.cat(list(real)).double().std(0)
    spread = spread.clamp_min(SPREAD_FLOOR * float(spread.median().clamp_min(1e-12)))
    return [x / spread for x in fake], [x / spread for x in real]


def statistic_of(
    backbone: Backbone, fake: Sequence[Tensor], real: Sequence[Tensor], frechet: bool
) -> CaseStatistic:
    """A distance over cases in the features it is defined on (random ones whitened and projected)."""
    if backbone.projected:
        sizes = ([len(f) for f in fake], [len(r) for r in real])
        whole_real, whole_fake = projected_features(torch.cat(list(real)), torch.cat(list(fake)))
        fake, real = whole_fake.split(sizes[0]), whole_real.split(sizes[1])
    return FrechetStatistic(fake, real) if frechet else KernelStatistic(fake, real)


def _distance_row(
    compared: Compared,
    row: Row,
    backbone: Backbone,
    fake: Sequence[Tensor],
    real: Sequence[Tensor],
    frechet: bool,
) -> Row:
    samples, reference = sum(map(len, fake)), sum(map(len, real))
    row = replace(row, samples=samples, reference=reference, cases=len(fake))
    if min(samples, reference) < MIN_SAMPLES:
        return row.without(f"{samples} against {reference} samples; at least {MIN_SAMPLES} are needed")
    statistic = statistic_of(backbone, fake, real, frechet)
    if not isinstance(statistic, FrechetStatistic):
        return row.with_value(bias.jackknife(statistic, compared.seed))
    width = statistic.width
    if min(samples, reference) <= width:
        row = row.noted(f"N ≤ {width} dimensions: strongly biased, see the kernel distance")
    return _extrapolated(row, statistic, width, compared.seed)


def _extrapolated(row: Row, statistic: CaseStatistic, width: int, seed: int) -> Row:
    """The row with its value, and with the value at infinite N where there are enough samples."""
    row = row.with_value(bias.jackknife(statistic, seed))
    found = bias.extrapolate(statistic, width, 4 if width <= 512 else 1, seed)
    if found is None:
        return row.noted(NOT_EXTRAPOLATED + bias.reason_against_extrapolation(statistic, width))
    return row.with_extrapolation(found)


def slice_values(cases: Sequence[CaseFeatures], key: Key) -> list[Tensor]:
    """Slice features ``[n, d]`` of the cases that have any."""
    return [torch.from_numpy(case.slices.values[key]) for case in cases if len(case.slices)]


def volume_values(cases: Sequence[CaseFeatures], backbone: str, output: str = WHOLE) -> list[Tensor]:
    """Features ``[n, d]`` of the cases that have any."""
    key = (backbone, output)
    return [torch.from_numpy(case.volumes[key]) for case in cases if key in case.volumes]


def _paired_clips(
    compared: Compared, fake: CaseFeatures, real: CaseFeatures, key: Key, frames: int, index: int
) -> tuple[Tensor, Tensor]:
    """The clips of one pair of volumes that the protocol compares."""
    clips = (fake.samples(frames), real.samples(frames))
    if min(map(len, clips)) == 0:
        return torch.zeros(0, 1), torch.zeros(0, 1)
    if compared.protocol == "matched":
        common = np.intersect1d(clips[0].starts, clips[1].starts)
        rows = [np.isin(c.starts, common) for c in clips]
    else:
        offset = int(np.random.default_rng([compared.seed, index]).integers(len(clips[1])))
        rows = [np.arange(len(c)) == at for c, at in zip(clips, (0, offset), strict=True)]
    first, second = (torch.from_numpy(c.keep(kept).values[key]) for c, kept in zip(clips, rows, strict=True))
    return first, second
