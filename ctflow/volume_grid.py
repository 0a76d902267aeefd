"""Volumes onto a volume tower's grid: clipped, trilinear to its spacing, cropped or padded about the centre.

The one place of CT-CLIP's geometry; data (training of the pair) and models (scoring) both use it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ctflow.config.encoders import VolumeGrid
from ctflow.types import HUVolume


def to_grid(volume: HUVolume, grid: VolumeGrid) -> Tensor:
    """An oriented volume on the grid, in HU; see ``VolumeGrid.axes``.

    Args:
        volume: HU ``[slices, rows, columns]``, axes S,P,R, with its spacing.
        grid: Spacing, shape, axes and HU limit of the result.

    Returns:
        Float32 HU of ``grid.shape``, clipped to ± ``grid.hu_limit``; divided by that: the tower's input.
    """
    hu, (z, y, x) = torch.from_numpy(volume.hu), volume.spacing
    if grid.axes == "SPR":
        return array_to_grid(hu, (z, y, x), grid)
    return array_to_grid(hu.transpose(1, 2).flip(1), (z, x, y), grid)  # [S, P, R] → [S, L, P]


def array_to_grid(
    hu: Tensor,
    spacing_mm: tuple[float, float, float],
    grid: VolumeGrid,
    clip: Literal["before", "after"] = "before",
) -> Tensor:
    """Clip, resample, then crop or pad about the centre.

    Axes are neither flipped nor exchanged: the caller gives them in the order of ``grid.shape``. Sizes are
    floored and the whole extent is stretched over them, as published, so the true spacing differs a little
    from the grid's.

    Args:
        hu: Volume in HU, ``[slices, rows, columns]``.
        spacing_mm: Its spacing along those axes.
        grid: Shape, spacing and HU limit of the result.
        clip: ``before`` resampling, as in the published inference; ``after``, as in its training.

    Returns:
        Float32 HU of ``grid.shape``, surrounded by air (- ``grid.hu_limit``) where the volume is smaller.
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
    return _centred(x[0, 0], grid.shape, -limit)


def _centred(x: Tensor, shape: list[int], value: float) -> Tensor:
    """Crop or pad three axes about their centre; odd remainders go to the end."""
    for axis, size in enumerate(shape):
        start = max((x.shape[axis] - size) // 2, 0)
        x = x.narrow(axis, start, min(size, x.shape[axis]))
    padding: list[int] = []
    for n, m in zip(reversed(x.shape), reversed(shape), strict=True):
        before = (m - n) // 2
        padding += [before, m - n - before]
    return F.pad(x, padding, value=value)
