"""CT-CLIP's image preprocessing as a pure function of HU and spacing."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ctflow.config.encoders import VolumeGrid
from ctflow.types import HUVolume

PADDING = -1.0
"""Intensity around a volume smaller than the grid: air."""


def volume_input(volume: HUVolume, grid: VolumeGrid) -> Tensor:
    """An oriented volume to the volume tower's input ``[1, 1, *grid.shape]``; see ``VolumeGrid.axes``."""
    hu, (z, y, x) = torch.from_numpy(volume.hu), volume.spacing
    if grid.axes == "SPR":
        return preprocess_volume(hu, (z, y, x), grid)
    return preprocess_volume(hu.transpose(1, 2).flip(1), (z, x, y), grid)  # [S, P, R] → [S, L, P]


def preprocess_volume(
    hu: Tensor,
    spacing_mm: tuple[float, float, float],
    grid: VolumeGrid,
    clip: Literal["before", "after"] = "before",
) -> Tensor:
    """Clip, resample, scale, then crop or pad about the centre.

    Axes are neither flipped nor exchanged: the caller gives them in the order of ``grid.shape``. Sizes are
    floored and the whole extent is stretched over them, as published, so the true spacing differs a little
    from the grid's.

    Args:
        hu: Volume in HU, ``[slices, rows, columns]``.
        spacing_mm: Its spacing along those axes.
        grid: Shape, spacing and HU limit of the result.
        clip: ``before`` resampling, as in the published inference; ``after``, as in its training.

    Returns:
        ``[1, 1, *grid.shape]`` float32 in [-1, 1], to be stacked along the first axis.
    """
    limit = grid.hu_limit
    x = hu.to(torch.float32)[None, None]
    if clip == "before":
        x = x.clamp(-limit, limit)
    sizes = [
        max(1, int(n * (mm / target)))  # this order of operations: rounding decides a whole slice
        for n, mm, target in zip(hu.shape, spacing_mm, grid.spacing_mm, strict=True)
    ]
    x = F.interpolate(x, size=sizes, mode="trilinear", align_corners=False)
    if clip == "after":
        x = x.clamp(-limit, limit)
    return _centred(x / limit, grid.shape)


def _centred(x: Tensor, shape: list[int]) -> Tensor:
    """Crop or pad the last three axes about their centre; odd remainders go to the end."""
    for axis, size in enumerate(shape, start=2):
        start = max((x.shape[axis] - size) // 2, 0)
        x = x.narrow(axis, start, min(size, x.shape[axis]))
    padding: list[int] = []
    for n, m in zip(reversed(x.shape[2:]), reversed(shape), strict=True):
        before = (m - n) // 2
        padding += [before, m - n - before]
    return F.pad(x, padding, value=PADDING)
