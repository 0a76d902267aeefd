"""Pairs of phantoms and of reports that differ in one finding and in nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_prep.phantom.report import Report, report_for
from data_prep.phantom.sampling import sample_spec
from data_prep.phantom.sampling_findings import sample_finding
from data_prep.phantom.spec import Finding, PhantomSpec


def contrast_pair(spec: PhantomSpec, label: str, side: str | None = None) -> tuple[PhantomSpec, PhantomSpec]:
    """The same patient, scan and noise with and without the findings of one label.

    Args:
        spec: A patient; gets a finding of the label where it has none (on that side).
        label: One of CT-RATE's labels.
        side: Only findings on this side count, and a new one is put on it.

    Returns:
        (with, without); all other findings keep their places in both.
    """
    if not any(f.label == label and side in (None, f.side) for f in spec.findings):
        spec = spec.plus(requested_finding(spec, label, side))
    return spec, spec.without(label, side)


def mirrored_pair(spec: PhantomSpec, label: str) -> tuple[PhantomSpec, PhantomSpec]:
    """The same patient with one finding of a label, once on the left and once on the right.

    Findings of the label that the patient has are taken out first.
    """
    base = spec.without(label)
    left = requested_finding(base, label, "left")
    lobe = {"left upper lobe": "right upper lobe", "left lower lobe": "right lower lobe"}.get(left.lobe or "")
    right = dataclasses.replace(left, side="right", lobe=lobe)
    return base.plus(left), base.plus(right)


def requested_finding(spec: PhantomSpec, label: str, side: str | None = None) -> Finding:
    """A finding of a label (on a side), drawn from the patient's own stream.

    Raises:
        ValueError: The label is unknown, or never occurs on that side alone.
    """
    rng = np.random.default_rng([spec.anatomy.seed, *label.encode()])
    for _ in range(200):
        for finding in sample_finding(rng, label, spec.anatomy):
            if side in (None, finding.side):
                return finding
    raise ValueError(f"{label} has no finding on the side {side!r} alone")


def report_pair(spec: PhantomSpec, label: str, side: str | None = None) -> tuple[Report, Report]:
    """Two reports that differ in one finding: ``contrast_pair`` in words."""
    present, absent = contrast_pair(spec, label, side)
    return report_for(present), report_for(absent)


def healthy_specs(seed: int, size: int = 128, slice_spacing: float | None = None) -> Iterator[PhantomSpec]:
    """Patients without findings, one after the other: a base for pairs."""
    index = 0
    while True:
        yield sample_spec(seed, index, size, slice_spacing).with_findings()
        index += 1
