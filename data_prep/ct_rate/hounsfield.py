"""From stored values to HU: slope and intercept exactly once, whoever carries them, and padding to air.

Whether values are HU is decided by looking at them: a CT in HU has air between -1100 and -500, fat and soft
tissue around 0 with their peak within 150 HU of water, a valley between, and next to nothing below. Stored
values (HU + 1000), values rescaled twice, MR and 8-bit pictures fail that test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.types import AIR_HU
from data_prep.ct_rate.reasons import ScanRefused

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
_SAMPLE = 200_000
_COARSE_VALUES = 300


@dataclass(frozen=True)
class Rescale:
    """The one application of slope and intercept that makes stored values HU.

    Attributes:
        slope: Factor.
        intercept: Term.
        source: ``header``, ``csv``, ``stored`` (values are HU as they are) or ``csv after header``.
        conflict: The header carries a rescale that would have been a second one.
    """

    slope: float
    intercept: float
    source: str
    conflict: bool = False

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored values to float32 HU, padding and values that are no numbers to air; same shape."""
        hu = stored.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            hu *= np.float32(self.slope)
            hu += np.float32(self.intercept)
        hu[~((hu > PADDING_HU) & (hu < np.inf))] = AIR_HU
        return hu


def decide_rescale(
    stored: NDArray[Any], header: tuple[float, float], csv: tuple[float, float] | None
) -> tuple[Rescale, dict[str, float]]:
    """Find the one rescale under which the values look like HU.

    Args:
        stored: Values as stored.
        header: Slope and intercept of the header, (1, 0) where it has none.
        csv: Slope and intercept of the metadata CSV.

    Returns:
        The rescale, and facts about the values (share of padding, distinct values).

    Raises:
        ScanRefused: Constant, empty, not finite, or not HU under any of them.
    """
    sample = _sample(stored)
    facts = _check_values(sample)
    candidates = [Rescale(*header, "stored" if header == (1.0, 0.0) else "header")]
    if csv is not None and csv not in (header, (1.0, 0.0)):
        candidates.append(Rescale(*csv, "csv"))
        if header != (1.0, 0.0):
            both = (header[0] * csv[0], header[1] * csv[0] + csv[1])
            candidates.append(Rescale(*both, "csv after header"))
    if header != (1.0, 0.0):
        candidates.append(Rescale(1.0, 0.0, "stored", conflict=True))
    for candidate in candidates:
        values = sample * np.float64(candidate.slope) + candidate.intercept
        if why_not_hu(values) is None:
            facts["padding_share"] = round(float(np.mean(~(values > PADDING_HU))), 4)
            return candidate, facts
    raise ScanRefused("not_hu", _why(sample, candidates, csv))


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


def _sample(stored: NDArray[Any]) -> NDArray[np.float64]:
    step = max(1, round((stored.size / _SAMPLE) ** (1 / 3)))
    return stored[::step, ::step, ::step].astype(np.float64)


def _check_values(sample: NDArray[np.float64]) -> dict[str, float]:
    finite = sample[np.isfinite(sample)]
    if finite.size < 0.5 * sample.size:
        raise ScanRefused("not_finite", f"{1 - finite.size / sample.size:.0%} of the voxels are no numbers")
    distinct, counts = np.unique(finite, return_counts=True)
    if distinct.size == 1:
        raise ScanRefused("constant", f"every voxel is {distinct[0]:g}")
    if counts.max() > 0.995 * finite.size:
        raise ScanRefused(
            "empty", f"{counts.max() / finite.size:.1%} of the voxels are {distinct[counts.argmax()]:g}"
        )
    return {
        "distinct_values": int(distinct.size),
        "not_finite_share": round(1 - finite.size / sample.size, 6),
    }


def is_coarse(facts: dict[str, float]) -> bool:
    """Whether so few distinct values were found that the scan must have been stored in 8 bits."""
    return facts["distinct_values"] < _COARSE_VALUES


def _why(sample: NDArray[np.float64], candidates: list[Rescale], csv: tuple[float, float] | None) -> str:
    finite = sample[np.isfinite(sample)]
    tried = [f"slope {c.slope:g}, intercept {c.intercept:g} ({c.source})" for c in candidates]
    reason = why_not_hu(sample * candidates[0].slope + candidates[0].intercept)
    text = f"values {finite.min():g} to {finite.max():g}: {reason}; tried {'; '.join(tried)}"
    for offset in (1000.0, 1024.0):
        if csv is None and why_not_hu(sample - offset) is None:
            return f"{text}. They look like stored values (HU + 1000 or so): --metadata with RescaleIntercept"
    return text
