"""Findings drawn into the scan, each with its measured truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_prep.phantom.canvas import Array, Canvas, Ellipsoid, draw_path
from data_prep.phantom.lungs import lung_points
from data_prep.phantom.mediastinum import Mediastinum
from data_prep.phantom.spec import Finding
from data_prep.phantom.thorax import Thorax


@dataclass
class Scene:
    """What the findings are drawn into.

    Attributes:
        canvas: The image.
        thorax: Lungs and cage.
        mediastinum: Heart and vessels.
        masks: Mask by finding, filled when wanted.
        wants_masks: Whether to fill them.
    """

    canvas: Canvas
    thorax: Thorax
    mediastinum: Mediastinum
    wants_masks: bool = False
    masks: dict[str, Array] = field(default_factory=dict)

    def keep_mask(self, finding: Finding, box: Any, alpha: Array) -> None:
        """Add a finding's share of its voxels to the masks."""
        if self.wants_masks:
            name = finding.label.lower().replace(" ", "_")
            whole = self.masks.setdefault(name, np.zeros(self.canvas.hu.shape, np.float32))
            np.maximum(whole[box], alpha, out=whole[box])


Drawer = Callable[[Scene, Finding], dict[str, Any]]


def draw_findings(scene: Scene, findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
    """Draw all findings and give their truth, in the order of the specification."""
    truth: dict[int, dict[str, Any]] = {}
    order = sorted(range(len(findings)), key=lambda i: list(DRAWERS).index(findings[i].label))
    for i in order:
        values = {k: v for k, v in asdict(findings[i]).items() if k != "seed"}
        truth[i] = {
            **values,
            "count": 1,
            "center_voxel": None,
            **DRAWERS[findings[i].label](scene, findings[i]),
        }
    return [truth[i] for i in range(len(findings))]


def _effusion(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Fluid layers behind (supine), thicker at the base, and climbs along the wall."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side and finding.volume_ml
    lung = thorax.lung_alpha * thorax.side_mask(canvas, finding.side)
    where = np.nonzero(lung > 0)
    share = lung[where]
    depth = np.clip(thorax.lung[where], -60.0, 0.0)
    score = (
        canvas.y[0, where[1], 0]
        + 26.0 * np.exp(depth / 9.0)
        - 0.16 * (canvas.z[where[0], 0, 0] - thorax.base_z)
    )
    order = np.argsort(-score)
    total = np.cumsum(share[order]) * canvas.voxel_ml
    goal = min(finding.volume_ml, 0.6 * float(total[-1]))
    threshold = score[order[min(int(np.searchsorted(total, goal)), len(order) - 1)]]
    collapse = 5.0 + 8.0 * min(finding.volume_ml / 1000.0, 1.0)
    fluid = np.clip(0.5 + (score - threshold) / canvas.pixel, 0.0, 1.0) * share
    squeezed = np.clip(0.5 + (score - threshold + collapse) / 4.0, 0.0, 1.0) * share - fluid
    view = canvas.hu[where]
    view += 0.75 * squeezed * (30.0 - view)
    view += fluid / np.maximum(share, 1e-3) * share * (np.float32(10.0) - view)
    canvas.hu[where] = view
    if scene.wants_masks:
        whole = np.zeros(canvas.hu.shape, np.float32)
        whole[where] = fluid
        scene.keep_mask(finding, (slice(None),) * 3, whole)
    weight = fluid / max(float(fluid.sum()), 1e-6)
    center = [round(float((weight * axis).sum()), 1) for axis in where]
    return {"volume_ml": round(float(fluid.sum()) * canvas.voxel_ml, 1), "center_voxel": center}


def _nodule(scene: Scene, finding: Finding) -> dict[str, Any]:
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side and finding.size_mm
    rng = np.random.default_rng(finding.seed)
    center = _place(scene, rng, finding, 0.5 * finding.size_mm + 4.0)
    stretch = np.exp(rng.normal(0.0, 0.05, 3))
    stretch /= np.cbrt(stretch.prod())
    radius = finding.size_mm / 2
    shape = Ellipsoid(tuple(center), tuple(radius * stretch))
    box = canvas.around(center, radius * 1.3 + canvas.pixel)
    alpha = canvas.soft(shape.distance(canvas, box), max(canvas.pixel, 1.0))
    canvas.paint(box, alpha, 320.0 if finding.kind == "calcified" else 40.0)
    scene.keep_mask(finding, box, alpha)
    return {
        "center_voxel": canvas.index_of(center),
        "volume_ml": round(float(alpha.sum()) * canvas.voxel_ml, 2),
    }


def _place(scene: Scene, rng: np.random.Generator, finding: Finding, depth: float) -> np.ndarray:
    """A point of the finding's lobe, as deep as can be had up to ``depth`` mm."""
    assert finding.side
    for wanted in (depth, 0.7 * depth, 0.4 * depth, 2.0, 0.0):
        points = lung_points(scene.canvas, scene.thorax, rng, finding.side, 12, wanted, finding.lobe)
        if len(points):
            return points[0].astype(float)
    points = lung_points(scene.canvas, scene.thorax, rng, finding.side, 12, 0.0)
    return points[0].astype(float)


def _consolidation(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Airless lung inside one lobe with air-filled bronchi."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side and finding.size_mm and finding.lobe
    rng = np.random.default_rng(finding.seed)
    center = _place(scene, rng, finding, 0.25 * finding.size_mm)
    radius = finding.size_mm / 2
    box = canvas.around(center, radius * 1.5)
    x, y, z = canvas.axes(box)
    phases = rng.uniform(0, 2 * np.pi, 3)
    wobble = sum(
        np.sin((c - o) / np.float32(0.3 * radius) + p)
        for c, o, p in zip((x, y, z), center, phases, strict=True)
    )
    shape = Ellipsoid(tuple(center), tuple(radius * np.array([1.05, 1.0, 0.95])))
    distance = shape.distance(canvas, box) + 0.09 * radius * wobble
    distance = np.maximum(distance, -thorax.in_lobe(x, y, z, finding.lobe))
    alpha = (
        canvas.soft(distance, 5.0)
        * thorax.lung_alpha[box]
        * thorax.side_mask(canvas, finding.side)[box[0], :, box[2]]
    )
    canvas.paint(box, alpha, 38.0)
    mask = np.zeros(canvas.hu.shape, np.float32)
    mask[box] = (alpha > 0.6).astype(np.float32)
    hilum = scene.mediastinum.hila[finding.side]
    inward = (hilum - center) / max(float(np.linalg.norm(hilum - center)), 1.0)
    for _ in range(int(3 + radius / 12)):
        end = center + rng.normal(0.0, 0.4, 3) * radius - inward * 0.5 * radius
        start = center + inward * 0.9 * radius
        draw_path(canvas, [start, end], [2.6, 1.6], -900.0, mask)
    scene.keep_mask(finding, box, alpha)
    volume = float(alpha.sum()) * canvas.voxel_ml
    where = np.nonzero(alpha > 0.5)
    middle = [
        round(float(w.mean() + b.start), 1) if len(w) else None for w, b in zip(where, box, strict=True)
    ]
    return {"volume_ml": round(volume, 1), "center_voxel": middle if None not in middle else None}


def _nothing(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Part of the anatomy (drawn with it)."""
    return {}


DRAWERS: dict[str, Drawer] = {
    "Cardiomegaly": _nothing,
    "Consolidation": _consolidation,
    "Lung nodule": _nodule,
    "Pleural effusion": _effusion,
}
"""By label, in the order of drawing."""
