"""Reports and volumes in pairs that differ in one finding: does the report decide?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ctflow.anatomy import LABELS, SIDED, found_places
from ctflow.config.evaluation import READ_AT
from ctflow.config.system import SystemConfig
from ctflow.data import SliceShards
from ctflow.data.reader import padded_slices
from ctflow.data.views import contrast_partners
from ctflow.errors import CTFlowError, EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import RealCase
from ctflow.evaluation.features import CaseFeatures
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import EvalSystem
from ctflow.flow import LinearPath
from ctflow.generation import encode_reports
from ctflow.metrics.bias import share_interval
from ctflow.metrics.images import spacing_at
from ctflow.models import Conditions, TextCondition
from ctflow.reports import difference
from ctflow.seeding import derived_generator
from ctflow.shipped import shipped_path
from ctflow.text_files import read_table
from ctflow.types import BLOCK_LENGTH, HUVolume

BATCH = 8


@dataclass(frozen=True)
class PairLosses:
    """Squared errors of one contrast pair, summed over both volumes.

    Attributes:
        finding: What the two differ in, e.g. ``Pleural effusion, side``.
        losses: ``[times, 3]``: under the own report, the partner's and none.
    """

    finding: str
    losses: NDArray[np.float64]


def pairs(context: Context) -> AnalysisResult:
    """Loss by time under the own, the partner's and no report; share of pairs in which the own one wins."""
    config, system = context.config, context.system
    shards = SliceShards(Path(config.slices))
    partners = list(contrast_partners(shards.cases).items())[: config.cases]
    if not partners:
        raise EvaluationError(
            f"no contrast pair among the {len(shards)} cases of {config.slices}",
            "two scans of a patient on one grid that differ in one finding",
            "make some: python -m data_prep.phantom … pairs=true, then data_prep.ct_rate",
        )
    measured = [
        _measure(system, shards, pair, config.analysis.times, config.seed)
        for pair in tqdm(partners, desc="pairs", unit="pair")
    ]
    total = sum(pair.losses for pair in measured)
    assert isinstance(total, np.ndarray)
    text = (
        f"{len(measured)} held-out pairs of volumes that differ in one finding. 'read' is the share of pairs "
        f"in which the velocity's loss at t = {READ_AT} is lower under the own report than under the "
        "partner's (0.5: the report is not read), with its 95 % interval (Wilson). The figure shows the loss "
        "by time."
    )
    times = config.analysis.times
    figures = {"losses": (_plot(times, total), "Loss by time")}
    return AnalysisResult("Is the report read?", text, _records(times, measured), figures)


@torch.no_grad()
def _measure(
    system: EvalSystem, shards: SliceShards, pair: tuple[int, int], times: Sequence[float], seed: int
) -> PairLosses:
    entries = [shards.cases[i] for i in pair]
    reports = [shards.metadata(i)["report"] for i in pair]
    embedded = system.text.encode(reports)
    texts, none = encode_reports(system.fmvt, list(embedded.tokens), list(embedded.mask), guided=True)
    assert none is not None
    losses = np.zeros((len(times), 3))
    for own, (index, entry) in enumerate(zip(pair, entries, strict=True)):
        volume = HUVolume(shards.hu(index).astype(np.float32), entry.spacing)
        previous, target = _blocks(system, volume)
        spacing = torch.tensor(spacing_at(entry.spacing, volume.hu.shape[1], system.config.image_size))
        choices = (
            texts.select(torch.tensor([own])),
            texts.select(torch.tensor([1 - own])),
            none.select(torch.tensor([0])),
        )
        for row, t in enumerate(times):
            generator = derived_generator(seed, "pairs", entries[0].patient_id, t)
            noise = torch.randn(target.shape, generator=generator).to(target)
            told = (entry.slices, spacing.to(target))
            losses[row] += _errors(system, previous, target, noise, t, choices, told)
    return PairLosses(difference(*reports), losses)


