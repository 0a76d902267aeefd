"""Heart, great vessels, airways and what else lies between the lungs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.canvas import Canvas, Ellipsoid, draw_ellipsoid, draw_path, path_boxes, smooth_curve
from data_prep.phantom.thorax import Thorax

BLOOD_HU = 45.0


@dataclass(frozen=True)
class Mediastinum:
    """Where the organs of the mediastinum are.

    Attributes:
        heart: Parts of the heart (left ventricle, right heart, atria).
        aorta: Points of the aorta's centre line from valve to abdomen.
        aorta_radii: Their radii.
        trachea: Points from above downwards to the carina.
        bronchi: Main bronchus by side, from the carina outwards.
        hila: Hilum by side.
        heart_width: Transverse width of the heart, mm.
    """

    heart: tuple[Ellipsoid, ...]
    aorta: np.ndarray
    aorta_radii: np.ndarray
    trachea: np.ndarray
    bronchi: dict[str, np.ndarray]
    hila: dict[str, np.ndarray]
    heart_width: float


def build_mediastinum(canvas: Canvas, thorax: Thorax, cardiothoracic_ratio: float) -> Mediastinum:
    """Place heart, vessels and airways, and let the lungs spare them."""
    heart = _heart(thorax, cardiothoracic_ratio)
    a = thorax.anatomy
    # Vessels and airways follow the healthy heart: an enlarged one leaves them in their place.
    base = np.asarray(_heart(thorax, a.cardiothoracic_ratio)[0].center)
    left = min(part.center[0] - part.extent[0] for part in heart)
    right = max(part.center[0] + part.extent[0] for part in heart)
    r = a.aorta_radius
    down = []
    for z in (0.0, -50.0, -100.0, -150.0, -200.0, -300.0):
        x, y = thorax.spine_at(z)
        down.append((x - 20.0, y - 14.0 - 0.3 * r, z))
    root = (base[0] + 26, base[1] + 4, min(base[2] + 38, -22))
    middle_y = 0.5 * (base[1] + down[0][1])
    arch = [(16.0, base[1] - 2, -12.0), (12.0, base[1] + 2.0, 16.0), (-2.0, base[1] + 22.0, 36.0)]
    aorta = smooth_curve([root, *arch, (-16.0, middle_y + 14, 33.0), *down], 5)
    radii = np.interp(np.arange(len(aorta)), [0, 12, 25, len(aorta)], [r * 1.3, r * 1.28, r * 1.05, r * 0.92])
    ty = middle_y + 12.0
    top = canvas.z[-1, 0, 0] + 30.0
    trachea = smooth_curve(
        [(1.0, ty - 22.0 - 0.1 * max(top - 90, 0), max(top, 100.0)), (2.0, ty - 14, 55.0), (1.0, ty, 0.0)], 4
    )
    bronchi = {
        "right": smooth_curve([(1.0, ty, 0.0), (17.0, ty + 2, -15.0), (36.0, ty + 4, -26.0)], 3),
        "left": smooth_curve([(1.0, ty, 0.0), (-22.0, ty + 4, -17.0), (-44.0, ty + 8, -30.0)], 3),
    }
    hila = {side: bronchi[side][-1] for side in bronchi}
    found = Mediastinum(heart, aorta, radii, trachea, bronchi, hila, float(right - left))
    _spare(canvas, thorax, found)
    return found


def _heart(thorax: Thorax, cardiothoracic_ratio: float) -> tuple[Ellipsoid, ...]:
    """Heart of the wanted width, resting on the diaphragm behind the sternum."""
    a = thorax.anatomy
    tilt, drop = a.heart_tilt, 0.5
    long_axis = np.array([-np.cos(tilt) * np.cos(drop), -np.sin(tilt) * np.cos(drop), -np.sin(drop)])
    second = np.array([np.sin(tilt), -np.cos(tilt), 0.0])
    axes = np.stack([long_axis, second, np.cross(long_axis, second)])
    goal = cardiothoracic_ratio * 2 * a.half_width
    scale = 1.0
    parts: tuple[Ellipsoid, ...] = ()
    for _ in range(4):
        deep = scale**0.7
        radii = (66.0 * scale, 42.0 * deep, 44.0 * deep)
        front = 2.0 - a.half_depth  # inside of the sternum
        center = np.array(
            [-18.0 - a.heart_shift - 10.0 * (scale - 1), front + 12.0 + 48.0 * deep, a.dome_z + 32.0 * deep]
        )
        right = center + np.array([36.0 * scale, 8.0, 14.0])
        left_atrium = center + np.array([14.0, 32.0 * deep, 18.0])
        parts = (
            Ellipsoid(tuple(center), radii, axes),
            Ellipsoid(tuple(right), (27.0 * scale, 29.0 * deep, 38.0 * deep)),
            Ellipsoid(tuple(left_atrium), (33.0 * scale, 21.0 * deep, 25.0 * deep)),
        )
        width = max(p.center[0] + p.extent[0] for p in parts) - min(p.center[0] - p.extent[0] for p in parts)
        scale *= goal / width
    return parts


def _spare(canvas: Canvas, thorax: Thorax, m: Mediastinum) -> None:
    for part in m.heart:
        grown = part.grown(4.0)
        box = canvas.around(part.center, grown.extent + 3 * canvas.pixel)
        thorax.keep_out(box, grown.distance(canvas, box))
    for box, distance in path_boxes(canvas, m.aorta, m.aorta_radii + 2.5, 3 * canvas.pixel):
        thorax.keep_out(box, distance)
    for points, radius in ((m.trachea, 9.0), (m.bronchi["right"][:5], 8.0), (m.bronchi["left"][:5], 8.0)):
        for box, distance in path_boxes(
            canvas, points, [thorax.anatomy.trachea_radius + radius - 6] * len(points), 6.0
        ):
            thorax.keep_out(box, distance)
    # The column between the lungs: wide behind, narrow at the anterior junction.
    z, y = canvas.z, canvas.y
    base_y = m.trachea[-1][1]
    upper = np.interp(z, [-60, -20, 10, 50, 80, 110], [13, 22, 30, 31, 29, 24])
    profile = np.clip(1.0 - ((y - (base_y - 20.0)) / 62.0) ** 4, 0.0, 1.0)
    front = thorax.middle_y - thorax.depth
    pad = np.interp(z, [-120, -70, -30, 0], [26, 20, 8, 0]) * np.clip(1.0 - (y - front) / 40.0, 0.0, 1.0)
    half = np.maximum(4.0 + (upper - 4.0) * profile, 4.0 + pad).astype(np.float32)
    np.minimum(
        thorax.mediastinum, np.abs(canvas.x - thorax.midline * 0.5 + 3.0) - half, out=thorax.mediastinum
    )


def draw_mediastinum(canvas: Canvas, thorax: Thorax, m: Mediastinum) -> None:
    """Paint heart, vessels, oesophagus and airways."""
    a = thorax.anatomy
    blood = BLOOD_HU + a.contrast_hu
    muscle = 48.0 + 0.35 * a.contrast_hu
    for part in m.heart[1:]:
        draw_ellipsoid(canvas, part, blood)
    draw_ellipsoid(canvas, m.heart[0], muscle)
    ventricle = m.heart[0]
    axes = ventricle.axes
    assert axes is not None
    shift = np.asarray(ventricle.center) + axes[1] * -0.25 * ventricle.radii[1]
    inner = tuple(0.62 * r for r in ventricle.radii)
    draw_ellipsoid(canvas, Ellipsoid(tuple(shift), (inner[0], inner[1] * 0.75, inner[2]), axes), blood)
    right = np.asarray(ventricle.center) + axes[1] * 0.62 * ventricle.radii[1]
    draw_ellipsoid(canvas, Ellipsoid(tuple(right), (inner[0], inner[1] * 0.42, inner[2]), axes), blood)
    _draw_groove(canvas, m)
    pulmonary = _pulmonary_arteries(m)
    for points, radii in pulmonary:
        draw_path(canvas, points, radii, blood)
    y = m.trachea[-1][1]
    ascending = m.aorta[10]
    cava = [(28.0, ascending[1] + 8, 70.0), (27.0, ascending[1] + 8, 10.0), (28.0, ascending[1] + 18, -35.0)]
    draw_path(canvas, cava, [8.0, 9.0, 10.0], blood + 0.2 * a.contrast_hu)
    arch = m.aorta[16]
    for x, dy, radius in ((14.0, -4.0, 6.0), (-6.0, 6.0, 4.5), (-18.0, 16.0, 5.0)):
        draw_path(
            canvas,
            [
                (x * 0.6, arch[1] + dy, 34.0),
                (x, arch[1] + dy - 2, 62.0),
                (x * 1.7, arch[1] + dy, 115.0),
                (x * 2.2, arch[1] + dy, 300.0),
            ],
            [radius] * 4,
            blood,
        )
    draw_path(canvas, [(26.0, ascending[1] + 2, 66.0), (-24.0, ascending[1] - 6, 78.0)], [6.0, 6.0], blood)
    draw_path(canvas, m.aorta, m.aorta_radii, blood)
    esophagus = [
        (-4.0, y + 16, 300.0),
        (-5.0, y + 17, 60.0),
        (-4.0, y + 18, -10.0),
        (-4.0, y + 16, -70.0),
        (-14.0, y + 6, a.dome_z - 20),
    ]
    draw_path(canvas, esophagus, [8.0, 8.0, 8.0, 8.5, 9.0], 36.0)
    draw_path(canvas, esophagus[:3], [2.4, 2.4, 1.6], -500.0)


def _draw_groove(canvas: Canvas, m: Mediastinum) -> None:
    """Fat in the grooves between atria and ventricles and between the ventricles."""
    ventricle = m.heart[0]
    axes = ventricle.axes
    assert axes is not None
    box = canvas.around(ventricle.center, ventricle.extent + canvas.pixel)
    x, y, z = canvas.axes(box)
    offset = [c - np.float32(o) for c, o in zip((x, y, z), ventricle.center, strict=True)]
    along = sum(np.float32(k) * c for k, c in zip(axes[0], offset, strict=True))
    across = sum(np.float32(k) * c for k, c in zip(axes[1], offset, strict=True))
    outer = np.clip(
        1.0 + (np.minimum.reduce([p.distance(canvas, box) for p in m.heart]) + 9.0) / 4.0, 0.0, 1.0
    )
    between = canvas.soft(np.abs(along + 0.42 * ventricle.radii[0]) - 3.2)
    front = canvas.soft(np.abs(across - 0.3 * ventricle.radii[1]) - 2.6) * (along > 0)
    inside = canvas.soft(ventricle.distance(canvas, box))
    canvas.paint(box, np.maximum(between, front) * outer * inside, -60.0)


def _pulmonary_arteries(m: Mediastinum) -> list[tuple[np.ndarray, list[float]]]:
    y = m.trachea[-1][1]
    ascending = m.aorta[8]
    fork = np.array([-18.0, 0.5 * (ascending[1] + y) - 8, -16.0])
    trunk = np.array([[-14.0, ascending[1] - 8, -48.0], [-20.0, ascending[1] + 0, -30.0], fork])
    right = np.array([fork, [6.0, y - 20, -20.0], [30.0, y - 14, -24.0], m.hila["right"] + [4, -8, 2]])
    left = np.array([fork, [-32.0, y - 10, -10.0], m.hila["left"] + [2, 6, 12]])
    return [(trunk, [14.0, 13.5, 13.0]), (right, [11.0, 10.0, 9.0, 7.5]), (left, [11.0, 9.5, 8.0])]


def draw_airways(canvas: Canvas, thorax: Thorax, m: Mediastinum) -> None:
    """Trachea and main bronchi, drawn last: walls, then air."""
    radius = thorax.anatomy.trachea_radius
    tubes = [(m.trachea, [radius] * len(m.trachea))]
    tubes += [
        (points, list(np.linspace(0.78 * radius, 0.66 * radius, len(points))))
        for points in m.bronchi.values()
    ]
    for points, radii in tubes:
        draw_path(canvas, points, [r + 2.0 for r in radii], 35.0)
    for points, radii in tubes:
        draw_path(canvas, points, radii, -985.0)
