"""Monitors without a model: cheap numbers on HU volumes that betray where generation goes wrong."""

from ctflow.metrics.monitors.bundle import MonitorRecord, VolumeMonitors
from ctflow.metrics.monitors.checkerboard import CheckerboardMonitor, checkerboard
from ctflow.metrics.monitors.drift import DriftMonitor, slice_statistics, theil_sen
from ctflow.metrics.monitors.seam import (
    SeamMonitor,
    block_boundaries,
    boundary_ratios,
    sharpest_steps,
)
from ctflow.metrics.monitors.thresholds import THRESHOLDS, alarms
from ctflow.metrics.monitors.white import EndMonitor, volume_end, white_slices

__all__ = [
    "THRESHOLDS",
    "CheckerboardMonitor",
    "DriftMonitor",
    "EndMonitor",
    "MonitorRecord",
    "SeamMonitor",
    "VolumeMonitors",
    "alarms",
    "block_boundaries",
    "boundary_ratios",
    "checkerboard",
    "sharpest_steps",
    "slice_statistics",
    "theil_sen",
    "volume_end",
    "white_slices",
]
