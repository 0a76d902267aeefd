"""One number with everything that must stand beside it, and why it is not there where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ctflow.metrics.bias import Interval

MODEL, OTHER_REAL, RECONSTRUCTION = "model", "floor: other real cases", "floor: A-VAE of other real cases"
NOT_AVAILABLE, DOES_NOT_EXIST = "n/a", "–"
NOT_EXTRAPOLATED = "not extrapolated: "


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        setting: Setting, or the name of an external set.
        source: The model, or which floor.
        metric: Name; stand-in backbones have their own.
        resolution: Side in pixels; 0 where the metric has none.
        value: The number; NaN where there is none, see ``reason``.
        low: Lower end of its 95 % interval; NaN without one.
        high: Upper end.
        extrapolated: The number at infinite N; NaN without one.
        extrapolated_low: Lower end of its 95 % interval.
        extrapolated_high: Upper end.
        samples: Slices, clips or cases scored.
        reference: Slices, clips or cases they are compared with; 0 where there are none.
        cases: Cases they come from.
        empty: What is printed instead of a missing number: ``n/a`` or ``–``.
        reason: Why a number is missing, or what to know about it.
    """

    setting: str
    source: str
    metric: str
    resolution: int = 0
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    extrapolated: float = math.nan
    extrapolated_low: float = math.nan
    extrapolated_high: float = math.nan
    samples: int = 0
    reference: int = 0
    cases: int = 0
    empty: str = ""
    reason: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no number."""
        return not math.isfinite(self.value)

    def text(self) -> str:
        """The number with its interval, as printed."""
        return self.empty or NOT_AVAILABLE if self.missing else _interval(self.value, self.low, self.high)

    def extrapolated_text(self) -> str:
        """The extrapolated number with its interval, as printed; empty for what needs no extrapolation."""
        if not math.isfinite(self.extrapolated):
            wanted = self.missing or NOT_EXTRAPOLATED in self.reason
            return self.empty or NOT_AVAILABLE if wanted else ""
        return _interval(self.extrapolated, self.extrapolated_low, self.extrapolated_high)

    def noted(self, note: str) -> Row:
        """The row with one more remark."""
        return replace(self, reason="; ".join(part for part in (self.reason, note) if part))


def number(value: float) -> str:
    """Four significant digits, no exponent for everyday sizes."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.3g}"


def with_interval(row: Row, interval: Interval) -> Row:
    """The row with a value and its interval."""
    return replace(row, value=interval.value, low=interval.low, high=interval.high)


def with_extrapolation(row: Row, interval: Interval) -> Row:
    """The row with the value at infinite N and its interval."""
    return replace(
        row,
        extrapolated=interval.value,
        extrapolated_low=interval.low,
        extrapolated_high=interval.high,
    )


def _interval(value: float, low: float, high: float) -> str:
    text = number(value)
    return f"{text} [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else text
