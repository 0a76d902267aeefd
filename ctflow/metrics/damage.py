"""Damages of known severity, as pure functions of a volume in HU: what every metric is held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.types import AIR_HU, BLOCK_LENGTH

Volume = NDArray[np.float32]
Damage = Callable[[Volume, float, np.random.Generator], Volume]


def blur(hu: Volume, sigma: float, rng: np.random.Generator) -> Volume:
    """Gaussian blur in plane; severity in pixels."""
    return ndimage.gaussian_filter(hu, (0, sigma, sigma)).astype(np.float32)


def noise(hu: Volume, spread: float, rng: np.random.Generator) -> Volume:
    """White noise; severity in HU."""
    return (hu + rng.normal(0, spread, hu.shape)).astype(np.float32)


def shuffle(hu: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Some slices change places with each other; severity is their share."""
    chosen = rng.permutation(len(hu))[: max(2, round(share * len(hu)))]
    order = np.arange(len(hu))
    order[np.sort(chosen)] = rng.permutation(chosen)
    return hu[order]


def seam(hu: Volume, offset: float, rng: np.random.Generator) -> Volume:
    """Every other block is offset inside the body; severity in HU."""
    odd = (np.arange(len(hu)) // BLOCK_LENGTH) % 2 == 1
    return np.where(odd[:, None, None] & (hu > AIR_HU + 100), hu + offset, hu).astype(np.float32)


def duplication(hu: Volume, times: float, rng: np.random.Generator) -> Volume:
    """Each slice replaces the next ones too; severity is their number with it."""
    return hu[(np.arange(len(hu)) // int(times)) * int(times)]


def shift(hu: Volume, offset: float, rng: np.random.Generator) -> Volume:
    """All intensities are shifted; severity in HU."""
    return (hu + offset).astype(np.float32)


def checkerboard(hu: Volume, amplitude: float, rng: np.random.Generator) -> Volume:
    """A grid of period 2 in plane; severity in HU."""
    rows, columns = np.indices(hu.shape[1:])
    return (hu + amplitude * np.where((rows + columns) % 2, 1, -1)).astype(np.float32)


def truncation(hu: Volume, share: float, rng: np.random.Generator) -> Volume:
    """The top of the volume is missing; severity is the share."""
    return hu[: max(1, round((1 - share) * len(hu)))]


DAMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "blur": (blur, (0.5, 1.0, 2.0, 4.0)),
    "noise": (noise, (10.0, 25.0, 60.0, 150.0)),
    "shuffle": (shuffle, (0.1, 0.3, 0.6, 1.0)),
    "seam": (seam, (10.0, 20.0, 50.0, 120.0)),
    "duplication": (duplication, (2.0, 4.0, 8.0, 16.0)),
    "shift": (shift, (10.0, 30.0, 80.0, 200.0)),
    "checkerboard": (checkerboard, (5.0, 15.0, 40.0, 100.0)),
    "truncation": (truncation, (0.1, 0.25, 0.5, 0.75)),
}
"""Name to function and four severities in rising order."""
