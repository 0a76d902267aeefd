"""A measurement against a phantom's exact truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctflow.evaluation.anatomy.findings import DEFAULT_THRESHOLDS, Thresholds, findings
from ctflow.evaluation.anatomy.types import SIDES, Measurement

SIDED = ("Pleural effusion", "Consolidation")
UNSIDED = (
    "Cardiomegaly",
    "Pericardial effusion",
    "Emphysema",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Medical material",
)
MEASURED_LABELS = (*SIDED, "Lung nodule", *UNSIDED)
"""The labels of CT-RATE that this module reads."""

MATCH_MM = 12.0
"""A found nodule belongs to a true one when their centres are at most this far, or the true radius, apart."""


@dataclass(frozen=True)
class LabelCheck:
    """One label in one volume.

    Attributes:
        true_sides: Sides on which the phantom has it (``none`` for findings without a side); empty: absent.
        found_sides: Sides on which it was found.
        sizes: Per true and found side, (true size, measured size), where the truth states one.
    """

    true_sides: frozenset[str]
    found_sides: frozenset[str]
    sizes: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class NoduleMatch:
    """One true nodule.

    Attributes:
        diameter_mm: True diameter.
        found_mm: Measured diameter of the nodule found there; None where none was.
        distance_mm: Between the centres; None where none was found.
        same_side: Whether the found one was given the true side.
    """

    diameter_mm: float
    found_mm: float | None = None
    distance_mm: float | None = None
    same_side: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """What was right and wrong in one volume.

    Attributes:
        case_id: The phantom's.
        complete: The scan covers both lungs wholly.
        lung_error_ml: Per side, measured minus true aerated volume.
        lung_true_ml: Per side, the true volume.
        two_lungs: Both lungs were found.
        spine_error_mm: In-plane distance to the true centre; None where no spine was found.
        heart_error_mm: Measured minus true width; None where no heart was found.
        trachea_error_mm: Distance of the lower end of the path to the true one; None where none was found.
        labels: Per measured label without nodules, the check.
        nodules: The true nodules and what was found of them.
        extra_nodules_mm: Diameters of found nodules that belong to no true one.
    """

    case_id: str
    complete: bool
    lung_error_ml: dict[str, float]
    lung_true_ml: dict[str, float]
    two_lungs: bool
    spine_error_mm: float | None
    heart_error_mm: float | None
    trachea_error_mm: float | None
    labels: dict[str, LabelCheck]
    nodules: tuple[NoduleMatch, ...] = ()
    extra_nodules_mm: tuple[float, ...] = ()


def compare_with_truth(
    measurement: Measurement, truth: Mapping[str, Any], thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Comparison:
    """Hold a measurement against the truth that lies beside a phantom.

    Args:
        measurement: What ``measure`` read from the phantom.
        truth: The parsed ``<stem>.truth.json``.
        thresholds: When a measured quantity counts as a finding.

    Returns:
        Errors of the anatomy, and per label what was true and what was found.
    """
    anatomy = truth["anatomy"]
    matches, extra = _match_nodules(measurement, truth, thresholds)
    true_lungs = _aerated_truth(truth)
    heart_width = anatomy.get("heart_width_mm")
    return Comparison(
        case_id=str(truth["case_id"]),
        complete=bool(truth["coverage"]["lungs_complete"]),
        lung_error_ml={side: measurement.lungs.volume_ml[side] - true_lungs[side] for side in SIDES},
        lung_true_ml=true_lungs,
        two_lungs=all(measurement.lungs.present.values()),
        spine_error_mm=_spine_error(measurement, anatomy.get("spine_center_voxel")),
        heart_error_mm=(
            measurement.heart.width_mm - float(heart_width)
            if heart_width and measurement.heart.present
            else None
        ),
        trachea_error_mm=_trachea_error(measurement, anatomy.get("trachea")),
        labels=_check_labels(measurement, truth, thresholds),
        nodules=matches,
        extra_nodules_mm=extra,
    )


def _aerated_truth(truth: Mapping[str, Any]) -> dict[str, float]:
    """The truth's lung volume is the whole pleural space: take fluid and consolidation off."""
    volumes = {side: float(truth["anatomy"]["lung_volume_ml"][side]) for side in SIDES}
    for item in truth["findings"]:
        if item["label"] in SIDED and item.get("side") in SIDES:
            volumes[item["side"]] -= float(item.get("volume_ml") or 0.0)
    return volumes


