"""CT-CLIP's image preprocessing: HU and spacing to the volume tower's input in [-1, 1]."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ctflow.config.encoders import VolumeGrid
from ctflow.types import HUVolume
from ctflow.volume_grid import array_to_grid, to_grid


def volume_input(volume: HUVolume, grid: VolumeGrid) -> Tensor:
    """An oriented volume to the volume tower's input ``[1, 1, *grid.shape]``; see ``VolumeGrid.axes``."""
    return to_grid(volume, grid)[None, None] / grid.hu_limit


def preprocess_volume(
    hu: Tensor,
    spacing_mm: tuple[float, float, float],
    grid: VolumeGrid,
    clip: Literal["before", "after"] = "before",
) -> Tensor:
    """The same for an array whose axes are in the order of ``grid.shape`` already.

    Args:
        hu: Volume in HU, ``[slices, rows, columns]``.
        spacing_mm: Its spacing along those axes.
        grid: Shape, spacing and HU limit of the result.
        clip: See ``array_to_grid``.

    Returns:
        ``[1, 1, *grid.shape]`` float32 in [-1, 1], to be stacked along the first axis.
    """
    return array_to_grid(hu, spacing_mm, grid, clip)[None, None] / grid.hu_limit
