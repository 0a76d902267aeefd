"""Findings of the lungs and airways."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.phantom.canvas import Array, Box, Ellipsoid, draw_path
from data_prep.phantom.lungs import bronchial_paths, lung_points
from data_prep.phantom.scene import WHOLE, Scene, mean_index
from data_prep.phantom.spec import Finding

SOLID_HU = 40.0
CALCIFIED_HU = 420.0
GROUND_GLASS_HU = -430.0


def nodule(scene: Scene, finding: Finding) -> dict[str, Any]:
    """A round, sharply bounded ball, solid or calcified, of the stated diameter."""
    canvas = scene.canvas
    assert finding.side and finding.size_mm
    rng = np.random.default_rng(finding.seed)
    center = scene.place(rng, finding, 0.5 * finding.size_mm + 4.0)
    stretch = np.exp(rng.normal(0.0, 0.05, 3))
    radii = 0.5 * finding.size_mm * stretch / np.cbrt(stretch.prod())
    shape = Ellipsoid(tuple(center), tuple(radii))
    box = canvas.around(center, 0.65 * finding.size_mm + canvas.pixel)
    alpha = canvas.soft(shape.distance(canvas, box))
    scene.occupy(box, alpha)
    if not scene.reserve_only:
        canvas.paint(box, alpha, CALCIFIED_HU if finding.kind == "calcified" else SOLID_HU)
        scene.keep_mask(finding, box, alpha)
    return {
        "center_voxel": canvas.index_of(center),
        "volume_ml": round(float(alpha.sum()) * canvas.voxel_ml, 2),
    }


def _blob(
    scene: Scene, finding: Finding, center: np.ndarray, edge: float, lobes: float = 0.07
) -> tuple[Box, Array]:
    """A lobulated blob of the finding's diameter, kept inside its lobe and its lung."""
    canvas = scene.canvas
    assert finding.size_mm and finding.side
    rng = np.random.default_rng([finding.seed, 1])
    radius = finding.size_mm / 2
    box = canvas.around(center, radius * 1.4 + edge)
    x, y, z = canvas.axes(box)
    wobble: Array | float = 0.0
    for wave in rng.normal(0.0, 1.0, (4, 3)):
        k = (wave / (np.linalg.norm(wave) * rng.uniform(0.28, 0.42) * radius)).astype(np.float32)
        offset = [axis - np.float32(o) for axis, o in zip((x, y, z), center, strict=True)]
        phase = np.float32(rng.uniform(0, 2 * np.pi))
        wobble = wobble + np.sin(k[0] * offset[0] + k[1] * offset[1] + k[2] * offset[2] + phase)
    shape = Ellipsoid(tuple(center), tuple(radius * np.array([1.04, 1.0, 0.96])))
    distance = shape.distance(canvas, box) + np.float32(lobes * radius) * wobble
    if finding.lobe:
        distance = np.maximum(distance, -scene.thorax.in_lobe(x, y, z, finding.lobe))
    alpha = canvas.soft(distance, edge) * scene.lung_share(box, finding.side) * scene.free(box)
    return box, alpha


