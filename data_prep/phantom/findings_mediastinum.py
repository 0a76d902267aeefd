"""Findings of the heart, the vessels and the mediastinum."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.phantom.canvas import Ellipsoid, draw_ellipsoid
from data_prep.phantom.scene import Scene
from data_prep.phantom.spec import Finding

CALCIUM_HU = 850.0


def cardiomegaly(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Drawn with the anatomy; the truth is the width of the heart."""
    heart = scene.mediastinum.heart[0]
    return {
        "size_mm": round(scene.mediastinum.heart_width, 1),
        "center_voxel": scene.canvas.index_of(heart.center),
    }


def pericardial_effusion(scene: Scene, finding: Finding) -> dict[str, Any]:
    """A shell of fluid round the heart, of the stated thickness."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.size_mm
    heart = scene.mediastinum.heart
    low = np.min([np.asarray(p.center) - p.extent for p in heart], 0) - finding.size_mm - 6
    high = np.max([np.asarray(p.center) + p.extent for p in heart], 0) + finding.size_mm + 6
    high[2] = min(high[2], heart[0].center[2] + 50)
    box = canvas.box(low, high)
    inner = np.minimum.reduce([p.distance(canvas, box) for p in heart])
    outer = np.minimum.reduce([p.grown(finding.size_mm).distance(canvas, box) for p in heart])
    room = canvas.soft(thorax.cage[box] + 4.0)
    _, y, z = canvas.axes(box)
    room = room * canvas.soft((thorax.diaphragm[box[1], box[2]][None] - z - 12.0) * 0.85)
    room = room * canvas.soft(y - (thorax.spine_y[box[0]] - 24.0))
    blood = canvas.hu[box] > 20.0  # great vessels at the base stay
    shell = (
        canvas.soft(outer) * room * np.where(blood & (inner > 0) & (z > heart[0].center[2] + 12), 0.0, 1.0)
    )
    shell = shell * (1.0 - canvas.soft(inner))
    canvas.paint(box, shell, 4.0)
    # The heart's own fat parts it from the fluid.
    canvas.paint(box, np.clip(1.0 - np.abs(inner - 1.0) / 2.4, 0.0, 1.0) * (shell > 0.3), -70.0)
    scene.cover_lung(box, shell)
    scene.keep_mask(finding, box, shell)
    return {
        "volume_ml": round(float(shell.sum()) * canvas.voxel_ml, 1),
        "center_voxel": canvas.index_of(heart[0].center),
    }


def _speckles(scene: Scene, finding: Finding, points: np.ndarray, radii: np.ndarray) -> None:
    for point, radius in zip(points, radii, strict=True):
        grain = max(float(radius), 0.55 * scene.canvas.pixel)
        shape = Ellipsoid(tuple(point), (grain, grain, max(grain, 0.5 * scene.canvas.step)))
        draw_ellipsoid(scene.canvas, shape, CALCIUM_HU)
        if scene.wants_masks:
            box = scene.canvas.around(point, shape.extent + scene.canvas.pixel)
            scene.keep_mask(finding, box, scene.canvas.soft(shape.distance(scene.canvas, box)))


_GRADES = {"mild": 0.5, "moderate": 1.0, "severe": 1.8}


def arterial_calcification(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Plaques in the wall of arch and descending aorta."""
    rng = np.random.default_rng(finding.seed)
    m = scene.mediastinum
    count = int(10 * _GRADES[finding.kind])
    inside = np.nonzero((m.aorta[:, 2] > scene.thorax.anatomy.dome_z - 40) & (np.arange(len(m.aorta)) > 11))[
        0
    ]
    chosen = rng.choice(inside, count)
    tangent = np.gradient(m.aorta, axis=0)[chosen]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.cross(tangent, rng.normal(0.0, 1.0, (count, 3)))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    along = tangent * rng.uniform(-6, 6, (count, 1))
    points = m.aorta[chosen] + along + normal * (m.aorta_radii[chosen, None] - 1.0)
    _speckles(scene, finding, points, rng.uniform(1.8, 3.2, count) * (0.8 + 0.25 * _GRADES[finding.kind]))
    return {"center_voxel": scene.canvas.index_of(points[0])}


