"""Body wall, muscles, breasts, neck and the table."""

from __future__ import annotations

import numpy as np

from data_prep.phantom.canvas import Canvas, Ellipsoid, draw_ellipsoid, draw_path
from data_prep.phantom.thorax import Thorax

WHOLE = (slice(None), slice(None), slice(None))
FAT_HU = -100.0
MUSCLE_HU = 52.0


def draw_body_wall(canvas: Canvas, thorax: Thorax) -> None:
    """Skin, fat, muscles of the chest wall, the fat-filled inside of the cage, breasts and table."""
    a = thorax.anatomy
    level = (canvas.z - a.dome_z) / (a.apex_z - a.dome_z)
    widen = np.interp(level, [-1, 0.0, 0.5, 0.8, 1.0, 1.2, 1.5], [0.98, 1.0, 1.0, 1.07, 1.12, 1.06, 0.8])
    deepen = np.interp(level, [-1, 0.0, 0.6, 1.0, 1.2, 1.5], [0.98, 1.0, 0.97, 0.84, 0.72, 0.6])
    half_width = a.half_width * widen + a.muscle + a.fat
    half_depth = a.half_depth * deepen + 16.0 + 0.5 * a.muscle + a.fat
    middle = thorax.spine_y + 47.0 + 0.8 * a.fat - half_depth
    skin = _outline(canvas, half_width, half_depth, middle)
    canvas.paint(WHOLE, canvas.soft(skin), FAT_HU)
    canvas.paint(WHOLE, canvas.soft(np.abs(skin + np.float32(1.2)) - np.float32(1.2)), 0.0)
    inside = canvas.soft(skin + np.float32(0.45 * a.fat + 2.0))
    wall = thorax.cage - np.float32(9.0 + 0.35 * a.muscle)
    canvas.paint(WHOLE, canvas.soft(wall) * inside, MUSCLE_HU)
    _draw_muscles(canvas, thorax, inside)
    canvas.paint(WHOLE, canvas.soft(thorax.cage), FAT_HU)
    if a.sex == "female":
        _draw_breasts(canvas, thorax)
    _draw_table(canvas, float((middle + half_depth).max()) + a.table)


