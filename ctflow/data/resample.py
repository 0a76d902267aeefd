"""Volumes onto the volume tower's grid: trilinear to its spacing, cropped or padded around the centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ctflow.config.encoders import VolumeGrid
from ctflow.types import AIR_HU, HUVolume


def to_grid(volume: HUVolume, grid: VolumeGrid) -> Tensor:
    """Resample a volume as CT-CLIP's preprocessing does, but stay in HU.

    Args:
        volume: HU ``[slices, rows, columns]``, axes S,P,R, with its spacing.
        grid: Spacing, shape, axes and HU limit of the result.

    Returns:
        Float32 HU of ``grid.shape``, clipped to ± ``grid.hu_limit``; divided by that: the tower's input.
    """
    hu, (z, y, x) = torch.from_numpy(volume.hu), volume.spacing
    if grid.axes == "SLP":
        hu, spacing = hu.transpose(1, 2).flip(1), (z, x, y)
    else:
        spacing = (z, y, x)
    # sizes are floored in this order of operations: rounding decides a whole slice
    scales = [old / new for old, new in zip(spacing, grid.spacing_mm, strict=True)]
    sizes = [max(1, int(n * scale)) for n, scale in zip(hu.shape, scales, strict=True)]
    hu = hu.clamp(-grid.hu_limit, grid.hu_limit)[None, None]
    hu = functional.interpolate(hu, size=sizes, mode="trilinear", align_corners=False)
    return _fit(hu[0, 0], grid.shape)


def _fit(hu: Tensor, shape: Sequence[int]) -> Tensor:
    out = torch.full(tuple(shape), AIR_HU)
    source, target = [], []
    for have, want in zip(hu.shape, shape, strict=True):
        size, cut, pad = min(have, want), max(have - want, 0) // 2, max(want - have, 0) // 2
        source.append(slice(cut, cut + size))
        target.append(slice(pad, pad + size))
    out[tuple(target)] = hu[tuple(source)]
    return out