def _check_labels(
    measurement: Measurement, truth: Mapping[str, Any], thresholds: Thresholds
) -> dict[str, LabelCheck]:
    found = findings(measurement, thresholds)
    checks = {}
    for label in (*SIDED, *UNSIDED):
        true = [item for item in truth["findings"] if item["label"] == label]
        true_sides = _sides(true, label)
        measured = {item.side or "none": item.size for item in found.get(label, [])}
        sizes = []
        for side in true_sides & measured.keys():
            volumes = [item.get("volume_ml") for item in true if side in ("none", item.get("side"))]
            if label in SIDED and volumes and all(volume is not None for volume in volumes):
                sizes.append((float(sum(volumes)), measured[side]))
        checks[label] = LabelCheck(frozenset(true_sides), frozenset(measured), tuple(sizes))
    return checks


def _sides(items: list[Mapping[str, Any]], label: str) -> set[str]:
    if label not in SIDED:
        return {"none"} if items else set()
    sides: set[str] = set()
    for item in items:
        sides |= set(SIDES) if item["side"] == "both" else {item["side"]}
    return sides


def _match_nodules(
    measurement: Measurement, truth: Mapping[str, Any], thresholds: Thresholds
) -> tuple[tuple[NoduleMatch, ...], tuple[float, ...]]:
    """Greedy matching, largest true nodule first, nearest found one within reach."""
    spacing = np.asarray(measurement.spacing)
    left = [nodule for nodule in measurement.nodules if nodule.diameter_mm >= thresholds.nodule_mm]
    true = [
        item
        for item in truth["findings"]
        if item["label"] == "Lung nodule" and item.get("center_voxel") and item.get("size_mm")
    ]
    matches = []
    for item in sorted(true, key=lambda item: -item["size_mm"]):
        center = np.asarray(item["center_voxel"]) * spacing
        reach = max(MATCH_MM, 0.6 * item["size_mm"])
        near = [(float(np.linalg.norm(center - nodule.center_mm)), nodule) for nodule in left]
        distance, nodule = min(near, key=lambda pair: pair[0], default=(np.inf, None))
        if nodule is None or distance > reach:
            matches.append(NoduleMatch(float(item["size_mm"])))
            continue
        left.remove(nodule)
        same_side = item["side"] in (None, nodule.side)
        matches.append(NoduleMatch(float(item["size_mm"]), nodule.diameter_mm, distance, same_side))
    return tuple(matches), tuple(nodule.diameter_mm for nodule in left)


def _spine_error(measurement: Measurement, center: list[float] | None) -> float | None:
    if center is None or not measurement.spine.present:
        return None
    line = np.asarray(measurement.spine.center)
    middle = np.argmin(np.abs(line[:, 0] - measurement.shape[0] // 2))  # where the truth is stated
    _, row, column = line[middle]
    _, sy, sx = measurement.spacing
    return float(np.hypot((row - center[-2]) * sy, (column - center[-1]) * sx))


def _trachea_error(measurement: Measurement, trachea: Mapping[str, Any] | None) -> float | None:
    if not trachea or not trachea.get("bottom_voxel") or not measurement.trachea.present:
        return None
    difference = np.subtract(measurement.trachea.path[-1], trachea["bottom_voxel"])
    return float(np.linalg.norm(difference * np.asarray(measurement.spacing)))
