"""Beyond these values a monitor raises an alarm; docs/results.md shows what they were set on."""

from __future__ import annotations

import math

from ctflow.metrics.monitors.checkerboard import PERIODS

THRESHOLDS: dict[str, float] = {
    "seam_ratio": 1.15,
    "seam_ratio_patch": 1.10,
    "sharpest_steps": 1.25,
    **{f"checkerboard_{p}": 0.83 for p in PERIODS},
    "drift_last_over_first": 2.0,
    "drift_slope": 0.5,
    "drift_z_slope": 0.25,
    "premature": 0.05,
    "interior_white": 0.0,
    "end_slices": 0.0,
}
"""All are upper limits."""

OVER_REAL: dict[str, float] = {f"checkerboard_{p}": 1.5 for p in PERIODS}
"""Where real volumes lie high themselves (a table's edges), the limit is this many times their value."""


def limit(name: str, real: float = math.nan) -> float:
    """The value above which a monitor raises an alarm; NaN where it has no limit.

    Args:
        name: The monitor.
        real: Its value on the real volumes beside; NaN where there is none.
    """
    fixed = THRESHOLDS.get(name, math.nan)
    return max(fixed, OVER_REAL[name] * real) if name in OVER_REAL and math.isfinite(real) else fixed


def tripped(name: str, value: float, real: float = math.nan) -> bool:
    """Whether this value of this monitor is an alarm; a missing value is not."""
    return math.isfinite(value) and value > limit(name, real)


def alarms(values: dict[str, float], real: dict[str, float] | None = None) -> list[str]:
    """One line per tripped monitor, ready for the log; ``real``: the real volumes' values where known."""
    own = real or {}
    return [
        f"monitor {name} = {value:.3g} is above {limit(name, own.get(name, math.nan)):.3g}"
        for name, value in values.items()
        if tripped(name, value, own.get(name, math.nan))
    ]
