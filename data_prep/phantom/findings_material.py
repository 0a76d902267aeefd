"""Foreign material: pacemaker, port, sternal wires, tracheal and gastric tube."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.phantom.canvas import Canvas, Ellipsoid, Point, draw_ellipsoid, draw_path, smooth_curve
from data_prep.phantom.mediastinum import Mediastinum
from data_prep.phantom.scene import WHOLE, Scene
from data_prep.phantom.spec import Finding
from data_prep.phantom.thorax import Thorax

METAL_HU = 2600.0
LEAD_HU = 2200.0
CATHETER_HU = 900.0


def medical_material(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Draw the material of the finding's ``kind``.

    Raises:
        ValueError: There is no such kind.
    """
    if finding.kind not in _KINDS:
        raise ValueError(f"medical material {finding.kind!r} is none of {', '.join(_KINDS)}")
    canvas = scene.canvas
    before = canvas.hu.copy() if scene.wants_masks else None
    place = _KINDS[finding.kind](
        canvas, scene.thorax, scene.mediastinum, -1.0 if finding.side == "left" else 1.0
    )
    if before is not None:
        scene.keep_mask(finding, WHOLE, (np.abs(canvas.hu - before) > 150).astype(np.float32))
    return {"center_voxel": canvas.index_of(place)}


def _thin(canvas: Canvas) -> float:
    """Radius of a wire that still shows on a coarse grid."""
    return max(1.5, 0.55 * canvas.pixel)


def _to_the_heart(thorax: Thorax, m: Mediastinum, sign: float) -> list[np.ndarray]:
    """From under the collar bone through the veins into the superior vena cava."""
    a = thorax.anatomy
    front = thorax.front_y(0.4 * a.apex_z)
    place = np.array([sign * 0.62 * a.half_width, front + 4.0 - 0.3 * a.muscle, 0.42 * a.apex_z])
    vein = np.array([sign * 30.0, thorax.front_y(50.0) + 28.0, 58.0])
    cava_y = m.aorta[10][1]
    return [
        place,
        place + [0, 8, 25],
        vein,
        np.array([27.0, cava_y + 8, 35]),
        np.array([28.0, cava_y + 16, -20]),
    ]


def _pacemaker(canvas: Canvas, thorax: Thorax, m: Mediastinum, sign: float) -> Point:
    path = _to_the_heart(thorax, m, sign)
    path += [np.asarray(m.heart[1].center), np.asarray(m.heart[0].center) + [0.0, -12.0, -22.0]]
    draw_ellipsoid(canvas, Ellipsoid(tuple(path[0]), (24.0, 7.0, 22.0)), METAL_HU)
    curve = smooth_curve(path, 4)
    draw_path(canvas, curve, [_thin(canvas)] * len(curve), LEAD_HU)
    return path[0]


def _port(canvas: Canvas, thorax: Thorax, m: Mediastinum, sign: float) -> Point:
    path = _to_the_heart(thorax, m, sign)
    draw_ellipsoid(canvas, Ellipsoid(tuple(path[0]), (14.0, 7.0, 13.0)), METAL_HU)
    curve = smooth_curve(path, 4)
    draw_path(canvas, curve, [_thin(canvas)] * len(curve), CATHETER_HU)
    return path[0]


def _sternal_wires(canvas: Canvas, thorax: Thorax, m: Mediastinum, sign: float) -> Point:
    a = thorax.anatomy
    size = max(2.2, 0.6 * canvas.pixel)
    radii = (size, size, max(size, 0.6 * canvas.step))
    heights = np.arange(0.45 * a.apex_z, 0.8 * a.dome_z, -20.0)
    for z in heights:
        for x in (-7.0, 7.0):
            draw_ellipsoid(canvas, Ellipsoid((x, thorax.front_y(z) - 9.0, float(z)), radii), METAL_HU)
    return (0.0, thorax.front_y(heights[0]) - 9.0, float(heights[0]))


def _tracheal_tube(canvas: Canvas, thorax: Thorax, m: Mediastinum, sign: float) -> Point:
    path = m.trachea[m.trachea[:, 2] > 28.0]
    draw_path(canvas, path, [5.8] * len(path), 280.0)
    draw_path(canvas, path, [3.2] * len(path), -990.0)
    return path[-1]


def _gastric_tube(canvas: Canvas, thorax: Thorax, m: Mediastinum, sign: float) -> Point:
    dome, y = thorax.anatomy.dome_z, m.trachea[-1][1]
    path = [
        (-5.0, y + 17, 300.0),
        (-5.0, y + 17, 60.0),
        (-4.0, y + 18, -10.0),
        (-4.0, y + 16, -70.0),
        (-14.0, y + 6, dome - 20),
        (-50.0, y - 40, dome - 60),
    ]
    draw_path(canvas, path, [max(2.4, _thin(canvas))] * len(path), 650.0)
    return path[2]


_KINDS: dict[str, Callable[[Canvas, Thorax, Mediastinum, float], Point]] = {
    "pacemaker": _pacemaker,
    "port": _port,
    "sternal wires": _sternal_wires,
    "tracheal tube": _tracheal_tube,
    "gastric tube": _gastric_tube,
}
