"""Reports as statements: which findings a text states or denies, on which side, where and how large.

Rules alone, no network: the text tower's training mines its columns here, and ``ctflow.generate`` says what
was asked.
"""

from ctflow.reports.mirror import mirrored
from ctflow.reports.parser import difference, parse_report, parse_sentence
from ctflow.reports.sentences import sentences
from ctflow.reports.stated import StatedFinding, summarised
from ctflow.reports.terms import LABELS

__all__ = [
    "LABELS",
    "StatedFinding",
    "difference",
    "mirrored",
    "parse_report",
    "parse_sentence",
    "sentences",
    "summarised",
]
