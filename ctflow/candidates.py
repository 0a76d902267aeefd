"""Choice at inference: several volumes of one report are drawn, and the best of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctflow.config.commands import SamplingChoice
from ctflow.evaluation.system import ClipScorer
from ctflow.generation import SliceUpdate
from ctflow.metrics.monitors import SeamMonitor, slice_statistics
from ctflow.pipeline import CTFlow, EmptyVolume, GeneratedVolume, GenerationRequest


@dataclass(frozen=True)
class Candidate:
    """The numbers that rank one of the drawn volumes.

    Attributes:
        noise_id: Names its noise; a request with this ``noise_id`` and the same seed draws it again.
        clip_score: Agreement with the report under the checkpoint's own pair of encoders, 0 to 100.
        seam_ratio: Step between slices at the blocks' boundaries over the steps beside them; 1 in a scan.
        drift: How far its slices depart from those of the other candidates at the same place: mean HU,
            spread and sharpness, in units of all slices' spread.
        rank: Mean place among the candidates, 1 the best; the CLIP score counts as much as both others.
        kept: Whether it was kept.
    """

    noise_id: str
    clip_score: float
    seam_ratio: float
    drift: float
    rank: float
    kept: bool


def noise_of(request: GenerationRequest, number: int) -> str:
    """The noise of a request's candidate; the first one's is what the request alone would have."""
    own = request.noise_id or request.case_id
    return own if number == 0 else f"{own}/candidate{number + 1}"


def drawn_for(request: GenerationRequest, candidates: int) -> list[GenerationRequest]:
    """The requests of a request's candidates."""
    return [
        replace(request, case_id=f"{request.case_id}/{i + 1}", noise_id=noise_of(request, i))
        for i in range(candidates)
    ]


def generate_best(
    model: CTFlow,
    requests: Sequence[GenerationRequest],
    candidates: int,
    sampling: SamplingChoice | None = None,
    progress: Callable[[SliceUpdate], None] | None = None,
    precision: str = "fp32",
    cancelled: Callable[[], bool] | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> list[GeneratedVolume | EmptyVolume]:
    """Draw several volumes for each request and keep the best one.

    Args:
        model: Generates and scores.
        requests: With different case ids.
        candidates: Volumes drawn for each.
        sampling: Replaces the sampling that the checkpoint recommends.
        progress: Called with every candidate's new slices.
        precision: ``fp32`` or ``bf16`` autocast of the FMvT.
        cancelled: As for ``CTFlow.generate_many``.
        given: First slices that a request's volumes continue, by its case id (``CTFlow.stream``).

    Returns:
        As ``CTFlow.generate_many``; ``provenance["candidates"]`` tells of all that were drawn.
    """
    if candidates == 1:
        return model.generate_many(requests, sampling, progress, precision, cancelled, given)
    scorer = ClipScorer(model.text_encoder, model.fingerprint)
    best: list[GeneratedVolume | EmptyVolume] = []
    for request in requests:
        drawn = drawn_for(request, candidates)
        own = (given or {}).get(request.case_id)
        starts = None if own is None else {one.case_id: own for one in drawn}
        results = model.generate_many(drawn, sampling, progress, precision, cancelled, starts)
        volumes = [result for result in results if isinstance(result, GeneratedVolume)]
        if not volumes:
            best.append(results[0])
            continue
        told = compared(volumes, scorer)
        chosen = volumes[[candidate.kept for candidate in told].index(True)]
        provenance = chosen.provenance | {
            "request": asdict(request),
            "candidates": [asdict(candidate) for candidate in told],
        }
        best.append(replace(chosen, request=request, provenance=provenance))
    return best


def compared(volumes: Sequence[GeneratedVolume], scorer: ClipScorer) -> list[Candidate]:
    """Measure the candidates of one report and rank them; ``kept`` is true of one."""
    scores = np.array([scorer.score(volume.request.report, volume.volume) for volume in volumes])
    seams = np.array([_seam_ratio(volume) for volume in volumes])
    drifts = _departures(volumes)
    ranks = (_places(-scores) + (_places(seams) + _places(drifts)) / 2) / 2
    best = int(ranks.argmin())
    numbers = zip(volumes, scores.tolist(), seams.tolist(), drifts.tolist(), ranks.tolist(), strict=True)
    return [
        Candidate(volume.request.noise_id, score, seam, drift, rank, i == best)
        for i, (volume, score, seam, drift, rank) in enumerate(numbers)
    ]


def _seam_ratio(volume: GeneratedVolume) -> float:
    monitor = SeamMonitor()
    monitor.update(torch.from_numpy(volume.volume.hu), int(volume.provenance["sampling"]["overlap"]))  # type: ignore[index]
    return monitor.compute()["seam_ratio"]


def _departures(volumes: Sequence[GeneratedVolume]) -> np.ndarray:
    """Mean distance of each volume's slice statistics from their median over the volumes, ``[N]``."""
    statistics = [slice_statistics(torch.from_numpy(volume.volume.hu)).numpy() for volume in volumes]
    common = min(map(len, statistics))
    stacked = np.stack([one[:common] for one in statistics])  # [N, S, 3]
    spread = stacked.std(axis=(0, 1)) + 1e-9
    return (np.abs(stacked - np.median(stacked, axis=0)) / spread).mean(axis=(1, 2))


def _places(values: np.ndarray) -> np.ndarray:
    """Place of each value, 1 the smallest; equal values share theirs, NaN is last."""
    ordered = np.where(np.isfinite(values), values, np.inf)
    return (ordered[None] < ordered[:, None]).sum(axis=1) + 1.0
