"""Seams: is the step between two slices larger at a block's boundary than near it?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ctflow.types import BLOCK_LENGTH

TISSUE_HU = -400.0
FLOOR_HU = 1.0
NEIGHBOURS = (-2, -1, 1, 2)
SHARPEST = 12
"""The largest of so many steps count as the sharpest."""


def body_mask(hu: Tensor) -> Tensor:
    """Voxels ``[S, H, W]`` with tissue on all four sides in their slice: the body with its lungs."""
    tissue = hu > TISSUE_HU  # NaN compares false: a given slice has no body
    left, right = tissue.cummax(2).values, tissue.flip(2).cummax(2).values.flip(2)
    up, down = tissue.cummax(1).values, tissue.flip(1).cummax(1).values.flip(1)
    return left & right & up & down


def step_sizes(hu: Tensor) -> Tensor:
    """``d_k``: mean absolute HU difference of slices k and k + 1 inside the body, floored at 1 HU.

    Args:
        hu: Volume ``[S, H, W]``; slices that must not be scored are NaN.

    Returns:
        ``[S - 1]`` in float64; NaN where either slice is NaN, or neither shows a body.
    """
    inside = body_mask(hu)
    inside = inside[1:] | inside[:-1]
    difference = torch.where(inside, (hu[1:] - hu[:-1]).abs(), 0.0).double()
    sizes = (difference.sum((1, 2)) / inside.sum((1, 2))).clamp_min(FLOOR_HU)
    missing = torch.isnan(hu).any(2).any(1)
    return sizes.masked_fill(missing[1:] | missing[:-1], math.nan)


def boundary_ratios(hu: Tensor) -> Tensor:
    """``r_k``: each step over the geometric mean of the two steps before and the two after it.

    Args:
        hu: Volume ``[S, H, W]`` in HU, without its end slices.

    Returns:
        ``[S - 1]`` in float64; NaN where a neighbour is missing.
    """
    steps = step_sizes(hu).log() if len(hu) > 1 else hu.new_zeros(0, dtype=torch.float64)
    padded = torch.nn.functional.pad(steps, (2, 2), value=math.nan)
    around = sum(padded[2 + n : 2 + n + len(steps)] for n in NEIGHBOURS) / len(NEIGHBOURS)
    return (steps - around).exp()


def block_boundaries(steps: int, overlap: int = 0, first: int = BLOCK_LENGTH) -> Tensor:
    """Which steps ``[steps]`` lie between blocks: k = 15, and from there every 16 less ``overlap`` slices.

    Args:
        steps: Slices less one.
        overlap: Slices that each block repeats of the one before (``RolloutConfig.overlap``).
        first: Slices before the first boundary: a block, or those that were given.
    """
    after_first = torch.arange(steps) - (first - 1)
    return (after_first >= 0) & (after_first % (BLOCK_LENGTH - overlap) == 0)


def sharpest_steps(hu: Tensor) -> Tensor:
    """Mean of the largest twelfth of the steps over the geometric mean of the steps before and after them.

    Blocks of 16 slices that repeat four of the block before end at every twelfth step; a volume that jumps
    anywhere else shows it too.

    Args:
        hu: Volume ``[S, H, W]`` in HU, without its end slices; slices that do not count are NaN.

    Returns:
        The mean over at least one step, a float64 scalar; NaN where no three neighbouring steps count.
    """
    steps = step_sizes(hu) if len(hu) > 1 else hu.new_zeros(0, dtype=torch.float64)
    ratios = steps[1:-1] / (steps[:-2] * steps[2:]).sqrt()
    ratios = ratios[torch.isfinite(ratios)].sort(descending=True).values
    return ratios[: max(1, len(ratios) // SHARPEST)].mean()


class SeamMonitor(Metric):
    """Geometric mean of ``r_k`` over the ends of blocks, and over the ends of depth patches (k ≡ 1 mod 2).

    Real volumes are near 1.00; an offset of 20 HU between blocks gives about 1.5 on a real scan.
    """

    full_state_update = False
    seam_log: Tensor
    seam_count: Tensor
    patch_log: Tensor
    patch_count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("seam_log", "seam_count", "patch_log", "patch_count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, volume: Tensor, overlap: int = 0) -> None:
        """Add one volume, its end slices cut off.

        Args:
            volume: HU ``[S, H, W]``, slices that do not count NaN; or its ``boundary_ratios`` ``[S - 1]``.
            overlap: Slices that each block repeats of the one before.
        """
        volume = volume.to(self.device)
        logs = (boundary_ratios(volume) if volume.ndim == 3 else volume).log()
        patches = torch.arange(len(logs)) % 2 == 1
        for name, at in (("seam", block_boundaries(len(logs), overlap)), ("patch", patches)):
            at = at.to(logs.device)
            valid = logs[at & torch.isfinite(logs)]
            setattr(self, f"{name}_log", getattr(self, f"{name}_log") + valid.sum())
            setattr(self, f"{name}_count", getattr(self, f"{name}_count") + len(valid))

    def compute(self) -> dict[str, float]:
        """``seam_ratio`` and ``seam_ratio_patch``; NaN where no boundary was seen."""
        return {
            "seam_ratio": float((self.seam_log / self.seam_count).exp()),
            "seam_ratio_patch": float((self.patch_log / self.patch_count).exp()),
        }