def consolidation(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Airless lung inside one lobe, with air-filled bronchi running through it."""
    canvas = scene.canvas
    assert finding.side and finding.size_mm
    rng = np.random.default_rng(finding.seed)
    radius = finding.size_mm / 2
    center = scene.place(rng, finding, 0.55 * radius)
    box, alpha = _blob(scene, finding, center, edge=5.0)
    scene.occupy(box, alpha)
    if scene.reserve_only:
        return {}
    scene.fill_lung(box, alpha, 38.0)
    within = np.zeros(canvas.hu.shape, np.float32)
    within[box] = (alpha > 0.8).astype(np.float32)
    inward = scene.mediastinum.hila[finding.side] - center
    inward = inward / max(float(np.linalg.norm(inward)), 1.0)
    for _ in range(int(2 + radius / 16)):
        start = center + inward * 0.9 * radius + rng.normal(0.0, 0.22, 3) * radius
        end = center - inward * 0.5 * radius + rng.normal(0.0, 0.4, 3) * radius
        draw_path(canvas, [start, end], [1.9, 1.2], -880.0, within)
    scene.keep_mask(finding, box, alpha)
    volume = round(float(alpha.sum()) * canvas.voxel_ml, 1)
    return {"volume_ml": volume, "center_voxel": mean_index(alpha, box)}


def opacity(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Ground glass: denser lung through which the vessels stay visible."""
    canvas = scene.canvas
    assert finding.size_mm
    center = scene.place(np.random.default_rng(finding.seed), finding, 0.5 * finding.size_mm)
    box, alpha = _blob(scene, finding, center, edge=12.0, lobes=0.15)
    view = canvas.hu[box]
    view += alpha * np.maximum(np.float32(GROUND_GLASS_HU) - view, 0.0)
    scene.keep_mask(finding, box, alpha)
    volume = round(float(alpha.sum()) * canvas.voxel_ml, 1)
    return {"volume_ml": volume, "center_voxel": mean_index(alpha, box)}


def emphysema(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Black holes, most of them above; ``bullous`` adds large ones with thin walls at the apex."""
    canvas, a = scene.canvas, scene.thorax.anatomy
    rng = np.random.default_rng(finding.seed)
    for side in ("right", "left"):
        points = lung_points(canvas, scene.thorax, rng, side, 90, 5.0)
        height = (points[:, 2] - a.dome_z) / (a.apex_z - a.dome_z)
        for point in points[rng.random(len(points)) < 0.15 + 0.75 * np.clip(height, 0, 1)]:
            _hole(scene, finding, point.astype(float), float(rng.uniform(4.5, 8.5)), wall=0.0)
        if finding.kind == "bullous":
            for _ in range(3):
                points = lung_points(canvas, scene.thorax, rng, side, 60, 6.0)
                top = points[np.argsort(-points[:, 2])[: max(len(points) // 5, 1)]]
                if len(top):
                    _hole(
                        scene,
                        finding,
                        top[rng.integers(len(top))].astype(float),
                        0.5 * (finding.size_mm or 25),
                        1.5,
                    )
    return {}


def _hole(scene: Scene, finding: Finding, center: np.ndarray, radius: float, wall: float) -> None:
    canvas = scene.canvas
    shape = Ellipsoid(tuple(center), (radius, radius, radius))
    box = canvas.around(center, radius + wall + canvas.pixel)
    distance = shape.distance(canvas, box)
    inside = scene.thorax.lung_alpha[box]
    if wall:
        canvas.paint(box, canvas.soft(distance - wall) * inside, -250.0)
    alpha = canvas.soft(distance) * inside
    canvas.paint(box, alpha, -990.0)
    scene.keep_mask(finding, box, alpha)


def atelectasis(scene: Scene, finding: Finding) -> dict[str, Any]:
    """A plate of collapsed lung, a few mm thick, over the diaphragm or in the middle zone."""
    canvas = scene.canvas
    assert finding.side and finding.size_mm
    rng = np.random.default_rng(finding.seed)
    points = lung_points(canvas, scene.thorax, rng, finding.side, 60, 8.0, finding.lobe)
    if len(points) == 0:
        points = scene.place(rng, finding, 8.0)[None]
    low = points[np.argsort(points[:, 2])[: max(len(points) // 3, 1)]]
    center = low[rng.integers(len(low))].astype(float)
    tilt = rng.uniform(-0.35, 0.35, 2)
    normal = np.array([np.sin(tilt[0]), np.sin(tilt[1]), 1.0])
    normal /= np.linalg.norm(normal)
    turn = rng.uniform(0, np.pi)
    along = np.cross(normal, [np.sin(turn), -np.cos(turn), 0.0])
    along /= np.linalg.norm(along)
    axes = np.stack([along, np.cross(normal, along), normal])
    thick = max(3.2, 0.75 * canvas.step)
    shape = Ellipsoid(tuple(center), (finding.size_mm / 2, 0.3 * finding.size_mm, thick), axes)
    box = canvas.around(center, shape.extent + canvas.pixel)
    distance = shape.distance(canvas, box) * np.float32(thick / np.cbrt(np.prod(shape.radii)))
    alpha = canvas.soft(distance, 3.0) * scene.lung_share(box, finding.side) * scene.free(box)
    scene.fill_lung(box, alpha, 25.0)
    scene.keep_mask(finding, box, alpha)
    return {
        "center_voxel": mean_index(alpha, box),
        "volume_ml": round(float(alpha.sum()) * canvas.voxel_ml, 1),
    }


def fibrotic_sequela(scene: Scene, finding: Finding) -> dict[str, Any]:
    """An apical cap of thickened pleura with strands running into the upper lobe."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side
    rng = np.random.default_rng(finding.seed)
    a = thorax.anatomy
    box = canvas.box((-1e4, -1e4, a.apex_z - 34), (1e4, 1e4, 1e4))
    z = canvas.axes(box)[2]
    ramp = np.clip((z - (a.apex_z - 34)) / 20.0, 0.0, 1.0)
    cap = (
        canvas.soft(-(thorax.lung[box] + 6.5 * ramp), 4.0) * scene.lung_share(box, finding.side) * (ramp > 0)
    )
    scene.fill_lung(box, 0.85 * cap, 20.0)
    scene.keep_mask(finding, box, cap)
    points = lung_points(canvas, thorax, rng, finding.side, 200, 3.0)
    points = points[points[:, 2] > a.apex_z - 50]
    share = thorax.lung_alpha * thorax.side_mask(canvas, finding.side)
    for point in points[:9]:
        step = rng.normal(0.0, 1.0, 3)
        end = point + step / np.linalg.norm(step) * rng.uniform(14, 28)
        draw_path(canvas, [point, end], [2.6, 1.2], -20.0, share)
    return {"center_voxel": mean_index(cap, box)}


def mosaic(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Patches of lighter and darker lung of a few centimetres in both lungs."""
    canvas = scene.canvas
    rng = np.random.default_rng(finding.seed)
    wave: Array | float = 0.0
    for _ in range(5):
        k = rng.normal(0.0, 1.0, 3)
        k *= 2 * np.pi / (rng.uniform(45, 75) * np.linalg.norm(k))
        phase = rng.uniform(0, 2 * np.pi)
        wave = wave + np.sin(
            np.float32(k[0]) * canvas.x
            + np.float32(k[1]) * canvas.y
            + np.float32(k[2]) * canvas.z
            + np.float32(phase)
        )
    patch = np.clip(0.5 + np.asarray(wave) / 0.9, 0.0, 1.0)
    air = scene.thorax.lung_alpha * (canvas.hu < -650)
    canvas.hu += (np.float32(165.0) * patch - np.float32(45.0)) * air
    scene.keep_mask(finding, WHOLE, patch * air)
    return {}


def peribronchial_thickening(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Thick walls round the lobar and segmental bronchi."""
    canvas, thorax = scene.canvas, scene.thorax
    for side in ("right", "left"):
        paths = bronchial_paths(thorax, scene.mediastinum, side, segments=True)
        for points, radii in paths:
            draw_path(canvas, points, [r + 4.2 for r in radii], 20.0, thorax.lung_alpha)
        for points, radii in paths:
            draw_path(canvas, points, [max(r, 1.6) for r in radii], -930.0, thorax.lung_alpha)
    return {}


def bronchiectasis(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Wide bronchi with visible walls that run far into one lobe."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side and finding.size_mm
    rng = np.random.default_rng(finding.seed)
    hilum = scene.mediastinum.hila[finding.side]
    points = lung_points(canvas, thorax, rng, finding.side, 60, 8.0, finding.lobe).astype(float)
    reach = np.sqrt(((points - hilum) ** 2).sum(1)) if len(points) else np.zeros(0)
    ends = points[(reach > 35)][:6]
    share = thorax.lung_alpha * thorax.side_mask(canvas, finding.side)
    radius = finding.size_mm / 2
    paths = []
    for end in ends:
        start = hilum + 0.35 * (end - hilum)
        middle = 0.5 * (start + end) + rng.normal(0.0, 5.0, 3)
        paths.append([start, middle, end])
    for path in paths:
        draw_path(canvas, path, [0.7 * radius + 2.2, radius + 2.4, 1.1 * radius + 2.4], 10.0, share)
    for path in paths:
        draw_path(canvas, path, [0.7 * radius, radius, 1.1 * radius], -960.0, share)
    center = np.mean(ends, axis=0) if len(ends) else hilum
    return {"center_voxel": canvas.index_of(center)}


def septal_thickening(scene: Scene, finding: Finding) -> dict[str, Any]:
    """A net of thin lines about 20 mm wide, in the outer lung."""
    canvas, thorax = scene.canvas, scene.thorax
    rng = np.random.default_rng(finding.seed)
    width = np.float32(max(1.6 * canvas.pixel, 3.0))
    net: Array = np.zeros(canvas.hu.shape, np.float32)
    for _ in range(2):
        k = rng.normal(0.0, 1.0, 3) * (1, 1, 0.55)
        k /= np.linalg.norm(k)
        along = np.float32(k[0]) * canvas.x + np.float32(k[1]) * canvas.y + np.float32(k[2]) * canvas.z
        period = np.float32(rng.uniform(23, 30))
        bend = 4.0 * np.sin(canvas.x / 17.0 + k[1] * 9) + 4.0 * np.sin(canvas.y / 21.0 + k[0] * 9)
        off = np.abs(np.mod(along + bend.astype(np.float32), period) - period / 2)
        np.maximum(net, np.clip(1.0 - off / width, 0.0, 1.0), out=net)
    outer = np.clip(1.0 + (thorax.lung + 26.0) / 10.0, 0.0, 1.0)
    alpha = net * outer * thorax.lung_alpha * (canvas.hu < -500)
    canvas.hu += np.float32(330.0) * alpha
    scene.keep_mask(finding, WHOLE, alpha)
    return {}
