"""Metrics as pure functions and streaming float64 sums: tensors in HU, no files, none of this project's networks."""

from ctflow.metrics.frechet import MetricError, Moments, frechet_from_features, frechet_from_moments
from ctflow.metrics.streaming import FrechetClipMetric, FrechetSliceMetric

__all__ = [
    "FrechetClipMetric",
    "FrechetSliceMetric",
    "MetricError",
    "Moments",
    "frechet_from_features",
    "frechet_from_moments",
]
