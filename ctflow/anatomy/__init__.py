"""Reading anatomy and findings from a HU volume alone: phantom, real or generated (docs/anatomy.md)."""

from ctflow.anatomy.accuracy import Agreement
from ctflow.anatomy.comparison import Comparison, check_labels, compare_with_truth, found_places, true_places
from ctflow.anatomy.findings import LABELS, SIDED, Found, Thresholds, findings
from ctflow.anatomy.measure import Segmentation, measure, segment
from ctflow.anatomy.ranges import LungRanges, lung_ranges, phantom_ranges, save_ranges
from ctflow.anatomy.types import SIDES, Measurement

__all__ = [
    "LABELS",
    "SIDED",
    "SIDES",
    "Agreement",
    "Comparison",
    "Found",
    "LungRanges",
    "Measurement",
    "Segmentation",
    "Thresholds",
    "check_labels",
    "compare_with_truth",
    "findings",
    "found_places",
    "lung_ranges",
    "measure",
    "phantom_ranges",
    "save_ranges",
    "segment",
    "true_places",
]
