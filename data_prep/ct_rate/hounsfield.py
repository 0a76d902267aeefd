"""From stored values to HU: slope and intercept exactly once, whoever carries them, and padding to air.

Whether values are HU is decided by looking at them (``ctflow.hounsfield``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.hounsfield import PADDING_HU, sample_of, scale_of, why_not_hu
from ctflow.types import AIR_HU
from data_prep.ct_rate.reasons import ScanRefused

_COARSE_VALUES = 300
"""Fewest distinct values of a scan that was not stored in 8 bits."""
HIGHEST_STORED = 32767.0


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
        """Stored values to float32 HU, at most 32,767; padding and NaN become air; same shape."""
        hu = stored.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            hu *= np.float32(self.slope)
            hu += np.float32(self.intercept)
        hu[~((hu > PADDING_HU) & (hu < np.inf))] = AIR_HU
        return np.minimum(hu, np.float32(HIGHEST_STORED), out=hu)


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
    sample = sample_of(stored)
    facts = _check_values(sample)
    if stored.dtype.kind == "f":
        count = sum(int(plane.size - np.isfinite(plane).sum()) for plane in np.moveaxis(stored, -1, 0))
        facts["not_finite_share"] = count / stored.size
    candidates = [Rescale(*header, "stored" if header == (1.0, 0.0) else "header")]
    if csv is not None and csv not in (header, (1.0, 0.0)):
        candidates.append(Rescale(*csv, "csv"))
        if header != (1.0, 0.0):
            both = (header[0] * csv[0], header[1] * csv[0] + csv[1])
            candidates.append(Rescale(*both, "csv after header"))
    if header != (1.0, 0.0):
        candidates.append(Rescale(1.0, 0.0, "stored", conflict=True))
    for candidate in (c for c in candidates if c.slope > 0):  # a negative one would turn the picture over
        values = sample * np.float64(candidate.slope) + candidate.intercept
        if why_not_hu(values) is None:
            facts["padding_share"] = round(float(np.mean(~(values > PADDING_HU))), 4)
            facts["clipped_voxels"] = _beyond(stored, candidate)
            return candidate, facts
    raise ScanRefused("not_hu", _why(sample, candidates, csv))


def _check_values(sample: NDArray[np.float64]) -> dict[str, float]:
    finite = sample[np.isfinite(sample)]
    if finite.size < 0.5 * sample.size:
        raise ScanRefused("not_finite", f"{1 - finite.size / sample.size:.0%} of the voxels are not numbers")
    distinct, counts = np.unique(finite, return_counts=True)
    if distinct.size == 1:
        raise ScanRefused("constant", f"every voxel is {distinct[0]:g}")
    if counts.max() > 0.995 * finite.size:
        raise ScanRefused(
            "empty", f"{counts.max() / finite.size:.1%} of the voxels are {distinct[counts.argmax()]:g}"
        )
    return {
        "distinct_values": int(distinct.size),
        "not_finite_share": 1 - finite.size / sample.size,
    }


def is_coarse(facts: dict[str, float]) -> bool:
    """Whether so few distinct values were found that the scan must have been stored in 8 bits."""
    return facts["distinct_values"] < _COARSE_VALUES


def _beyond(stored: NDArray[Any], rescale: Rescale) -> int:
    """Voxels above what int16 holds once they are HU."""
    limit = (HIGHEST_STORED - rescale.intercept) / rescale.slope
    if stored.dtype.kind in "iu" and np.iinfo(stored.dtype).max <= limit:
        return 0
    return sum(int(((plane > limit) & (plane < np.inf)).sum()) for plane in np.moveaxis(stored, -1, 0))


def _why(sample: NDArray[np.float64], candidates: list[Rescale], csv: tuple[float, float] | None) -> str:
    finite = sample[np.isfinite(sample)]
    tried = [
        f"slope {c.slope:g}, intercept {c.intercept:g} ({c.source}{'' if c.slope > 0 else ': not positive'})"
        for c in candidates
    ]
    reason = why_not_hu(sample * candidates[0].slope + candidates[0].intercept)
    if reason is None:
        reason = f"they would be HU with the slope {candidates[0].slope:g}, which is negative"
    text = f"values {finite.min():g} to {finite.max():g}: {reason}; tried {'; '.join(tried)}"
    scale = scale_of(sample)
    if scale is None:
        return text
    advice = "" if csv is not None else " (--metadata with RescaleSlope and RescaleIntercept does it)"
    return f"{text}. {str(scale)[0].upper()}{str(scale)[1:]}{advice}"
