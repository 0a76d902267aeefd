"""``severity``: real volumes damaged more and more; every metric and monitor must rise where it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.analyses.halves import HalvedReader, halved
from ctflow.evaluation.cache import CaseFeatures, FeatureCache
from ctflow.evaluation.cases import CaseReader, CaseSets, RealCase, choose_cases
from ctflow.evaluation.features import FeatureExtractor, real_volume
from ctflow.evaluation.monitoring import readings
from ctflow.evaluation.scores import Compared, clip_rows, slice_rows
from ctflow.evaluation.settings import REAL
from ctflow.evaluation.table import OTHER_REAL
from ctflow.metrics.damage import DAMAGES
from ctflow.types import HUVolume

UNDAMAGED = "none"
SHOWN = ("fid_rand2d", "kid_rand2d", "fvd_rand3d_f16", "seam_ratio", "checkerboard_2", "drift_z")


def severity(context: Context) -> AnalysisResult:
    """Damaged copies of half of the cases (or slices) against the other half, beside the undamaged floor."""
    config = context.config
    reader, sets = _halves(context)
    backbones, plan = context.tools()
    backbones = replace(backbones, scorer=None)  # reports say nothing about damage
    collector = context.collector(reader, backbones, plan)
    reference = collector.real(sets.evaluated)
    half = len(reference) // 2
    # The windows' distance needs a floor among the real volumes; a single one has none.
    real, others = (reference[:half], reference[half:]) if half else (reference, [])
    extractor = collector.extractor
    identity = {"plan": asdict(plan), "backbones": backbones.hashes, "damage": 1}
    cache = FeatureCache(collector.cache.folder, identity)
    records: list[dict[str, Any]] = []
    wanted = [(UNDAMAGED, 0.0), *((name, s) for name, (_, levels) in DAMAGES.items() for s in levels)]
    for name, level in tqdm(context.ranks.share(wanted), "damages", disable=not context.ranks.first):
        _prepare(name, level, sets, reader, extractor, cache)
    context.ranks.wait()
    for name, level in wanted:
        fake = [_load(cache, name, level, case) for case in sets.others]
        compared = Compared(REAL, OTHER_REAL, fake, reference, plan, config.seed, config.protocol)
        rows = slice_rows(compared, backbones.slices[0], plan.resolutions[0])
        for frames in plan.clip_lengths:
            rows += clip_rows(compared, backbones.clips[0], frames, plan.resolutions[0])
        found = readings(
            REAL,
            OTHER_REAL,
            fake,
            real,
            others,
            backbones.slices[0],
            plan.resolutions[0],
        )
        values = {row.metric: row.value for row in rows} | {r.monitor: r.value for r in found}
        numbers = {key: value if math.isfinite(value) else None for key, value in values.items()}
        records.append({"damage": name, "severity": level, **numbers})
    against = "the slices between" if config.analysis.split == "slices" else "others"
    text = (
        f"{len(sets.others)} real volumes, damaged, against {len(sets.evaluated)} {against}. The first line "
        "is the floor: the same volumes undamaged."
    )
    return AnalysisResult(
        "Severity sweep", text, records, [(plot(records), "Over the floor, by severity (1 … 4)")]
    )


def rises(records: Sequence[dict[str, Any]], metric: str, damage: str) -> bool:
    """Whether a metric rises with every step of a damage's severity, from the floor on."""
    values = [r[metric] for r in records if r["damage"] in (UNDAMAGED, damage)]
    return all(v is not None for v in values) and bool(np.all(np.diff(values) > 0))


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
        if name.startswith("kid"):  # unbiased, so it may be negative
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


def _prepare(
    name: str,
    level: float,
    sets: CaseSets,
    reader: CaseReader,
    extractor: FeatureExtractor,
    cache: FeatureCache,
) -> None:
    for index, case in enumerate(sets.others):
        if cache.load(name, str(level), case.case_id, case.digest) is not None:
            continue
        volume = reader.volume(case)
        hu = volume.hu
        if name != UNDAMAGED:
            hu = DAMAGES[name][0](hu, level, np.random.default_rng(index))
        features = extractor.extract(real_volume(case.case_id, HUVolume(hu, volume.spacing)))
        cache.store(features, name, str(level), case.case_id, case.digest)


def _load(cache: FeatureCache, name: str, level: float, case: RealCase) -> CaseFeatures:
    features = cache.load(name, str(level), case.case_id, case.digest)
    assert features is not None
    return features
