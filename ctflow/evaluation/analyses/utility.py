"""``utility``: does a classifier of findings learn from synthetic volumes what it learns from real ones?"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc
from tqdm import tqdm

from ctflow.anatomy import LABELS
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import CaseReader, RealCase, choose_cases
from ctflow.evaluation.results import MODEL, Row
from ctflow.files import replaced
from ctflow.metrics import bias
from ctflow.text_files import read_table

log = logging.getLogger(__name__)

GRID = (32, 64, 64)
"""Voxels along slices, rows, columns that the classifier sees of a whole volume."""
WIDTHS = (8, 16, 32, 64)
BATCH, LEARNING_RATE = 8, 1e-3
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
            row = Row(source, MODEL, "auroc").with_value(bias.jackknife(statistic, config.seed))
            line = {"trained on": source, "real share": share, "volumes": len(x), "finding": name}
            records.append(line | {"AUROC [95 %]": row.text(), "held out": len(test)})
    text = (
        f"A small 3D network ({GRID[0]}×{GRID[1]}×{GRID[2]} voxels, {config.analysis.classifier_steps} steps "
        f"of {BATCH}) trained on {len(train)} real and {len(made)} synthetic volumes, tested on "
        f"{len(test)} real ones of other patients. 0.5 is chance. Intervals: jackknife over the held-out "
        "volumes; another seed of training moves the numbers too."
    )
    return AnalysisResult("Utility of synthetic volumes", text, records)


class AurocStatistic:
    """AUROC over chosen held-out cases: of one finding, or the mean over all that have both classes.

    Args:
        scores: ``[N, findings]``.
        targets: 0 and 1, NaN where unknown.

    Attributes:
        column: Which finding; None: the mean.
    """

    def __init__(self, scores: Tensor, targets: Tensor) -> None:
        self.scores, self.targets = scores, targets
        self.column: int | None = None
        self.fake_cases = self.real_cases = len(scores)

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Cases."""
        return len(fake)

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """NaN where all chosen cases agree."""
        rows = torch.tensor(list(fake))
        columns = range(self.scores.shape[1]) if self.column is None else [self.column]
        found = []
        for column in columns:
            target = self.targets[rows, column]
            some = torch.isfinite(target)
            if len(target[some].unique()) == 2:
                found.append(float(binary_auroc(self.scores[rows, column][some], target[some].long())))
        return float(np.mean(found)) if found else math.nan


def read_labels(path: Path) -> LabelTable:
    """Findings per case from a CSV: ``case_id`` or ``VolumeName``, then one column of 0 and 1 per finding.

    Raises:
        EvaluationError: No such file, other columns, another value, or a case twice.
    """
    read = read_table(path)
    columns = list(read.columns)
    key = next((c for c in ("case_id", "VolumeName") if c in columns), None)
    names = [c for c in columns if c in LABELS]
    if key is None or not names:
        raise EvaluationError(
            f"{path} has the columns {', '.join(columns)}",
            f"case_id or VolumeName, and findings among {', '.join(LABELS)}",
        )
    found: LabelTable = {}
    for line, row in read.rows:
        case = row[key].removesuffix(".gz").removesuffix(".nii")
        if bad := [name for name in names if row[name].removesuffix(".0") not in _ANSWERS]:
            raise EvaluationError(f"{path}, line {line}: {bad[0]} is {row[bad[0]]!r}", "0, 1 or nothing")
        if case in found:
            raise EvaluationError(f"{path} names {case!r} twice", "every case once")
        found[case] = {name: _ANSWERS[row[name].removesuffix(".0")] for name in names}
    return found


def train_classifier(x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Module:
    """A 3D ResNet of four blocks (MONAI's) for labels ``[N, findings]`` of volumes ``[N, 1, *GRID]``.

    Labels that are NaN are unknown and teach nothing.
    """
    from monai.networks.nets import ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(
            "basic", [1, 1, 1, 1], list(WIDTHS), spatial_dims=3, n_input_channels=1, num_classes=y.shape[1],
            conv1_t_size=3, conv1_t_stride=2,
        ).train()  # fmt: skip
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
        draws = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=draws)
            loss = F.binary_cross_entropy_with_logits(
                network(x[rows]), y[rows].nan_to_num(), reduction="none"
            )
            known = torch.isfinite(y[rows])
            optimizer.zero_grad()
            ((loss * known).sum() / known.sum().clamp_min(1)).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Scores ``[N, findings]``."""
    return torch.cat([network(part) for part in x.split(BATCH)])


def as_grid(hu: np.ndarray) -> Tensor:
    """A volume ``[S, H, W]`` in HU as the classifier sees it: ``[1, *GRID]`` in [-1, 1], area means."""
    x = torch.from_numpy(np.asarray(hu, np.float32)).clamp(-1000, 1000)[None, None]
    return F.interpolate(x, size=GRID, mode="area")[0] / 1000


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
    """What the classifier sees of a volume generated from a case's report; kept, so that a run resumes."""
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