def _blocks(system: EvalSystem, volume: HUVolume) -> tuple[Tensor, Tensor]:
    """Previous and target blocks ``[K, C, 16, h, w]`` of a volume, with end slices behind its last one."""
    latents = system.encode(volume)  # [C, S, h, w]
    side, slices = system.config.image_size, latents.shape[1]
    start = system.avae.air_latent(side)[:, None].expand(-1, BLOCK_LENGTH, -1, -1)
    end = system.avae.white_latent(side)[:, None].expand(-1, padded_slices(slices) - slices, -1, -1)
    whole = torch.cat([start, latents, end], dim=1)
    blocks = torch.stack(whole.split(BLOCK_LENGTH, dim=1))  # [K + 1, C, 16, h, w]
    return blocks[:-1], blocks[1:]


def _errors(
    system: EvalSystem,
    previous: Tensor,
    target: Tensor,
    noise: Tensor,
    t: float,
    texts: Sequence[TextCondition],
    told: tuple[int, Tensor],
) -> NDArray[np.float64]:
    """Squared errors of the velocity under each text, summed over all blocks."""
    point = LinearPath().sample(target, noise, torch.tensor(t))
    errors = np.zeros(len(texts))
    length, spacing = told
    for first in range(0, len(target), BATCH):
        rows = torch.arange(first, min(first + BATCH, len(target)))
        for number, text in enumerate(texts):
            conditions = Conditions(
                text=text.select(torch.zeros(len(rows), dtype=torch.long)),
                previous=previous[rows],
                position=(rows * BLOCK_LENGTH).float(),
                length=torch.full((len(rows),), float(length)),
                spacing=spacing.expand(len(rows), 3),
            )
            found = system.fmvt(point.z_t[rows], t, conditions)
            errors[number] += float((found - point.velocity[rows]).double().square().sum())
    return errors


def _records(times: Sequence[float], measured: Sequence[PairLosses]) -> list[dict[str, Any]]:
    groups: dict[str, list[PairLosses]] = defaultdict(list)
    for pair in measured:
        groups[pair.finding].append(pair)
    groups = {"all": list(measured), **dict(sorted(groups.items()))}
    at = list(times).index(READ_AT)
    records = []
    for name, own in groups.items():
        wins = sum(bool(pair.losses[at, 0] < pair.losses[at, 1]) for pair in own)
        total = np.sum([pair.losses for pair in own], axis=0)
        read = share_interval(wins, len(own))
        records.append(
            {
                "finding": name,
                "pairs": len(own),
                "read": round(read.value, 3),
                "from": round(read.low, 3),
                "to": round(read.high, 3),
                "partner's loss over own": round(float(total[at, 1] / total[at, 0]), 5),
                "loss without report over own": round(float(total[at, 2] / total[at, 0]), 5),
            }
        )
    return records