def coronary_calcification(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Plaques along the anterior descending and the right coronary artery."""
    rng = np.random.default_rng(finding.seed)
    ventricle = scene.mediastinum.heart[0]
    axes = ventricle.axes
    assert axes is not None
    count = max(int(6 * _GRADES[finding.kind]), 3)
    turn = rng.uniform(-0.65, 0.45, count)  # −1 at the base … 1 at the apex of the heart
    swing = np.where(rng.random(count) < 0.75, 0.55, -0.5) + rng.normal(0.0, 0.06, count)
    ring = np.sqrt(1 - turn**2)
    local = np.stack([turn, ring * np.cos(swing), ring * np.sin(swing)], 1) * np.asarray(ventricle.radii)
    points = np.asarray(ventricle.center) + local @ axes
    _speckles(scene, finding, points, rng.uniform(1.5, 2.6, count))
    return {"center_voxel": scene.canvas.index_of(points[0])}


def hiatal_hernia(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Stomach behind the heart, with gas in front of fluid."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.size_mm
    radius = finding.size_mm / 2
    z = thorax.anatomy.dome_z + 0.45 * radius
    spine_y = thorax.spine_at(z)[1]
    center = (-6.0, spine_y - 20.0 - 0.85 * radius, z)
    shape = Ellipsoid(center, (1.1 * radius, 0.85 * radius, radius))
    box = canvas.around(center, shape.extent + canvas.pixel)
    alpha = canvas.soft(shape.distance(canvas, box))
    canvas.paint(box, alpha, 35.0)
    scene.cover_lung(box, alpha)
    gas = np.maximum(
        shape.grown(-0.22 * radius).distance(canvas, box), canvas.y[:, box[1]] - (center[1] - 0.05 * radius)
    )
    canvas.paint(box, canvas.soft(gas), -930.0)
    scene.keep_mask(finding, box, alpha)
    return {
        "center_voxel": canvas.index_of(center),
        "volume_ml": round(float(alpha.sum()) * canvas.voxel_ml, 1),
    }


def lymphadenopathy(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Enlarged nodes beside the trachea, before the arch and under the carina."""
    canvas = scene.canvas
    assert finding.size_mm
    rng = np.random.default_rng(finding.seed)
    y = scene.mediastinum.trachea[-1][1]
    stations = {
        "paratracheal": ((21.0, y - 12.0, 30.0), (19.0, y - 10.0, 12.0)),
        "subcarinal": ((4.0, y + 4.0, -26.0), (-3.0, y + 2.0, -40.0)),
        "prevascular": ((-14.0, y - 48.0, 20.0), (-22.0, y - 38.0, 6.0)),
    }
    kinds = list(stations) if finding.kind == "multiple" else [finding.kind]
    centers: list[np.ndarray] = []
    sizes: list[float] = []
    for kind in kinds:
        for place in stations[kind]:
            centers.append(np.asarray(place) + rng.normal(0.0, 2.0, 3))
            sizes.append(finding.size_mm * (1.0 if not sizes else rng.uniform(0.6, 0.95)))
    total = 0.0
    for center, size in zip(centers, sizes, strict=True):
        # The short axis lies in the axial plane, where it is measured.
        shape = Ellipsoid(tuple(center), (0.5 * size, 0.62 * size, 0.7 * size))
        box = canvas.around(center, shape.extent + canvas.pixel)
        alpha = (
            canvas.soft(shape.distance(canvas, box))
            * (canvas.hu[box] > -980)
            * canvas.soft(scene.thorax.cage[box] + 3)
        )
        canvas.paint(box, alpha, 44.0)
        scene.cover_lung(box, alpha)
        scene.keep_mask(finding, box, alpha)
        total += float(alpha.sum()) * canvas.voxel_ml
    return {"center_voxel": canvas.index_of(centers[0]), "count": len(centers), "volume_ml": round(total, 1)}
