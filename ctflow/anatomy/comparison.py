"""A volume's anatomy and findings against a phantom's exact truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctflow.anatomy.findings import DEFAULT_THRESHOLDS, LABELS, SIDED, Found, Thresholds, findings
from ctflow.anatomy.types import SIDES, Measurement

ANYWHERE = "none"
"""Where a finding without a side is."""

NODULE = "Lung nodule"
MATCH_MM = 12.0
"""A found nodule belongs to a true one when their centres are at most this far, or the true radius, apart."""


@dataclass(frozen=True)
class LabelCheck:
    """One label in one volume.

    Attributes:
        true: Place (a side, or ``none`` for a label without sides) to true size, where the phantom has the
            finding: millilitres, of nodules the largest diameter in mm; NaN where the truth states none.
        found: Place to measured size, where it was found.
        places: All places at which the label can be.
    """

    true: dict[str, float]
    found: dict[str, float]
    places: tuple[str, ...]

    @property
    def size_errors(self) -> list[float]:
        """Measured over true size less 1, per side that has the finding in truth and in the volume."""
        sides = [place for place in self.places if place != ANYWHERE and place in self.true]
        pairs = [(self.true[side], self.found[side]) for side in sides if side in self.found]
        return [found / true - 1 for true, found in pairs if math.isfinite(true) and true > 0]


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
    """Agreement and errors of one volume.

    Attributes:
        lung_error_ml: Per side, measured minus true aerated volume.
        lung_true_ml: Per side, the true volume.
        two_lungs: Both lungs were found.
        spine_error_mm: In-plane distance to the true centre; None where no spine was found.
        heart_error_mm: Measured minus true width; None where no heart was found.
        trachea_error_mm: Distance of the lower end of the path to the true one; None where none was found.
        labels: The check of every label.
        nodules: The true nodules and what was found of them.
        extra_nodules_mm: Diameters of found nodules that belong to no true one.
    """

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
    """Compare a measurement with the truth of a phantom.

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
        labels=check_labels(findings(measurement, thresholds), truth),
        nodules=matches,
        extra_nodules_mm=extra,
    )


def check_labels(found: Mapping[str, Sequence[Found]], truth: Mapping[str, Any]) -> dict[str, LabelCheck]:
    """Every label: where the phantom has it, and where it was found.

    Args:
        found: What ``findings`` returned.
        truth: The parsed ``<stem>.truth.json``.
    """
    return {
        label: LabelCheck(
            true_places(label, truth), found_places(label, found), SIDES if label in SIDED else (ANYWHERE,)
        )
        for label in LABELS
    }


def true_places(label: str, truth: Mapping[str, Any]) -> dict[str, float]:
    """Where a phantom has a finding, with its size (see ``LabelCheck``)."""
    places: dict[str, float] = {}
    for item in truth["findings"]:
        if item["label"] != label:
            continue
        side = item.get("side")
        size = item.get("size_mm" if label == NODULE else "volume_ml")
        # A volume stated for both sides together says nothing about either.
        value = math.nan if size is None or side == "both" else float(size)
        for place in (ANYWHERE,) if label not in SIDED else SIDES if side == "both" else (str(side),):
            both = [v for v in (places.get(place), value) if v is not None]
            places[place] = max(both) if label == NODULE else sum(both)
    return places


def found_places(label: str, found: Mapping[str, Sequence[Found]]) -> dict[str, float]:
    """Where a finding was found, with its size; of several on a side, the largest."""
    places: dict[str, float] = {}
    for item in found.get(label, ()):
        place = str(item.side) if label in SIDED else ANYWHERE
        places[place] = max(item.size, places.get(place, 0.0))
    return places


def _aerated_truth(truth: Mapping[str, Any]) -> dict[str, float]:
    """The truth's lung volume is the whole pleural space: take fluid and consolidation off."""
    volumes = {side: float(truth["anatomy"]["lung_volume_ml"][side]) for side in SIDES}
    for item in truth["findings"]:
        if item["label"] in SIDED and item["label"] != NODULE and item.get("side") in SIDES:
            volumes[item["side"]] -= float(item.get("volume_ml") or 0.0)
    return volumes


def _match_nodules(
    measurement: Measurement, truth: Mapping[str, Any], thresholds: Thresholds
) -> tuple[tuple[NoduleMatch, ...], tuple[float, ...]]:
    """Greedy matching, largest true nodule first, nearest found one within reach."""
    spacing = np.asarray(measurement.spacing)
    left = [nodule for nodule in measurement.nodules if nodule.diameter_mm >= thresholds.nodule_mm]
    true = [
        item
        for item in truth["findings"]
        if item["label"] == NODULE and item.get("center_voxel") and item.get("size_mm")
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