def _plot(times: Sequence[float], total: NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    for column, name in enumerate(("own report", "partner's report", "no report")):
        left.plot(times, total[:, column] / total[:, 0].max(), "o-", label=name)
    left.set_xlabel("t (1 is noise)")
    left.set_ylabel("loss over its greatest")
    left.legend()
    for column, name in ((1, "partner's over own"), (2, "none over own")):
        right.plot(times, total[:, column] / total[:, 0], "o-", label=name)
    right.set_xlabel("t (1 is noise)")
    right.legend()
    figure.tight_layout()
    return figure


COLUMNS = ("pair", "label", "slices", "report_a", "side_a", "report_b", "side_b")
EXPECTED = ("left", "right", "present", "absent")


@dataclass(frozen=True)
class ReportPair:
    """Two reports that differ in one finding.

    Attributes:
        name: Of the pair; names its noise.
        label: The finding.
        slices: Length asked for.
        reports: Both texts.
        sides: What each says of the finding: ``left``, ``right``, ``present`` (no side) or ``absent``.
    """

    name: str
    label: str
    slices: int
    reports: tuple[str, str]
    sides: tuple[str, str]

    @property
    def kind(self) -> str:
        """``present or absent``, or ``left or right``."""
        return "present or absent" if "absent" in self.sides else "left or right"


def contrast(context: Context) -> AnalysisResult:
    """Per finding: how often each half of a pair, and the pair as a whole, shows what its report says."""
    config = context.config
    pairs = read_pairs(shipped_path(config.analysis.pairs))
    extractor = context.extractor()
    outcomes: list[tuple[ReportPair, bool, bool]] = []
    with context.progress(2 * len(pairs) * config.analysis.pair_seeds) as bar:
        for seed in range(config.analysis.pair_seeds):
            halves: list[list[CaseFeatures]] = []
            for half in (0, 1):
                # Equal case ids give both halves equal noise; the report is part of the cache's key.
                own = replace(config, seed=config.seed + seed)
                collector = context.collector(None, extractor, own, findings=True, bar=bar)
                cases = [_case(pair, half, context.system.config) for pair in pairs]
                halves.append(collector.generated(SETTINGS["full-body"], cases))
            for pair, first, second in zip(pairs, *halves, strict=True):
                outcomes.append((pair, shows(first, pair, 0), shows(second, pair, 1)))
    records = [
        _record(label, kind, outcomes) for label, kind in dict.fromkeys((p.label, p.kind) for p in pairs)
    ]
    text = (
        f"{len(pairs)} pairs × {config.analysis.pair_seeds} seeds; both halves of a pair start from equal "
        "noise. Chance for a pair: 25 % if the module were a coin; 0 % for a model that ignores the report."
    )
    return AnalysisResult("Contrast pairs", text, records)


def read_pairs(path: Path) -> list[ReportPair]:
    """Pairs from a CSV with the columns of ``COLUMNS``.

    Raises:
        EvaluationError: No such file, other columns, an unknown label or side, no number of slices.
    """
    try:
        table = read_table(path)
    except CTFlowError as error:
        raise EvaluationError(
            f"no report pairs at {path}: {error.found}", f"a CSV with {', '.join(COLUMNS)}"
        ) from error
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise EvaluationError(f"{path} lacks the columns {', '.join(missing)}", f"{', '.join(COLUMNS)}")
    pairs = []
    for number, row in table.rows:
        sides = (row["side_a"], row["side_b"])
        if row["label"] not in LABELS or not set(sides) <= set(EXPECTED):
            raise EvaluationError(
                f"{path}, pair {row['pair']}: {row['label']!r} with the sides {sides}",
                f"a label of {', '.join(LABELS)}; sides of {', '.join(EXPECTED)}",
            )
        slices = row["slices"].removesuffix(".0")
        if not slices.isdecimal() or not int(slices):
            raise EvaluationError(
                f"{path}, row {number}: slices {row['slices']!r}", "a whole number of slices from 1 up"
            )
        reports = (row["report_a"], row["report_b"])
        pairs.append(ReportPair(row["pair"], row["label"], int(slices), reports, sides))
    return pairs


def shows(features: CaseFeatures, pair: ReportPair, half: int) -> bool:
    """Whether a volume shows of the pair's finding what its half of the pair says."""
    found, wanted = found_places(pair.label, features.findings or {}), pair.sides[half]
    if wanted == "absent":
        # Only the side that the other report names is in question.
        other = pair.sides[1 - half]
        return other not in found if other in ("left", "right") else not found
    return (
        wanted in found and (pair.kind != "left or right" or len(found) == 1)
        if pair.label in SIDED
        else bool(found)
    )


def _case(pair: ReportPair, half: int, system: SystemConfig) -> RealCase:
    side, pixel = system.image_size, system.pixel_spacing_mm
    return RealCase(
        case_id=f"contrast {pair.name}",
        patient_id=pair.name,
        report=pair.reports[half],
        shape=(pair.slices, side, side),
        spacing=(system.z_spacing_mm, pixel, pixel),
        digest=pair.name,
    )


def _record(label: str, kind: str, outcomes: Sequence[tuple[ReportPair, bool, bool]]) -> dict[str, Any]:
    own = [(a, b) for pair, a, b in outcomes if (pair.label, pair.kind) == (label, kind)]
    number = len(own)
    return {
        "finding": label,
        "pair": kind,
        "pairs": number,
        "first half right": sum(a for a, _ in own) / number,
        "second half right": sum(b for _, b in own) / number,
        "both right": sum(a and b for a, b in own) / number,
    }
