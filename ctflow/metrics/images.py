"""HU at another resolution, and what backbones take: 8-bit windows, clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ctflow.errors import MetricError
from ctflow.types import HUVolume

SCORE_WINDOW = (-1000.0, 1000.0)
"""HU shown to every backbone as 0 … 255 (evaluation.md)."""


Spacing = tuple[float, float, float]


def to_uint8(hu: Tensor, window: tuple[float, float] = SCORE_WINDOW) -> Tensor:
    """HU to 8 bits over a window, rounded; the shape is kept.

    Raises:
        MetricError: The tensor holds NaN or infinities (given slices of a setting are NaN by construction).
    """
    if not torch.isfinite(hu).all():
        raise MetricError("HU that are NaN or infinite", "finite HU", "given slices must not reach a score")
    low, high = window
    return ((hu.float().clamp(low, high) - low) * (255.0 / (high - low))).round().to(torch.uint8)


def at_side(hu: Tensor, side: int) -> Tensor:
    """Slices ``[S, H, W]`` in HU resampled to ``side``² (bilinear, antialiased), NaN slices staying NaN."""
    if tuple(hu.shape[1:]) == (side, side) or not len(hu):
        return hu
    return F.interpolate(hu.unsqueeze(1), size=(side, side), mode="bilinear", antialias=True)[:, 0]


def spacing_at(spacing: Spacing, pixels: int, side: int) -> Spacing:
    """Spacing in mm (z, y, x) of slices of ``pixels``² that are resampled to ``side``²."""
    zoom = pixels / side
    return (spacing[0], spacing[1] * zoom, spacing[2] * zoom)


def volume_at(volume: HUVolume, side: int) -> HUVolume:
    """A volume of square slices resampled in plane to ``side``², see ``at_side``."""
    hu = at_side(torch.from_numpy(volume.hu), side).numpy()
    return HUVolume(hu, spacing_at(volume.spacing, volume.hu.shape[1], side))


def slices_at(hu: Tensor, resolution: int | None) -> Tensor:
    """Slices ``[N, 1, H, W]`` in HU as 8-bit images at ``resolution``² (None: as they are).

    HU are clipped to the window before resampling (bilinear, antialiased): metal and padding must not ring.

    Raises:
        MetricError: Another shape, or values that are not finite.
    """
    if hu.ndim != 4 or hu.shape[1] != 1:
        raise MetricError(f"slices of shape {tuple(hu.shape)}", "[N, 1, H, W] in HU")
    if resolution is not None and tuple(hu.shape[2:]) != (resolution, resolution) and len(hu):
        hu = F.interpolate(
            hu.float().clamp(*SCORE_WINDOW), size=(resolution, resolution), mode="bilinear", antialias=True
        )
    return to_uint8(hu)


def clip_at(hu: Tensor, resolution: int | None) -> Tensor:
    """Clips ``[N, 1, T, H, W]`` in HU as 8-bit clips, every slice at ``resolution``²."""
    if hu.ndim != 5 or hu.shape[1] != 1:
        raise MetricError(f"clips of shape {tuple(hu.shape)}", "[N, 1, T, H, W] in HU")
    n, _, t, h, w = hu.shape
    images = slices_at(hu.reshape(n * t, 1, h, w), resolution)
    return images.reshape(n, 1, t, *images.shape[2:])


def three_channels(images: Tensor) -> Tensor:
    """A grey image's channel axis (axis 1, size 1) as three equal channels, without a copy."""
    return images.expand(-1, 3, *images.shape[2:])
