"""Procedural chest CT phantoms with reports and exact truth, in CT-RATE's layout."""

from data_prep.phantom.contrast import (
    contrast_pair,
    mirrored_pair,
    report_pair,
    requested_finding,
)
from data_prep.phantom.render import Phantom, make_phantom
from data_prep.phantom.report import Report, report_for
from data_prep.phantom.sampling import sample_spec
from data_prep.phantom.spec import LABELS, LOBES, Acquisition, Anatomy, Finding, PhantomSpec

__all__ = [
    "LABELS",
    "LOBES",
    "Acquisition",
    "Anatomy",
    "Finding",
    "Phantom",
    "PhantomSpec",
    "Report",
    "contrast_pair",
    "make_phantom",
    "mirrored_pair",
    "report_for",
    "report_pair",
    "requested_finding",
    "sample_spec",
]
