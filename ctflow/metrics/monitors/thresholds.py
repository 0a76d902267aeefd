"""Beyond these values a monitor raises an alarm; docs/evaluation.md shows what they were set on."""

from __future__ import annotations

import math

THRESHOLDS: dict[str, float] = {
    "seam_ratio": 1.15,
    "seam_ratio_patch": 1.10,
    "checkerboard": 0.83,
    "drift_last_over_first": 2.0,
    "drift_slope": 0.5,
    "drift_z_slope": 0.25,
    "premature": 0.05,
    "interior_white": 0.0,
}
"""All are upper limits."""


def tripped(name: str, value: float) -> bool:
    """Whether this value of this monitor is an alarm; a missing value is not."""
    return name in THRESHOLDS and math.isfinite(value) and value > THRESHOLDS[name]


def alarms(values: dict[str, float]) -> list[str]:
    """One line per tripped monitor, ready for the log."""
    return [
        f"monitor {name} = {value:.3g} is above {THRESHOLDS[name]:g}"
        for name, value in values.items()
        if tripped(name, value)
    ]
