"""Metrics as pure functions and streaming float64 sums: HU tensors in, no files, no networks of ours."""

from ctflow.errors import MetricError
from ctflow.metrics.frechet import Moments, frechet_from_features, frechet_from_moments
from ctflow.metrics.streaming import FrechetClipMetric, FrechetSliceMetric

__all__ = [
    "FrechetClipMetric",
    "FrechetSliceMetric",
    "MetricError",
    "Moments",
    "frechet_from_features",
    "frechet_from_moments",
]
