"""Whether values are a CT in Hounsfield units, and else in which scale: decided by looking at them.

A CT in HU has air between -1100 and -500, fat and soft tissue around 0 with their peak within 150 HU of
water, a valley between, and next to nothing below. Stored values (HU + 1000), values rescaled twice, MR and
8-bit pictures fail that test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING_HU = -1024.0
"""Everything at or below it lies outside what a scanner measures (-1024, -2000, -2048, -3024): air."""

AIR_RANGE = (-1100.0, -500.0)
TISSUE_RANGE = (-200.0, 300.0)
MIN_AIR, MIN_TISSUE, MAX_BELOW, MAX_ABOVE = 0.005, 0.03, 0.02, 0.03
HIGHEST_HU = 3100.0
TISSUE_PEAK = 150.0
BETWEEN = (-450.0, -250.0)
MAX_BETWEEN = 0.5
"""Most values per HU between air and tissue, as a share of those at the tissue peak."""
MIN_PADDING = 0.002
"""Share of the voxels that one value at or below ``PADDING_HU`` has where it is padding, not noise."""
_MOST_ZEROS = 0.2
"""Share of a volume that is 0 HU to the digit only where values were cut off."""
_SAMPLE = 200_000
_MAX_PADDINGS = 3
_SHIFTS = {1024.0: "1000 or 1024", 8192.0: "8192", 32768.0: "32768"}
"""Offsets that files add to HU, and their names in messages."""


@dataclass(frozen=True)
class Scale:
    """A scale that volumes come in instead of HU.

    Attributes:
        name: What the values look like.
        remedy: How they become HU.
    """

    name: str
    remedy: str

    def __str__(self) -> str:
        return f"they look like {self.name}: {self.remedy}"


def sample_of(values: NDArray[Any]) -> NDArray[np.float64]:
    """Some 200,000 voxels, evenly spread.

    Args:
        values: ``[i, j, k]``.
    """
    step = max(1, round((values.size / _SAMPLE) ** (1 / 3)))
    return values[::step, ::step, ::step].astype(np.float64)


def scale_of(values: NDArray[np.float64]) -> Scale | None:
    """Which scale values are in that are not HU; None where none is recognised.

    Args:
        values: Any shape; those that are not numbers are left out.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    # Turned HU look like stored ones, air and tissue exchanged; bone tells which side of the tissue is up.
    turned = np.mean((values < -200) & (values > -HIGHEST_HU)) > np.mean(values > 1224)
    if turned and _is_hu(-values):
        return Scale("HU with the sign turned (a negative slope)", "multiply by -1")
    for shift, told in _SHIFTS.items():
        if _is_hu(values - shift):
            return Scale(f"stored values (HU + {told})", f"subtract {told}, as RescaleIntercept says")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high >= 2**15 and _is_hu(np.where(values >= 2**15, values - 2**16, values)):
        return Scale("HU in an unsigned type, wrapped", "read them as signed 16-bit")
    if low >= 0 and high >= 2**15 and _is_hu(values * 2000 / 65535 - 1000):
        return Scale("a window mapped to 0…65535 (16-bit grey)", _unmap("v", "65535"))
    if _is_hu(values / 10):
        return Scale("HU times 10", "divide by 10")
    if low == 0 and high > 255.5 and np.mean(values == 0) > _MOST_ZEROS:
        return Scale("HU whose negative values were cut off", "write them again in a signed type")
    if low >= -0.005 and 0.01 < high <= 0.1:
        return Scale(
            "attenuation per mm", "HU = 1000 * (v / water - 1), with the coefficient of water (near 0.02)"
        )
    if abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05:
        return Scale("z-scores", "HU = v * std + mean, with those of the volume that was standardised")
    slack = 0.02
    if -1.2 <= low < -0.2 and high <= 4.1 and _is_hu(values * 1000.0):
        window = ", -1000…1000 HU mapped to [-1, 1]" if high <= 1 + slack else ""
        return Scale(f"HU / 1000{window}", "multiply by 1000")
    if high - low > 1 and -1 - slack <= low < -slack and high <= 1 + slack:
        return Scale("a window mapped to [-1, 1]", _unmap("v + 1", "2"))
    if -slack <= low and 0.1 < high <= 1 + slack:
        return Scale("a window mapped to [0, 1]", _unmap("v", "1"))
    if low >= -0.5 and 1 + slack < high <= 255.5:
        return Scale("a window mapped to 0…255 (8-bit grey)", _unmap("v", "255"))
    return None


def _is_hu(values: NDArray[np.float64]) -> bool:
    """Whether values are HU, and what lies below them is padding of a few values, no noise."""
    below = values[values < AIR_RANGE[0]]
    few = below.size <= MAX_BELOW * values.size or np.unique(below).size <= _MAX_PADDINGS
    return few and why_not_hu(values) is None


def _unmap(value: str, span: str) -> str:
    return (
        f"HU = low + ({value}) / {span} * (high - low), with the window that was mapped (say -1000 and 1000)"
    )


def why_not_hu(values: NDArray[np.float64]) -> str | None:
    """Why values cannot be a CT in HU; None where they can.

    Args:
        values: Candidates for HU, any shape.
    """
    values = _without_padding(values[np.isfinite(values)])
    if not values.size:
        return "nothing but one value"
    air = float(np.mean((values >= AIR_RANGE[0]) & (values < AIR_RANGE[1])))
    tissue = values[(values >= TISSUE_RANGE[0]) & (values <= TISSUE_RANGE[1])]
    below, above = float(np.mean(values < AIR_RANGE[0])), float(np.mean(values > HIGHEST_HU))
    if below > MAX_BELOW:
        return f"{below:.0%} of the values lie below {AIR_RANGE[0]:.0f}"
    if air < MIN_AIR:
        return f"no air: {air:.1%} of the values between {AIR_RANGE[0]:.0f} and {AIR_RANGE[1]:.0f}"
    if tissue.size < MIN_TISSUE * values.size:
        return f"no soft tissue: {tissue.size / values.size:.1%} of the values between -200 and 300"
    if above > MAX_ABOVE:
        return f"{above:.0%} of the values lie above {HIGHEST_HU:.0f}"
    counts, edges = np.histogram(tissue, bins=25, range=TISSUE_RANGE)
    peak = float(edges[int(np.argmax(counts))] + 10.0)
    if abs(peak) > TISSUE_PEAK:
        return f"the tissue peak lies at {peak:.0f}, not near water"
    between = float(np.mean((values >= BETWEEN[0]) & (values < BETWEEN[1]))) / (BETWEEN[1] - BETWEEN[0])
    height = counts.max() / values.size / (edges[1] - edges[0])
    if between > MAX_BETWEEN * height:
        return "air and tissue are not two peaks with a valley between them"
    return None


def _without_padding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values less those outside the field of view: single ones far below air, or one that is very common."""
    lowest, counts = np.unique(values[values <= PADDING_HU], return_counts=True)
    common = counts > MIN_PADDING * values.size
    common[:1] = True
    values = values[~np.isin(values, lowest[common])]
    floor = values.min(initial=np.inf)
    if not lowest.size and floor > AIR_RANGE[1] and np.mean(values == floor) > 0.3:
        values = values[values > floor]
    return values
