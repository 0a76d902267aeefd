"""Spine, ribs, sternum, clavicles and scapulae."""

from __future__ import annotations

import itertools

import numpy as np

from data_prep.phantom.body import MUSCLE_HU
from data_prep.phantom.canvas import Canvas, Ellipsoid, draw_ellipsoid, draw_path, smooth_curve
from data_prep.phantom.thorax import Thorax


def draw_spine(canvas: Canvas, thorax: Thorax) -> None:
    """Vertebral bodies and discs, canal, processes; the lungs spare them."""
    a = thorax.anatomy
    box = canvas.box(
        (-60, float(thorax.spine_y.min()) - 30, -1e4), (60, float(thorax.spine_y.max()) + 62, 1e4)
    )
    x, y, z = canvas.axes(box)
    dx, dy = x - thorax.spine_x[box[0]], y - thorax.spine_y[box[0]]
    grow = (1.0 + np.clip(-(z - 40.0) / 900.0, -0.1, 0.3)).astype(np.float32)
    rx, ry = 17.5 * grow, 14.0 * grow
    body = (np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2) - 1.0) * 15.0
    thorax.keep_out(box, body - 3.0)
    pitch = np.float32(a.rib_pitch * 0.92)
    phase = np.abs(np.mod(z + pitch * 0.3, pitch) - pitch / 2)  # 0 in mid vertebra, pitch / 2 in the disc
    disc = canvas.soft(-(phase - (pitch / 2 - 2.6)), max(canvas.step, 1.5))
    plate = np.clip(1.0 - np.abs(phase - (pitch / 2 - 3.6)) / max(canvas.step * 0.5, 1.4), 0.0, 1.0)
    cortex = np.clip(1.0 + body / 3.0, 0.0, 1.0) ** 2
    bone = np.float32(a.bone_hu) + cortex * 260.0 + plate * 160.0
    canvas.paint(box, canvas.soft(body), bone * (1 - disc) + 85.0 * disc)
    arch = np.abs(np.sqrt(dx**2 + (dy - 22.0) ** 2) - 12.0) - 3.2
    canvas.paint(box, canvas.soft(np.maximum(arch, 12.0 - dy)), 0.9 * np.float32(a.bone_hu) + 190.0)
    canvas.paint(box, canvas.soft(np.sqrt(dx**2 + (dy - 21.0) ** 2) - 8.0), 25.0)
    spinous = np.maximum(np.abs(dx) - 3.2, np.abs(dy - 40.0) - 10.0)
    present = np.clip(1.3 - phase / (pitch * 0.3), 0.0, 1.0)
    canvas.paint(box, canvas.soft(spinous) * present, np.float32(a.bone_hu) + 170.0)
    transverse = np.maximum(np.abs(np.abs(dx) - 24.0) - 13.0, np.abs(dy - 22.0 - 0.1 * np.abs(dx)) - 4.2)
    canvas.paint(
        box,
        canvas.soft(transverse) * np.clip(1.25 - phase / (pitch * 0.22), 0, 1),
        np.float32(a.bone_hu) + 130.0,
    )


def draw_ribs(canvas: Canvas, thorax: Thorax) -> None:
    """Twelve pairs of oblique ribs in the shell round the cage, with their cartilage, in one pass."""
    a = thorax.anatomy
    where = np.nonzero((thorax.cage > -0.5 * canvas.pixel) & (thorax.cage < 9.0 + 0.5 * canvas.pixel))
    s, r, c = where
    dx = canvas.x[0, 0, c] - thorax.spine_x[s, 0, 0]
    dy = canvas.y[0, r, 0] - thorax.middle_y[s, 0, 0]
    # 0 at the spine, pi at the sternum
    angle = np.arctan2(np.abs(dx) / thorax.width[s, 0, 0], dy / thorax.depth[s, 0, 0])
    turn = angle / np.float32(np.pi)
    upper = np.clip((canvas.z[s, 0, 0] - 20.0) / 90.0, 0.0, 1.0)
    fall = np.float32(a.rib_slope) * (turn - 0.35 * turn**4) * (1.0 - 0.35 * upper)
    height = canvas.z[s, 0, 0] + fall
    pitch = np.float32(a.rib_pitch)
    number = np.floor((a.apex_z + 14.0 - height) / pitch)
    off = np.abs(np.mod(a.apex_z + 14.0 - height, pitch) - pitch / 2)
    radial = np.abs(thorax.cage[where] - 5.0) - 3.4
    distance = np.maximum(off - 6.2 + 1.6 * (turn > 0.7), radial)
    end = np.where(number < 7, 0.93, 0.93 - 0.13 * (number - 6.0))
    alpha = canvas.soft(distance, max(canvas.pixel, 0.7 * canvas.step))
    alpha *= (number >= 0) & (number < 12) & (turn < end) & (turn > 0.06)
    core = np.clip(-distance / 3.0, 0.0, 1.0)
    bone = np.float32(a.bone_hu) * 0.8 + 380.0 * (1.0 - core)
    bone = np.where(turn > 0.76, np.float32(120.0), bone)
    view = canvas.hu[where]
    canvas.hu[where] = view + alpha * (bone - view)


