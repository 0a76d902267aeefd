"""From millilitres and millimetres to findings under CT-RATE's label names."""

from __future__ import annotations

from dataclasses import dataclass

from ctflow.anatomy.types import SIDES, Measurement

SIDED = ("Pleural effusion", "Consolidation", "Lung nodule")
"""Labels that are found on a side."""

UNSIDED = (
    "Cardiomegaly",
    "Pericardial effusion",
    "Emphysema",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Medical material",
)
LABELS = (*SIDED, *UNSIDED)
"""All labels of CT-RATE that are read from a volume."""


@dataclass(frozen=True)
class Thresholds:
    """When a measured quantity counts as a finding; the defaults are those of docs/anatomy.md.

    Attributes:
        effusion_ml: Pleural fluid of one side.
        consolidation_ml: Dense lung of one side.
        nodule_mm: Diameter of a nodule.
        cardiothoracic_ratio: Heart width over inner thorax width.
        pericardial_ml: Water-density rim around the heart.
        emphysema_fraction: Share of the aerated lung far darker than the rest (see ``measure``).
        aortic_calcium_ml: Calcium in the aorta's wall.
        coronary_calcium_ml: Calcium inside the heart shadow.
        metal_ml: Material denser than bone.
    """

    effusion_ml: float = 100.0
    consolidation_ml: float = 8.0
    nodule_mm: float = 6.5
    cardiothoracic_ratio: float = 0.51
    pericardial_ml: float = 110.0
    emphysema_fraction: float = 0.008
    aortic_calcium_ml: float = 0.25
    coronary_calcium_ml: float = 0.15
    metal_ml: float = 0.1


@dataclass(frozen=True)
class Found:
    """One present finding.

    Attributes:
        side: ``left``, ``right``, or None where the finding has no side.
        size: In ``unit``.
        unit: ``ml``, ``mm`` or ``ratio``.
    """

    side: str | None
    size: float
    unit: str


DEFAULT_THRESHOLDS = Thresholds()


def findings(measurement: Measurement, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> dict[str, list[Found]]:
    """The findings present in a measurement.

    Args:
        measurement: What ``measure`` returned.
        thresholds: When a quantity counts as a finding.

    Returns:
        CT-RATE's label → what was found under it; labels without a finding are absent. Sided findings have
        one entry per side, nodules one entry each, largest first.
    """
    found: dict[str, list[Found]] = {
        "Pleural effusion": _by_side(measurement.effusion_ml, thresholds.effusion_ml),
        "Consolidation": _by_side(measurement.consolidation_ml, thresholds.consolidation_ml),
        "Lung nodule": [
            Found(nodule.side, nodule.diameter_mm, "mm")
            for nodule in measurement.nodules
            if nodule.diameter_mm >= thresholds.nodule_mm
        ],
    }
    heart = measurement.heart
    if heart.present and heart.cardiothoracic_ratio >= thresholds.cardiothoracic_ratio:
        found["Cardiomegaly"] = [Found(None, heart.cardiothoracic_ratio, "ratio")]
    for label, value, limit in (
        ("Pericardial effusion", heart.pericardial_fluid_ml, thresholds.pericardial_ml),
        ("Arterial wall calcification", measurement.calcification.aorta_ml, thresholds.aortic_calcium_ml),
        (
            "Coronary artery wall calcification",
            measurement.calcification.coronary_ml,
            thresholds.coronary_calcium_ml,
        ),
        ("Medical material", measurement.metal_ml, thresholds.metal_ml),
    ):
        if value >= limit:
            found[label] = [Found(None, value, "ml")]
    if measurement.lungs.emphysema_fraction >= thresholds.emphysema_fraction:
        found["Emphysema"] = [Found(None, measurement.lungs.emphysema_fraction, "ratio")]
    return {label: items for label, items in found.items() if items}


def _by_side(volume_ml: dict[str, float], limit: float) -> list[Found]:
    return [Found(side, volume_ml[side], "ml") for side in SIDES if volume_ml[side] >= limit]
