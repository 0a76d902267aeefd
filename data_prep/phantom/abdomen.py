"""The organs under the diaphragm."""

from __future__ import annotations

import numpy as np

from data_prep.phantom.body import FAT_HU
from data_prep.phantom.canvas import Canvas, Ellipsoid, draw_ellipsoid, draw_path
from data_prep.phantom.thorax import Thorax


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
