"""How the VLM3D challenge shows a volume to CT-CLIP; its other definitions are ``ctnet`` and ``planes``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ctflow.metrics.images import SCORE_WINDOW

PADDING_HU = -1.0
"""The evaluators pad with -1 before they divide by 1000: with water, nearly, where CT-CLIP was trained on
air."""


def clip_input(
    stored: Tensor,
    spacing: tuple[float, float, float],
    shape: Sequence[int] = (240, 480, 480),
    target: Sequence[float] = (1.5, 0.75, 0.75),
) -> Tensor:
    """A volume as the challenge shows it to CT-CLIP_v2.

    Args:
        stored: HU ``[z, x, y]`` in the order of the file; nothing is reoriented.
        spacing: Millimetres along the file's z, y, x. In plane they are taken for x and y in that order, as
            the evaluators do; for square pixels it is the same.
        shape: Voxels of the result.
        target: Their millimetres.

    Returns:
        Float32 ``[1, 1, *shape]`` in [-1, 1].
    """
    x = stored.float().clamp(*SCORE_WINDOW)[None, None]
    sizes = [round(n * (mm / wanted)) for n, mm, wanted in zip(stored.shape, spacing, target, strict=True)]
    x = F.interpolate(x, size=[max(1, size) for size in sizes], mode="trilinear", align_corners=False)[0, 0]
    padding: list[int] = []
    for size, wanted in zip(reversed(x.shape), reversed(list(shape)), strict=True):
        before = (wanted - size) // 2  # below zero: cropped, the odd voxel at the start
        padding += [before, wanted - size - before]
    return F.pad(x, padding, value=PADDING_HU)[None, None] / 1000.0


def clip_score(first: Tensor, second: Tensor) -> float:
    """``max(0, 100 · cosine)`` of two latents ``[d]``."""
    return max(100.0 * float(torch.cosine_similarity(first.double(), second.double(), dim=0)), 0.0)
