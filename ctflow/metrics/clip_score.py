"""Agreement of reports with volumes in a joint latent space, with its own zero point.

The score of real CT-CLIP is called ``clip``; with the embedded pair trained on phantoms it is
``clip_phantom``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ctflow.errors import MetricError
from ctflow.types import HUVolume


class TextVolumeScorer(Protocol):
    """Anything like CT-CLIP: both sides into one latent space.

    Attributes:
        name: ``clip`` for CT-CLIP's own weights, ``clip_phantom`` for the embedded pair.
        sha256: Fingerprint of the weights.
    """

    name: str
    sha256: str

    def encode_reports(self, reports: Sequence[str]) -> Tensor:
        """Latents ``[N, d]``."""
        ...

    def encode_volume(self, volume: HUVolume) -> Tensor:
        """Latent ``[d]``."""
        ...


def clip_scores(reports: Tensor, volumes: Tensor) -> Tensor:
    """``100 · max(0, cos)`` of every report with every volume.

    Args:
        reports: Latents ``[N, d]``, any length but zero.
        volumes: Latents ``[M, d]``.

    Returns:
        ``[N, M]`` in float64; the matched scores are the diagonal of paired sets.

    Raises:
        MetricError: Other shapes, or latents that are zero or not finite.
    """
    if reports.ndim != 2 or volumes.ndim != 2 or reports.shape[1] != volumes.shape[1]:
        raise MetricError(f"latents {tuple(reports.shape)} and {tuple(volumes.shape)}", "[N, d] and [M, d]")
    unit = []
    for name, latents in (("report", reports), ("volume", volumes)):
        norm = latents.double().norm(dim=1, keepdim=True)
        if not (torch.isfinite(norm).all() and (norm > 0).all()):
            raise MetricError(f"a {name} latent is zero or not finite", "finite latents")
        unit.append(latents.double() / norm)
    return 100.0 * (unit[0] @ unit[1].T).clamp_min(0)


def shuffled_scores(scores: Tensor, texts: Sequence[str]) -> Tensor:
    """The zero point: each volume's mean score over the reports of all other cases.

    This is the expectation over all shuffles; a report with the same words is not another report.

    Args:
        scores: ``[N, N]`` of ``clip_scores`` over paired cases.
        texts: The N reports.

    Returns:
        ``[N]``; NaN where no other report exists.
    """
    other = torch.tensor([[a != b for b in texts] for a in texts], device=scores.device)
    return torch.where(other, scores, 0.0).sum(0) / other.sum(0)
