"""Sets of generated volumes: do they differ, repeat training volumes, and teach a classifier of findings?"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor
from tqdm import tqdm

from ctflow.anatomy import LABELS
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context, line_plot, mean_row
from ctflow.evaluation.cases import CaseReader, RealCase, choose_cases, rows_by_case
from ctflow.evaluation.collect import REAL_SET
from ctflow.evaluation.features import CaseFeatures, Key
from ctflow.evaluation.results import MODEL, Row
from ctflow.evaluation.rows import Compared, neighbour_rows
from ctflow.evaluation.settings import SETTINGS
from ctflow.files import replaced
from ctflow.metrics import bias
from ctflow.metrics.classifier import BATCH, GRID, AurocStatistic, as_grid, predict, train_classifier
from ctflow.metrics.images import at_side
from ctflow.metrics.reconstruction import similarity, similarity_name
from ctflow.text_files import read_table

log = logging.getLogger(__name__)

SEEDS, OTHERS = "one report, other seeds", "real volumes of other patients"


def diversity(context: Context) -> AnalysisResult:
    """MS-SSIM within a report's seeds and between real volumes; precision, recall, density and coverage.

    Volumes are made anew, since pixels are not kept; with ``analysis.seeds`` of one there is no MS-SSIM.
    """
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.analysis.reports, floors=False, choice=config.evaluated)
    cases, side = sets.evaluated, context.system.config.image_size
    within = []
    for case in tqdm(cases, "reports", unit="report", disable=not context.ranks.first):
        made = [_volume(context, case, seed) for seed in range(config.analysis.seeds)]
        pairs = [similarity(a, b) for a, b in combinations(made, 2)]
        within.append(float(np.mean(pairs)) if pairs else math.nan)
    real = [at_side(torch.from_numpy(reader.volume(case).hu), side).numpy() for case in cases]
    # Each real volume against the next one: as many pairs as volumes, every volume twice.
    between = [similarity(real[i], real[i - 1]) for i in range(len(real))] if len(real) > 1 else []
    records = []
    for of, values in ((SEEDS, within), (OTHERS, between)):
        row = mean_row(similarity_name(side), values, config.seed, "no pairs")
        records.append(_of_row(row) | {"of": of, "N": sum(map(math.isfinite, values))})
    collector = context.collector(reader, extractor)
    compared = Compared(
        setting, MODEL, collector.generated(setting, cases), collector.real(cases), extractor.plan,
        config.seed, config.protocol,
    )  # fmt: skip
    records += [_of_row(row) for row in neighbour_rows(compared, extractor.backbones)]
    text = (
        f"{config.analysis.seeds} seeds × {len(cases)} reports at {side} px. MS-SSIM over the slices both "
        "volumes have, HU [−1000, 1000]: 1 for equal volumes. Seeds of one report should differ no more than "
        "patients do."
    )
    return AnalysisResult("Diversity", text, records)


def _volume(context: Context, case: RealCase, seed: int) -> NDArray[np.float32]:
    own = replace(context, config=replace(context.config, seed=context.config.seed + seed))
    return own.generate("full-body", case, context.reader()).hu


def _of_row(row: Row) -> dict[str, Any]:
    return {
        "metric": row.metric,
        "of": row.source,
        "value [95 %]": row.text(),
        "N": row.cases,
        "note": row.reason,
    }


LOW = 0.05
LEAST = 4


def memorisation(context: Context) -> AnalysisResult:
    """Distance of every generated volume to its nearest training volume, against held-out real volumes'."""
    config, setting = context.config, SETTINGS["full-body"]
    reader, extractor = context.reader(), context.extractor()
    sets = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated)
    train_reader = context.reader(config.analysis.train_slices)
    trained = train_reader.cases()
    known = {case.digest for case in trained}
    if twice := [case.case_id for case in sets.evaluated if case.digest in known]:
        raise EvaluationError(
            f"{len(twice)} evaluated cases are training cases, e.g. {twice[0]}", "held-out cases", ""
        )
    with context.progress(2 * len(sets.evaluated) + len(trained)) as bar:
        held_out = context.collector(reader, extractor, bar=bar).collect(sets, [setting.name])
        train = context.collector(train_reader, extractor, bar=bar).real(trained)
    key = Key(extractor.backbones.slices[-1].name, extractor.plan.resolutions[0])
    groups = {
        "generated": held_out.of(setting.name, sets.evaluated),
        "held-out real": held_out.of(REAL_SET, sets.evaluated),
    }
    if min(map(len, groups.values())) < LEAST or len(train) < LEAST:
        raise EvaluationError(
            f"{len(sets.evaluated)} held-out and {len(train)} training volumes", f"at least {LEAST} of each"
        )
    nearest = {name: nearest_distances(cases, train, key) for name, cases in groups.items()}
    limit = float(np.quantile(nearest["held-out real"], LOW))
    test = mannwhitneyu(nearest["generated"], nearest["held-out real"], alternative="less")
    records: list[dict[str, Any]] = [
        {
            "volumes": name,
            "number": len(values),
            "5 %": float(np.quantile(values, LOW)),
            "median": float(np.median(values)),
            "95 %": float(np.quantile(values, 1 - LOW)),
            f"share below the real {LOW:.0%}": float((values < limit).mean()),
        }
        for name, values in nearest.items()
    ]
    text = (
        f"Distance to the nearest of {len(train)} training volumes in mean slice features, in their standard "
        f"deviations. Generated nearer than held-out real: p = {test.pvalue:.3g} (Mann-Whitney, one-sided). "
        "A share well above 5 % would say that training volumes are repeated."
    )
    lines = {name: (np.sort(values), np.linspace(0, 1, len(values))) for name, values in nearest.items()}
    figure = line_plot(
        lines, "distance to the nearest training volume", "share of volumes", "-", drawstyle="steps-post"
    )
    figures = {"nearest": (figure, "Distance to the nearest training volume")}
    return AnalysisResult("Memorisation", text, records, figures)


