"""Pairs of phantoms and of reports that differ in one finding and in nothing else.

A set of random patients hardly tells a network what one sentence of a report does: two volumes of it
differ in everything. Pairs do (``sample_pair``), and an evaluation of pairs tells whether it was learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ctflow.errors import CTFlowError
from data_prep.phantom.report import Report, report_for
from data_prep.phantom.sampling import sample_spec
from data_prep.phantom.sampling_findings import sample_finding
from data_prep.phantom.spec import Finding, PhantomSpec

MIRRORED = ("Pleural effusion", "Consolidation", "Lung nodule", "Atelectasis")
"""Labels whose side is worth a pair."""

PRESENT = (
    "Cardiomegaly",
    "Pericardial effusion",
    "Emphysema",
    "Consolidation",
    "Lung nodule",
    "Atelectasis",
    "Arterial wall calcification",
)

_WEIGHTS = {
    **{("mirrored", label): weight for label, weight in zip(MIRRORED, (0.24, 0.06, 0.06, 0.04), strict=True)},
    ("graded", "Pleural effusion"): 0.06,
    ("present", "Pleural effusion"): 0.2,
    **{("present", label): 0.34 / len(PRESENT) for label in PRESENT},
}
KINDS = tuple(_WEIGHTS)
"""(kind of difference, label) of the pairs that ``sample_pair`` draws."""
SHARES = np.array(list(_WEIGHTS.values()))
TOPIC_SHARE = 0.3
SMALL_ML = (150.0, 290.0)
LARGE_ML = (720.0, 1000.0)
"""Sizes that reports call small and large (``report.effusion_size``)."""


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


def graded_pair(spec: PhantomSpec, side: str) -> tuple[PhantomSpec, PhantomSpec]:
    """The same patient with a small and with a large pleural effusion on one side, and none on the other."""
    base = spec.without("Pleural effusion")
    finding = requested_finding(base, "Pleural effusion", side)
    rng = np.random.default_rng([spec.anatomy.seed, 7])
    small, large = (float(10 * np.round(rng.uniform(*ends) / 10)) for ends in (SMALL_ML, LARGE_ML))
    return tuple(base.plus(dataclasses.replace(finding, volume_ml=ml)) for ml in (small, large))  # type: ignore[return-value]


def sample_pair(
    seed: int, index: int, size: int = 128, slice_spacing: float | None = None, labels: Sequence[str] = ()
) -> tuple[PhantomSpec, PhantomSpec]:
    """Draw one patient twice, with one finding on the other side, absent, or of another size.

    Effusions make up half of all pairs and are present in about half of all volumes, unless ``labels`` are
    given. A share of the pairs has reports of one sentence (``PhantomSpec.topic``), as people type them.

    Args:
        seed: Data set seed.
        index: Number of the pair; the result depends on (seed, index) alone.
        size: Rows and columns of the scan.
        slice_spacing: Fixed spacing of the slices in mm; None draws 1 to 5 mm.
        labels: Labels that pairs differ in, each as often as the others.

    Returns:
        Both specifications; their order is random, so that neither tells what it shows.

    Raises:
        CTFlowError: Pairs never differ in one of the labels.
    """
    rng = np.random.default_rng([seed, index, 15])
    base = sample_spec(seed, index, size, slice_spacing)
    side = str(rng.choice(("left", "right")))
    kind, label = KINDS[int(rng.choice(len(KINDS), p=pair_shares(labels)))]
    match kind:
        case "mirrored":
            pair = mirrored_pair(base, label)
        case "graded":
            pair = graded_pair(base, side)
        case _:
            one_sided = label in MIRRORED
            pair = contrast_pair(base.without(label), label, side if one_sided else None)
    if rng.random() < TOPIC_SHARE:
        pair = (dataclasses.replace(pair[0], topic=label), dataclasses.replace(pair[1], topic=label))
    return pair if rng.random() < 0.5 else pair[::-1]


def pair_shares(labels: Sequence[str] = ()) -> np.ndarray:
    """Probability of each of ``KINDS``, float64; with ``labels`` these alone, each as often as the others.

    Raises:
        CTFlowError: Pairs never differ in one of the labels.
    """
    if not labels:
        return SHARES
    known = dict.fromkeys(label for _, label in KINDS)
    if unknown := [label for label in labels if label not in known]:
        raise CTFlowError(
            f"pairs never differ in {', '.join(unknown)}",
            f"labels out of {', '.join(known)}",
            "correct pair_labels",
        )
    shares = np.zeros(len(KINDS))
    for wanted in dict.fromkeys(labels):
        own = np.array([label == wanted for _, label in KINDS]) * SHARES
        shares += own / own.sum()
    return shares / shares.sum()


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
