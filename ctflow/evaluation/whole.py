"""All rows of a table's source, and those that are made of whole volumes' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctflow.config.evaluation import CT3D_PACKAGE
from ctflow.evaluation.backbones import CT3D, PLANES_2P5D, WHOLE, Backbones, VolumeBackbone
from ctflow.evaluation.features import CaseFeatures, Key
from ctflow.evaluation.results import MODEL, NOT_EXTRAPOLATED, Row
from ctflow.evaluation.rows import (
    Compared,
    clip_rows,
    inception_row,
    report_rows,
    slice_rows,
    slice_values,
)
from ctflow.metrics import bias
from ctflow.metrics.ct_backbone import INSTALL
from ctflow.metrics.neighbours import NAMES, NEIGHBOURS, NeighbourStatistic
from ctflow.metrics.planes import PLANES
from ctflow.metrics.random_backbone import SPREAD_FLOOR
from ctflow.metrics.statistics import (
    CaseStatistic,
    DiagonalFrechetStatistic,
    FrechetStatistic,
    KernelStatistic,
    MeanOf,
)

FD_CT3D, KD_CT3D = "fd_ct3d", "kd_ct3d"
MIN_VOLUMES = 4
"""Fewest volumes for a distance between whole volumes."""
REGULARISED = "N ≤ {width} dimensions: covariances are their diagonals, not comparable with full ones"


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


def volume_rows(compared: Compared, backbones: Backbones) -> list[Row]:
    """``fd_ct3d`` and ``kd_ct3d``, and the distances over three planes where their network is given."""
    found = {backbone.name: backbone for backbone in backbones.volumes}
    rows = _ct3d_rows(compared, found.get(CT3D))
    return rows + (_plane_rows(compared, found[PLANES_2P5D]) if PLANES_2P5D in found else [])


def volume_values(cases: Sequence[CaseFeatures], backbone: str, output: str = WHOLE) -> list[Tensor]:
    """Features ``[n, d]`` of the cases that have any."""
    key = (backbone, output)
    return [torch.from_numpy(case.volumes[key]) for case in cases if key in case.volumes]


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


def _extrapolated(row: Row, statistic: CaseStatistic, width: int, seed: int) -> Row:
    """The row with its value, and with the value at infinite N where that can be told."""
    row = row.with_value(bias.jackknife(statistic, seed))
    found = bias.extrapolate(statistic, width, 4 if width <= 512 else 1, seed)
    if found is None:
        return row.noted(NOT_EXTRAPOLATED + bias.reason_against_extrapolation(statistic, width))
    return row.with_extrapolation(found)


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
    return [
        replace(row, **counts).with_value(bias.jackknife(NeighbourStatistic(metric, x, y), compared.seed))
        for metric, row in zip(NAMES, rows, strict=True)
    ]


def _in_spreads(fake: Sequence[Tensor], real: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Raw features of a random network in the real set's standard deviations."""
    spread = torch.cat(list(real)).double().std(0)
    spread = spread.clamp_min(SPREAD_FLOOR * float(spread.median().clamp_min(1e-12)))
    return [x / spread for x in fake], [x / spread for x in real]
