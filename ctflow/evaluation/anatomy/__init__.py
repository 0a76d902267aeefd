"""Reading anatomy and findings from a HU volume alone: phantom, real or generated (docs/measuring.md)."""

from ctflow.evaluation.anatomy.findings import Found, Thresholds, findings
from ctflow.evaluation.anatomy.measure import Segmentation, measure, segment
from ctflow.evaluation.anatomy.ranges import LungRanges, lung_ranges, phantom_ranges, save_ranges
from ctflow.evaluation.anatomy.truth import MEASURED_LABELS, Comparison, compare_with_truth
from ctflow.evaluation.anatomy.types import Measurement

__all__ = [
    "MEASURED_LABELS",
    "Comparison",
    "Found",
    "LungRanges",
    "Measurement",
    "Segmentation",
    "Thresholds",
    "compare_with_truth",
    "findings",
    "lung_ranges",
    "measure",
    "phantom_ranges",
    "save_ranges",
    "segment",
]
