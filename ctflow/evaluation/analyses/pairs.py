"""``pairs``: is the report read? Losses of held-out pairs under the own, the partner's and no report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ctflow.data import SliceShards
from ctflow.data.reader import padded_slices
from ctflow.data.views import contrast_partners
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.system import EvalSystem
from ctflow.flow import LinearPath
from ctflow.generation.guidance import encode_reports
from ctflow.models import Conditions, TextCondition
from ctflow.reports import StatedFinding, parse_report, summarised
from ctflow.seeding import derived_generator
from ctflow.types import BLOCK_LENGTH, HUVolume

TIMES = (0.2, 0.5, 0.8, 0.9, 0.96, 0.985, 0.995)
READ_AT = 0.985
"""Where layout is still open and the report can decide it (docs/model.md)."""
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
        _measure(system, shards, pair, config.seed) for pair in tqdm(partners, desc="pairs", unit="pair")
    ]
    total = sum(pair.losses for pair in measured)
    assert isinstance(total, np.ndarray)
    text = (
        f"{len(measured)} held-out pairs of volumes that differ in one finding. 'read' is the share of pairs "
        f"in which the velocity's loss at t = {READ_AT} is lower under the own report than under the "
        "partner's (0.5: the report is not read), with its 95 % interval (Wilson). The figure shows the loss "
        "by time."
    )
    figures = {"losses": (_plot(total), "Loss by time")}
    return AnalysisResult("Is the report read?", text, _records(measured), figures)


@torch.no_grad()
def _measure(system: EvalSystem, shards: SliceShards, pair: tuple[int, int], seed: int) -> PairLosses:
    entries = [shards.cases[i] for i in pair]
    reports = [shards.metadata(i)["report"] for i in pair]
    embedded = system.text.encode(reports)
    texts, none = encode_reports(system.fmvt, list(embedded.tokens), list(embedded.mask), guided=True)
    assert none is not None
    losses = np.zeros((len(TIMES), 3))
    for own, (index, entry) in enumerate(zip(pair, entries, strict=True)):
        volume = HUVolume(shards.hu(index).astype(np.float32), entry.spacing)
        previous, target = _blocks(system, volume)
        zoom = volume.hu.shape[1] / system.config.image_size
        spacing = torch.tensor([entry.spacing[0], entry.spacing[1] * zoom, entry.spacing[2] * zoom])
        choices = (
            texts.select(torch.tensor([own])),
            texts.select(torch.tensor([1 - own])),
            none.select(torch.tensor([0])),
        )
        for row, t in enumerate(TIMES):
            generator = derived_generator(seed, "pairs", entries[0].patient_id, row)
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


def difference(a: str, b: str) -> str:
    """What two reports differ in: a label, and its presence, side, place or size."""
    stated = [{_key(f) for f in summarised(parse_report(text))} for text in (a, b)]
    changed = stated[0] ^ stated[1]
    for label in sorted({key[0] for key in changed}):
        own = [{key for key in side if key[0] == label and key[1]} for side in stated]
        if not own[0] and not own[1]:
            continue
        if not own[0] or not own[1]:
            return f"{label}, presence"
        if {key[2] for key in own[0]} != {key[2] for key in own[1]}:
            return f"{label}, side"
        return f"{label}, {'place' if {k[3] for k in own[0]} != {k[3] for k in own[1]} else 'size'}"
    return "not told"


def _key(finding: StatedFinding) -> tuple[str, bool, str, str, str]:
    size = f"{finding.grade} {finding.size_mm} {finding.volume_ml} {finding.ratio}"
    return finding.label, finding.present, finding.side or "", finding.lobe or "", size


def _records(measured: Sequence[PairLosses]) -> list[dict[str, Any]]:
    groups: dict[str, list[PairLosses]] = defaultdict(list)
    for pair in measured:
        groups[pair.finding].append(pair)
    groups = {"all": list(measured), **dict(sorted(groups.items()))}
    at = TIMES.index(READ_AT)
    records = []
    for name, own in groups.items():
        wins = sum(bool(pair.losses[at, 0] < pair.losses[at, 1]) for pair in own)
        total = np.sum([pair.losses for pair in own], axis=0)
        low, high = wilson(wins, len(own))
        records.append(
            {
                "finding": name,
                "pairs": len(own),
                "read": round(wins / len(own), 3),
                "from": round(low, 3),
                "to": round(high, 3),
                "partner's loss over own": round(float(total[at, 1] / total[at, 0]), 5),
                "loss without report over own": round(float(total[at, 2] / total[at, 0]), 5),
            }
        )
    return records


def wilson(hits: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, scale = hits / number, 1 + z**2 / number
    centre = (share + z**2 / (2 * number)) / scale
    half = z / scale * (share * (1 - share) / number + z**2 / (4 * number**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _plot(total: NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    for column, name in enumerate(("own report", "partner's report", "no report")):
        left.plot(TIMES, total[:, column] / total[:, 0].max(), "o-", label=name)
    left.set_xlabel("t (1 is noise)")
    left.set_ylabel("loss over its greatest")
    left.legend()
    for column, name in ((1, "partner's over own"), (2, "none over own")):
        right.plot(TIMES, total[:, column] / total[:, 0], "o-", label=name)
    right.set_xlabel("t (1 is noise)")
    right.legend()
    figure.tight_layout()
    return figure
