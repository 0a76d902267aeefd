"""What an evaluation finds: rows of the table, readings of the monitors, pictures, findings, provenance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.metrics.bias import Interval

MODEL, OTHER_REAL, RECONSTRUCTION = "model", "floor: other real cases", "floor: A-VAE of other real cases"
NOT_AVAILABLE, DOES_NOT_EXIST = "n/a", "–"
NOT_EXTRAPOLATED = "not extrapolated: "


@dataclass(frozen=True)
class Row:
    """A line of the table: one number with everything that must stand beside it.

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

    def without(self, reason: str, empty: str = NOT_AVAILABLE) -> Row:
        """The row without a number, and why."""
        return replace(self.noted(reason), empty=empty)

    def with_value(self, interval: Interval) -> Row:
        """The row with a value and its interval."""
        return replace(self, value=interval.value, low=interval.low, high=interval.high)

    def with_extrapolation(self, interval: Interval) -> Row:
        """The row with the value at infinite N and its interval."""
        return replace(
            self,
            extrapolated=interval.value,
            extrapolated_low=interval.low,
            extrapolated_high=interval.high,
        )


@dataclass(frozen=True)
class Reading:
    """One monitor over one set.

    Attributes:
        setting: Setting, or the name of an external set.
        source: The model, or which floor.
        monitor: Its name.
        value: NaN where it does not exist.
        threshold: Beyond it an alarm is raised; NaN without one.
        alarm: Whether it is.
        reason: Why there is no value.
    """

    setting: str
    source: str
    monitor: str
    value: float
    threshold: float
    alarm: bool
    reason: str = ""


@dataclass(frozen=True)
class Picture:
    """A montage of a scored volume.

    Attributes:
        case_id: The case.
        distance: Of its mean slice features from the reference, in the reference's standard deviations (RMS).
        image: 8-bit grey ``[height, width]``.
    """

    case_id: str
    distance: float
    image: NDArray[np.uint8]


@dataclass
class Results:
    """All results of one run.

    Attributes:
        rows: The table.
        readings: The monitors.
        provenance: What was compared, with what, how.
        pictures: By setting, nearest to the reference first.
        between: Rows over the slices that all settings share, and their ratios.
        findings: The table of findings on phantoms: dictionaries with equal keys.
    """

    rows: list[Row] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    between: list[Row] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def alarms(self) -> list[Reading]:
        """The model's readings beyond their thresholds."""
        return [reading for reading in self.readings if reading.alarm and reading.source == MODEL]


def number(value: float) -> str:
    """Four significant digits, no exponent for everyday sizes."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.3g}"


def _interval(value: float, low: float, high: float) -> str:
    text = number(value)
    return f"{text} [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else text
