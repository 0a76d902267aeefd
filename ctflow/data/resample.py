"""Volumes onto a fixed grid: trilinear to a spacing, then cropped or padded around the centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ctflow.types import AIR_HU, HUVolume


def to_grid(volume: HUVolume, spacing: Sequence[float], shape: Sequence[int]) -> Tensor:
    """Resample to ``spacing`` and fit into ``shape``.

    Args:
        volume: HU ``[slices, rows, columns]`` with its spacing.
        spacing: Target millimetres (z, y, x).
        shape: Target voxels (z, y, x); what is larger is cropped around the centre, what is smaller padded with air.

    Returns:
        Float32 HU of ``shape``. Sizes after resampling are floored, as CT-CLIP's preprocessing does.
    """
    sizes = [
        max(int(n * old / new), 1)
        for n, old, new in zip(volume.hu.shape, volume.spacing, spacing, strict=True)
    ]
    hu = torch.from_numpy(volume.hu)[None, None]
    if sizes != list(volume.hu.shape):
        hu = functional.interpolate(hu, size=sizes, mode="trilinear", align_corners=False)
    return fit(hu[0, 0], shape)


def fit(hu: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop or pad ``[D, H, W]`` with air to ``shape`` around the centre."""
    out = torch.full(tuple(shape), AIR_HU)
    source, target = [], []
    for have, want in zip(hu.shape, shape, strict=True):
        size = min(have, want)
        source.append(slice((have - size) // 2, (have - size) // 2 + size))
        target.append(slice((want - size) // 2, (want - size) // 2 + size))
    out[tuple(target)] = hu[tuple(source)]
    return out