def draw_sternum(canvas: Canvas, thorax: Thorax) -> None:
    """Manubrium and body of the sternum along the front chest wall."""
    a = thorax.anatomy
    top = manubrium_z(thorax)
    for start, end, half in ((top, top - 45, 20.0), (top - 48, 0.95 * a.dome_z, 13.0)):
        points = [(0.0, thorax.front_y(z) - 4.0, z) for z in np.linspace(start, end, 6)]
        for p, q in itertools.pairwise(points):
            low, high = min(p[1], q[1]) - 14, max(p[1], q[1]) + 14
            box = canvas.box((-half - 8, low, q[2] - 1), (half + 8, high, p[2] + 1))
            x, y, z = canvas.axes(box)
            line = p[1] + (q[1] - p[1]) * np.clip((z - p[2]) / (q[2] - p[2]), 0, 1)
            distance = np.maximum(np.abs(x) - half, np.abs(y - line.astype(np.float32)) - 5.5)
            bone = np.float32(a.bone_hu * 0.7) + 250 * np.clip(1 + distance / 3, 0, 1)
            canvas.paint(box, canvas.soft(distance) * ((z <= p[2]) & (z > q[2])), bone)


def manubrium_z(thorax: Thorax) -> float:
    """Height of the upper edge of the sternum."""
    return 0.52 * thorax.anatomy.apex_z


def draw_shoulders(canvas: Canvas, thorax: Thorax) -> None:
    """Clavicles, scapulae and the heads of the humeri."""
    a = thorax.anatomy
    top = manubrium_z(thorax)
    for sign in (1.0, -1.0):
        medial = (sign * 22.0, thorax.front_y(top) - 6.0, top + 4.0)
        curve = smooth_curve(
            [
                medial,
                (sign * 60.0, medial[1] - 4.0, top + 18.0),
                (sign * 105.0, medial[1] + 38.0, top + 36.0),
                (sign * (a.half_width + 2), medial[1] + 60.0, top + 44.0),
            ],
            4,
        )
        draw_path(canvas, curve, [6.0] * len(curve), a.bone_hu + 240.0)
        _draw_scapula(canvas, thorax, sign)


def _draw_scapula(canvas: Canvas, thorax: Thorax, sign: float) -> None:
    a = thorax.anatomy
    center_z = 0.35 * a.apex_z + 5.0
    phi = 0.30 * np.pi  # from straight back towards the side
    width, depth = thorax.at(thorax.width, center_z) + 17.0, thorax.at(thorax.depth, center_z) + 17.0
    middle = thorax.at(thorax.middle_y, center_z)
    center = (sign * width * np.sin(phi) ** 0.9, middle + depth * np.cos(phi) ** 0.9, center_z)
    along = np.array([sign * width * np.cos(phi), -depth * np.sin(phi), 0.0])
    along /= np.linalg.norm(along)
    normal = np.array([along[1], -along[0], 0.0])
    axes = np.stack([along, normal, [0.0, 0.0, 1.0]])
    outside = canvas.soft(-thorax.cage + 9.0)
    draw_ellipsoid(canvas, Ellipsoid(center, (48.0, 13.0, 72.0), axes), MUSCLE_HU, outside)
    draw_ellipsoid(canvas, Ellipsoid(center, (44.0, 3.6, 66.0), axes), a.bone_hu + 260.0, outside)
    glenoid = np.asarray(center) + along * 44.0 + np.array([0, 0, 48.0])
    spine_start = np.asarray(center) - along * 25.0 - normal * sign * -8.0 + np.array([0, 0, 22.0])
    draw_path(canvas, [spine_start, glenoid], [3.5, 7.0], a.bone_hu + 240.0)
    head = Ellipsoid(
        (float(glenoid[0] + sign * 16), float(glenoid[1] - 12), float(glenoid[2] + 18)), (22.0, 22.0, 24.0)
    )
    present = (canvas.hu > -300).astype(np.float32)
    draw_ellipsoid(canvas, head, a.bone_hu + 330.0, present)
    draw_ellipsoid(canvas, head.grown(-4.0), a.bone_hu * 0.8, present)