def _outline(
    canvas: Canvas, half_width: np.ndarray, half_depth: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """Signed distance to the skin: a rounded box by slice."""
    power = np.float32(2.5)
    w, d = half_width.astype(np.float32), half_depth.astype(np.float32)
    dy = np.abs((canvas.y - middle.astype(np.float32)) / d)
    share = np.clip(dy * dy, 0.0, 1.0)
    scale = (w * (1 - share) + d * share) / power
    level = np.abs(canvas.x / w) ** power + (dy**power - 1.0)
    level *= scale
    return level


def _on_wall(thorax: Thorax, z: float, angle: float, out: float) -> tuple[np.ndarray, np.ndarray]:
    """(point, unit tangent) ``out`` mm outside the cage; angle 0: back, pi/2: right, pi: front."""
    width, depth = thorax.at(thorax.width, z) + out, thorax.at(thorax.depth, z) + out
    s, c = np.sin(angle), np.cos(angle)
    x, y = np.sign(s) * width * abs(s) ** 0.85, np.sign(c) * depth * abs(c) ** 0.85
    point = np.array([x, thorax.at(thorax.middle_y, z) + y, z])
    tangent = np.array([width * c, -depth * s, 0.0])
    return point, tangent / np.linalg.norm(tangent)


def _draw_muscles(canvas: Canvas, thorax: Thorax, inside: np.ndarray) -> None:
    """Back, chest and shoulder muscles with fat between them."""
    a = thorax.anatomy
    thick = a.muscle / 15.0
    low, high = float(canvas.z[0, 0, 0]), float(canvas.z[-1, 0, 0])
    heights = np.linspace(low - 20, high + 20, 8)
    for sign in (1.0, -1.0):
        spine = []
        for z in heights:
            x, y = thorax.spine_at(z)
            spine.append((x + sign * 25.0, y + 30.0, z))
        draw_path(canvas, spine, [18.0 + 2.5 * thick] * len(spine), MUSCLE_HU, inside)
        slabs = (  # height, angle, distance, half length along the wall, half thickness, half height
            # pectoral, latissimus and serratus, trapezius and rhomboids, infraspinatus and teres
            (0.40 * a.apex_z, 0.80 * np.pi, 16.0 + 2 * thick, 0.36 * a.half_width, 8.0 * thick, 58.0),
            (0.10 * a.apex_z, 0.42 * np.pi, 15.0, 46.0, 6.0 * thick, 95.0),
            (0.75 * a.apex_z, 0.13 * np.pi, 27.0, 58.0, 7.0 * thick, 75.0),
            (0.55 * a.apex_z, 0.37 * np.pi, 30.0, 42.0, 9.0 * thick, 55.0),
        )
        for z, angle, out, length, thickness, height in slabs:
            center, along = _on_wall(thorax, z, sign * angle, out)
            axes = np.stack([along, [along[1], -along[0], 0.0], [0.0, 0.0, 1.0]])
            _slab(canvas, center, (length, thickness, height), axes, inside)
        shoulder = Ellipsoid((sign * (1.06 * a.half_width + 8.0), 8.0, a.apex_z + 18.0), (50.0, 46.0, 62.0))
        _slab(canvas, np.asarray(shoulder.center), shoulder.radii, np.eye(3), inside)


def _slab(
    canvas: Canvas,
    center: np.ndarray,
    radii: tuple[float, float, float],
    axes: np.ndarray,
    inside: np.ndarray,
) -> None:
    shape = Ellipsoid(tuple(center), radii, axes)
    box = canvas.around(center, shape.extent + canvas.pixel)
    distance = shape.distance(canvas, box) * np.float32(min(radii) / np.cbrt(np.prod(radii)))
    canvas.paint(box, canvas.soft(distance) * inside[box], MUSCLE_HU)


def _draw_breasts(canvas: Canvas, thorax: Thorax) -> None:
    a = thorax.anatomy
    level = -0.35 * abs(a.dome_z) - 10
    front = thorax.front_y(level) - a.muscle - a.fat
    rng = np.random.default_rng([a.seed, 3])
    for sign in (1.0, -1.0):
        center = (sign * 0.52 * a.half_width, front + 0.12 * a.breast + 10.0, level)
        shape = Ellipsoid(center, (1.15 * a.breast, 0.8 * a.breast, 1.15 * a.breast))
        box = canvas.around(center, shape.extent + canvas.pixel)
        outside = canvas.soft(-thorax.cage[box] + 8.0)
        distance = shape.distance(canvas, box)
        view = canvas.hu[box]
        only_air = (view < -150.0).astype(np.float32)
        canvas.paint(box, canvas.soft(distance) * only_air * outside, -95.0)
        for _ in range(5):
            offset = rng.normal(0.0, 0.22, 3) * a.breast
            strand = Ellipsoid(
                (center[0] + offset[0], center[1] - 0.1 * a.breast + 0.5 * offset[1], center[2] + offset[2]),
                (0.28 * a.breast, 0.22 * a.breast, 0.3 * a.breast),
            )
            sbox = canvas.around(strand.center, strand.extent + canvas.pixel)
            mask = canvas.soft(-thorax.cage[sbox] + 12.0) * (canvas.hu[sbox] > -400)
            alpha = 0.75 * canvas.soft(strand.distance(canvas, sbox), 8.0) * mask
            canvas.paint(sbox, alpha, 25.0)


def _draw_table(canvas: Canvas, back: float) -> None:
    box = canvas.box((-250.0, back - 30, -1e4), (250.0, back + 30, 1e4))
    x, y, _ = canvas.axes(box)
    top = np.float32(back) - np.float32(1.6e-4) * x * x
    inside = canvas.soft(np.maximum(np.abs(x) - 225.0, np.abs(y - top - 9.0) - 9.0))
    shell = canvas.soft(np.maximum(np.abs(x) - 225.0, np.abs(np.abs(y - top - 9.0) - 8.0) - 1.2))
    air = (canvas.hu[box] < -600.0).astype(np.float32)
    canvas.paint(box, inside * air, -880.0)
    canvas.paint(box, shell * air, -150.0)


def draw_neck(canvas: Canvas, thorax: Thorax) -> None:
    """Muscles, vessels and thyroid over the lung apices."""
    a = thorax.anatomy
    low = a.apex_z - 25.0
    top = max(float(canvas.z[-1, 0, 0]) + 20.0, low + 30.0)
    y0 = float(thorax.spine_y[-1, 0, 0])
    for sign in (1.0, -1.0):
        for x, dy, radius in ((17.0, -16.0, 9.0), (31.0, -4.0, 11.0), (36.0, 16.0, 12.0), (28.0, -52.0, 7.0)):
            path = [
                (sign * (x + 14.0), y0 + dy + 2.0, low),
                (sign * x, y0 + dy, a.apex_z + 20),
                (sign * x, y0 + dy - 4, top),
            ]
            draw_path(canvas, path, [0.8 * radius, radius, radius], MUSCLE_HU)
        thyroid = Ellipsoid((sign * 18.0, y0 - 46.0, a.apex_z + 34.0), (10.0, 12.0, 24.0))
        draw_ellipsoid(canvas, thyroid, 95.0)
