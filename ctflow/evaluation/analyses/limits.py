"""What limits a generator: other real cases, and what the A-VAE alone loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctflow.errors import WeightsError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import choose_cases
from ctflow.evaluation.compare import FLOORS, Comparer
from ctflow.evaluation.features import at_side
from ctflow.evaluation.settings import REAL
from ctflow.metrics.images import SCORE_WINDOW
from ctflow.metrics.reconstruction import Lpips, ReconstructionMetric, lpips_input
from ctflow.metrics.trained_backbones import checked_file
from ctflow.pictures import LUNG, SOFT_TISSUE
from ctflow.types import HUVolume

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
    lpips = _lpips(context)
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


def _lpips(context: Context) -> Lpips | None:
    files = context.config.backbones
    if not files.lpips:
        return None
    path = Path(files.lpips)
    checked_file(path, files.lpips_sha256, "torchvision's AlexNet")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no state dict
        raise WeightsError(f"{path} is no state dict: {error}", "torchvision's AlexNet weights") from error
    return Lpips(state)
