"""Body wall, bones, breasts, abdomen and table."""

from __future__ import annotations

import numpy as np

from data_prep.phantom.canvas import Canvas, Ellipsoid, draw_ellipsoid, draw_path, smooth_curve
from data_prep.phantom.thorax import Thorax

WHOLE = (slice(None), slice(None), slice(None))
FAT_HU = -100.0
MUSCLE_HU = 52.0


def draw_body_wall(canvas: Canvas, thorax: Thorax) -> None:
    """Skin, fat, the muscles of the chest wall and the fat-filled inside of the cage; also breasts and table."""
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


def _on_wall(
    thorax: Thorax, canvas: Canvas, z: float, angle: float, out: float
) -> tuple[np.ndarray, np.ndarray]:
    """(point, unit tangent) ``out`` mm outside the cage; angle 0 at the back, pi/2 at the right, pi in front."""
    at = lambda values: float(np.interp(z, canvas.z[:, 0, 0], values[:, 0, 0]))  # noqa: E731
    width, depth = at(thorax.width) + out, at(thorax.depth) + out
    s, c = np.sin(angle), np.cos(angle)
    point = np.array(
        [np.sign(s) * width * abs(s) ** 0.85, at(thorax.middle_y) + np.sign(c) * depth * abs(c) ** 0.85, z]
    )
    tangent = np.array([width * c, -depth * s, 0.0])
    return point, tangent / np.linalg.norm(tangent)


def _draw_muscles(canvas: Canvas, thorax: Thorax, inside: np.ndarray) -> None:
    """Back, chest and shoulder muscles with fat between them."""
    a = thorax.anatomy
    thick = a.muscle / 15.0
    low, high = float(canvas.z[0, 0, 0]), float(canvas.z[-1, 0, 0])
    heights = np.linspace(low - 20, high + 20, 8)
    for sign in (1.0, -1.0):
        spine = [
            (float(np.interp(z, canvas.z[:, 0, 0], thorax.spine_x[:, 0, 0])) + sign * 25.0,
             float(np.interp(z, canvas.z[:, 0, 0], thorax.spine_y[:, 0, 0])) + 30.0, z)
            for z in heights
        ]  # fmt: skip
        draw_path(canvas, spine, [18.0 + 2.5 * thick] * len(spine), MUSCLE_HU, inside)
        slabs = (  # height, angle, distance, half length along the wall, half thickness, half height
            (
                0.40 * a.apex_z,
                0.80 * np.pi,
                16.0 + 2 * thick,
                0.36 * a.half_width,
                8.0 * thick,
                58.0,
            ),  # pectoral
            (0.10 * a.apex_z, 0.42 * np.pi, 15.0, 46.0, 6.0 * thick, 95.0),  # latissimus and serratus
            (0.75 * a.apex_z, 0.13 * np.pi, 27.0, 58.0, 7.0 * thick, 75.0),  # trapezius and rhomboids
            (0.55 * a.apex_z, 0.37 * np.pi, 30.0, 42.0, 9.0 * thick, 55.0),  # infraspinatus, teres
        )
        for z, angle, out, length, thickness, height in slabs:
            center, along = _on_wall(thorax, canvas, z, sign * angle, out)
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
    chest = np.interp(level, canvas.z[:, 0, 0], (thorax.middle_y - thorax.depth)[:, 0, 0])
    front = float(chest) - a.muscle - a.fat
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


def draw_shoulders(canvas: Canvas, thorax: Thorax) -> None:
    """Sternum, clavicles, scapulae and their muscles."""
    a = thorax.anatomy
    front_y = lambda z: float(np.interp(z, thorax_z(canvas), (thorax.middle_y - thorax.depth)[:, 0, 0]))  # noqa: E731
    top, bottom = 0.52 * a.apex_z, 0.95 * a.dome_z
    for start, end, half in ((top, top - 45, 20.0), (top - 48, bottom, 13.0)):
        points = [(0.0, front_y(z) - 4.0, z) for z in np.linspace(start, end, 6)]
        for p, q in zip(points, points[1:], strict=False):
            box = canvas.box(
                (-half - 8, min(p[1], q[1]) - 14, q[2] - 1), (half + 8, max(p[1], q[1]) + 14, p[2] + 1)
            )
            x, y, z = canvas.axes(box)
            line = p[1] + (q[1] - p[1]) * np.clip((z - p[2]) / (q[2] - p[2]), 0, 1)
            d = np.maximum(np.abs(x) - half, np.abs(y - line.astype(np.float32)) - 5.5)
            inside = (z <= p[2]) & (z > q[2])
            canvas.paint(
                box, canvas.soft(d) * inside, np.float32(a.bone_hu * 0.7) + 250 * np.clip(1 + d / 3, 0, 1)
            )
    for sign in (1.0, -1.0):
        medial = (sign * 22.0, front_y(top) - 6.0, top + 4.0)
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