def nearest_distances(
    cases: Sequence[CaseFeatures], train: Sequence[CaseFeatures], key: Key
) -> NDArray[np.float64]:
    """RMS distance of each case's mean features to the nearest training case's, in training deviations."""
    pool = np.stack([case.slices.values[key].mean(0) for case in train]).astype(np.float64)
    spread = pool.std(0) + 1e-6
    found = [
        np.sqrt((((pool - case.slices.values[key].mean(0)) / spread) ** 2).mean(1)).min()
        for case in cases
        if len(case.slices)
    ]
    return np.array(found)


REAL, SYNTHETIC, BOTH = "real", "synthetic", "both"
MEAN = "mean of the findings"
_ANSWERS = {"0": 0.0, "1": 1.0, "": math.nan}

LabelTable = dict[str, dict[str, float]]


def utility(context: Context) -> AnalysisResult:
    """AUROC per finding on held-out real volumes, by what the classifier was trained on.

    Real training volumes come from ``analysis.train_slices``, held-out ones from ``slices``; synthetic ones
    from ``analysis.synthetic``, or they are generated from the training volumes' reports. Labels are the
    shards', or those of ``analysis.labels``.

    Raises:
        EvaluationError: No labels, patients on both sides, or a finding that never differs.
    """
    config = context.config
    table = read_labels(Path(config.analysis.labels)) if config.analysis.labels else None
    train_reader, test_reader = context.reader(config.analysis.train_slices), context.reader()
    train, test = (_cases(context, reader, table) for reader in (train_reader, test_reader))
    if shared := {case.patient_id for case in train} & {case.patient_id for case in test}:
        raise EvaluationError(
            f"{len(shared)} patients are in both {train_reader.folder} and {test_reader.folder}",
            "other patients held out than trained on",
        )
    names = _findings(train, test, table)
    x_real, x_test = (_real_grids(r, c) for r, c in ((train_reader, train), (test_reader, test)))
    made, sources = _synthetic(context, train, train_reader, table)
    y_real, y_made, y_test = (_targets(cases, table, names) for cases in (train, sources, test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    runs: list[tuple[str, float, Tensor, Tensor]] = []
    for share in config.analysis.shares:
        kept = order[: max(1, math.ceil(share * len(train)))]
        runs.append((REAL, share, x_real[kept], y_real[kept]))
        runs.append((BOTH, share, torch.cat([x_real[kept], made]), torch.cat([y_real[kept], y_made])))
    runs.append((SYNTHETIC, 0.0, made, y_made))
    records: list[dict[str, Any]] = []
    for source, share, x, y in tqdm(runs, "classifiers", disable=not context.ranks.first):
        network = train_classifier(x, y, config.analysis.classifier_steps, config.seed)
        statistic = AurocStatistic(predict(network, x_test), y_test)
        for column, name in enumerate([*names, MEAN]):
            statistic.column = None if name == MEAN else column
            found = bias.jackknife(statistic, config.seed, bounds=(0, 1))
            row = Row(source, MODEL, "auroc").with_value(found)
            line = {"trained on": source, "real share": share, "volumes": len(x), "finding": name}
            records.append(line | {"AUROC [95 %]": row.text(), "held out": len(test)})
    text = (
        f"A small 3D network ({GRID[0]}×{GRID[1]}×{GRID[2]} voxels, {config.analysis.classifier_steps} steps "
        f"of {BATCH}) trained on {len(train)} real and {len(made)} synthetic volumes, tested on "
        f"{len(test)} real ones of other patients. 0.5 is chance. Intervals: jackknife over the held-out "
        "volumes; another seed of training moves the numbers too."
    )
    return AnalysisResult("Utility of synthetic volumes", text, records)


def read_labels(path: Path) -> LabelTable:
    """Findings per case from a CSV: ``case_id`` or ``VolumeName``, then one column of 0 and 1 per finding.

    Raises:
        EvaluationError: No such file, other columns, another value, or a case twice.
    """
    table = read_table(path)
    names = [name for name in table.columns if name in LABELS]
    if not names:
        raise EvaluationError(
            f"{path} has the columns {', '.join(table.columns)}", f"findings among {', '.join(LABELS)}"
        )
    found: LabelTable = {}
    for case, (line, row) in rows_by_case(table).items():
        values = {name: row[name].removesuffix(".0") for name in names}
        if bad := [name for name, value in values.items() if value not in _ANSWERS]:
            raise EvaluationError(f"{path}, line {line}: {bad[0]} is {row[bad[0]]!r}", "0, 1 or nothing")
        found[case] = {name: _ANSWERS[value] for name, value in values.items()}
    return found


def _cases(context: Context, reader: CaseReader, table: LabelTable | None) -> tuple[RealCase, ...]:
    config = context.config
    cases = choose_cases(reader.cases(), config.cases, floors=False, choice=config.evaluated).evaluated
    labelled = tuple(case for case in cases if (case.labels if table is None else case.case_id in table))
    if not labelled:
        raise EvaluationError(
            f"no case of {reader.folder} has labels", "labels in the shards, or analysis.labels=CSV"
        )
    if len(labelled) < len(cases):
        log.warning(
            "%d of %d cases of %s have no labels", len(cases) - len(labelled), len(cases), reader.folder
        )
    return labelled


def _label(case: RealCase, table: LabelTable | None, name: str) -> float:
    return float((case.labels if table is None else table[case.case_id]).get(name, math.nan))


def _targets(cases: Sequence[RealCase], table: LabelTable | None, names: Sequence[str]) -> Tensor:
    return torch.tensor([[_label(case, table, name) for name in names] for case in cases])


def _findings(train: Sequence[RealCase], test: Sequence[RealCase], table: LabelTable | None) -> list[str]:
    """Findings that some cases have and others not, on both sides."""
    names = [
        name
        for name in LABELS
        if all({0.0, 1.0} <= {_label(c, table, name) for c in side} for side in (train, test))
    ]
    if not names:
        raise EvaluationError(
            f"no finding differs among {len(train)} training and {len(test)} held-out volumes",
            "volumes with and without a finding on both sides",
        )
    return names


def _real_grids(reader: CaseReader, cases: Sequence[RealCase]) -> Tensor:
    return torch.stack([as_grid(reader.volume(case).hu) for case in tqdm(cases, "real volumes")])


def _synthetic(
    context: Context, train: Sequence[RealCase], reader: CaseReader, table: LabelTable | None
) -> tuple[Tensor, Sequence[RealCase]]:
    """Synthetic volumes, and the cases whose labels are theirs."""
    if context.config.analysis.synthetic:
        given = context.reader(context.config.analysis.synthetic)
        cases = _cases(context, given, table)
        return _real_grids(given, cases), cases
    with_report = [case for case in train if case.report.strip()]
    if not with_report:
        raise EvaluationError(f"no case of {reader.folder} has a report", "reports, or analysis.synthetic")
    made = [_generated(context, case, reader) for case in tqdm(with_report, "synthetic volumes")]
    return torch.stack(made), with_report


def _generated(context: Context, case: RealCase, reader: CaseReader) -> Tensor:
    """The classifier's input of a volume generated from a case's report; kept, so that a run resumes."""
    config = context.config
    depends = [
        "utility", case.case_id, case.report, f"{case.shape}{case.spacing}", context.system.fingerprint,
        asdict(context.rollout), config.seed, config.precision, GRID,
    ]  # fmt: skip
    name = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:32]
    path = Path(config.cache) / f"{name}.npy"
    if path.is_file():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    grid = as_grid(context.generate("full-body", case, reader).hu)
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.save(file, grid.numpy())
    return grid
