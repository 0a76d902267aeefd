"""Hounsfield units to network intensities and back: the one pair of functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

ArrayT = TypeVar("ArrayT", torch.Tensor, np.ndarray)


@dataclass
class IntensityWindow:
    """The affine map between HU and the range a network works in; it belongs to an A-VAE's config.

    Fresh models map [-1000, 1000] HU to [-1, 1]; the published ones map [-1000, 1400] HU to [0, 1].

    Attributes:
        hu_min: HU mapped to ``low``; lower values are clipped to it.
        hu_max: HU mapped to ``high``; higher values are clipped to it. A slice filled with it is "white".
        low: Lower end of the network's range.
        high: Upper end of the network's range.
    """

    hu_min: float = -1000.0
    hu_max: float = 1000.0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (self.hu_min < self.hu_max and self.low < self.high):
            raise ValueError(f"an intensity window needs hu_min < hu_max and low < high, found {self}")

    def to_model(self, hu: ArrayT) -> ArrayT:
        """Clip HU to the window and map them to [low, high]; shape and dtype kept."""
        scale = (self.high - self.low) / (self.hu_max - self.hu_min)
        return (hu.clip(self.hu_min, self.hu_max) - self.hu_min) * scale + self.low  # type: ignore[return-value]

    def to_hu(self, x: ArrayT) -> ArrayT:
        """Clip intensities to [low, high] and map them to HU; shape and dtype kept."""
        scale = (self.hu_max - self.hu_min) / (self.high - self.low)
        return (x.clip(self.low, self.high) - self.low) * scale + self.hu_min  # type: ignore[return-value]