def thorax_z(canvas: Canvas) -> np.ndarray:
    """Heights of the slices as a vector."""
    return canvas.z[:, 0, 0]


def _draw_scapula(canvas: Canvas, thorax: Thorax, sign: float) -> None:
    a = thorax.anatomy
    center_z = 0.35 * a.apex_z + 5.0
    at = lambda values: float(np.interp(center_z, thorax_z(canvas), values[:, 0, 0]))  # noqa: E731
    phi = 0.30 * np.pi  # from straight back towards the side
    width, depth, middle = at(thorax.width) + 17.0, at(thorax.depth) + 17.0, at(thorax.middle_y)
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


def draw_abdomen(canvas: Canvas, thorax: Thorax) -> None:
    """Liver, stomach, spleen and kidneys under the diaphragm."""
    a = thorax.anatomy
    under = canvas.box((-1e4, -1e4, -1e4), (1e4, 1e4, a.dome_z + 2))
    x, y, z = canvas.axes(under)
    below = np.maximum(
        (z - thorax.diaphragm[under[1], under[2]][None] + 2.5) * 0.85, thorax.cage[under] + 3.0
    )
    enhanced = 0.45 * a.contrast_hu
    if below.size == 0:
        return
    left_edge = -28.0 + 0.35 * (z - a.dome_z) + 0.45 * (y + 20.0)
    liver = np.maximum(below, (left_edge - x) * 0.8)
    canvas.paint(under, canvas.soft(liver), 56.0 + enhanced)
    inside = np.zeros(canvas.hu.shape, np.float32)
    inside[under] = canvas.soft(below)
    left_z = a.dome_z - a.dome_drop
    rng = np.random.default_rng([a.seed, 4])
    cava = np.array([24.0, float(thorax.spine_y[0, 0, 0]) - 38.0, a.dome_z - 12.0])
    for _ in range(7):
        end = cava + [rng.uniform(10, 75), rng.uniform(-75, 10), rng.uniform(-75, -5)]
        draw_path(
            canvas,
            [cava, 0.5 * (cava + end) + [0, 0, 8.0], end],
            [5.0, 3.5, 2.0],
            36.0 + 1.2 * enhanced,
            inside,
        )
    draw_path(canvas, [cava + [0, 8, 0], cava + [0, 10, -300]], [11.0, 11.0], 42.0 + enhanced, inside)
    stomach = Ellipsoid((-0.46 * a.half_width, -0.12 * a.half_depth, left_z - 48.0), (50.0, 54.0, 46.0))
    draw_ellipsoid(canvas, stomach, 38.0, inside)
    box = canvas.around(stomach.center, stomach.extent + canvas.pixel)
    surface = stomach.center[1] + 54.0 * (2 * a.stomach_gas - 1.0) * 0.7
    gas = np.maximum(stomach.grown(-4.0).distance(canvas, box), canvas.y[:, box[1]] - surface)
    canvas.paint(box, canvas.soft(gas) * inside[box], -950.0)
    spleen = Ellipsoid((-0.68 * a.half_width, 0.48 * a.half_depth, left_z - 62.0), (34.0, 46.0, 50.0))
    draw_ellipsoid(canvas, spleen, 50.0 + enhanced, inside)
    colon = Ellipsoid((-0.74 * a.half_width, -0.2 * a.half_depth, left_z - 96.0), (22.0, 34.0, 26.0))
    draw_ellipsoid(canvas, colon, 30.0, inside)
    draw_ellipsoid(canvas, colon.grown(-3.5), -850.0, inside)
    for sign in (1.0, -1.0):
        kidney = Ellipsoid(
            (sign * 62.0, float(thorax.spine_y[0, 0, 0]) - 2.0, a.dome_z - 118.0), (26.0, 24.0, 48.0)
        )
        draw_ellipsoid(canvas, kidney.grown(8.0), FAT_HU, inside)
        draw_ellipsoid(canvas, kidney, 34.0 + 1.3 * enhanced, inside)


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
