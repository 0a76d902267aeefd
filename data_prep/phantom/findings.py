"""Findings drawn into the scan, each with its measured truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from data_prep.phantom import findings_lung as lung
from data_prep.phantom import findings_mediastinum as mediastinum
from data_prep.phantom import findings_pleura as pleura
from data_prep.phantom.findings_material import medical_material
from data_prep.phantom.scene import Scene
from data_prep.phantom.spec import Finding

Drawer = Callable[[Scene, Finding], dict[str, Any]]

DRAWERS: dict[str, Drawer] = {
    "Cardiomegaly": mediastinum.cardiomegaly,
    "Mosaic attenuation pattern": lung.mosaic,
    "Emphysema": lung.emphysema,
    "Interlobular septal thickening": lung.septal_thickening,
    "Lung opacity": lung.opacity,
    "Peribronchial thickening": lung.peribronchial_thickening,
    "Bronchiectasis": lung.bronchiectasis,
    "Pulmonary fibrotic sequela": lung.fibrotic_sequela,
    "Pleural effusion": pleura.effusion,
    "Consolidation": lung.consolidation,
    "Atelectasis": lung.atelectasis,
    "Lung nodule": lung.nodule,
    "Pericardial effusion": mediastinum.pericardial_effusion,
    "Hiatal hernia": mediastinum.hiatal_hernia,
    "Lymphadenopathy": mediastinum.lymphadenopathy,
    "Arterial wall calcification": mediastinum.arterial_calcification,
    "Coronary artery wall calcification": mediastinum.coronary_calcification,
    "Medical material": medical_material,
}
"""By label, in the order of drawing: what is large first, so that the small finds free places."""


def draw_findings(
    scene: Scene, findings: tuple[Finding, ...], reserved: tuple[Finding, ...] = ()
) -> list[dict[str, Any]]:
    """Draw all findings.

    Args:
        scene: The healthy patient.
        findings: What to draw.
        reserved: Findings that only keep their place free (see ``PhantomSpec.reserved``).

    Returns:
        Truth of each finding, in the order of ``findings``.
    """
    rank = list(DRAWERS).index
    truth: dict[int, dict[str, Any]] = {}
    pairs = [(finding, i) for i, finding in enumerate(findings)] + [(finding, -1) for finding in reserved]
    for finding, i in sorted(pairs, key=lambda pair: rank(pair[0].label)):
        scene.reserve_only = i < 0
        found = DRAWERS[finding.label](scene, finding) if i >= 0 or finding.label in RESERVABLE else {}
        if i >= 0:
            values = {key: value for key, value in asdict(finding).items() if key != "seed"}
            truth[i] = {**values, "count": 1, "center_voxel": None, **found}
    return [truth[i] for i in range(len(findings))]


RESERVABLE = ("Pleural effusion", "Consolidation", "Lung nodule")
"""Findings that hide what lies in the same place."""
