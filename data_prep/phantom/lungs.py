"""Lung tissue: parenchyma, fissures, branching vessels and bronchi."""

from __future__ import annotations

import numpy as np

from data_prep.phantom.canvas import Array, Canvas, draw_path
from data_prep.phantom.mediastinum import Mediastinum
from data_prep.phantom.spec import LOBES
from data_prep.phantom.thorax import Thorax


def draw_lungs(canvas: Canvas, thorax: Thorax, m: Mediastinum) -> None:
    """Parenchyma with a gravity gradient, fissures, vessels and lobar bronchi."""
    a = thorax.anatomy
    gradient = np.float32(a.lung_hu) + np.clip((canvas.y - 10.0) * 0.35, -25.0, 40.0).astype(np.float32)
    everything = (slice(None), slice(None), slice(None))
    canvas.paint(everything, thorax.lung_alpha, gradient)
    rng = np.random.default_rng([a.seed, 1])
    for side in ("right", "left"):
        _draw_fissures(canvas, thorax, side)
        hilum = m.hila[side]
        for count, offset, root in ((80, (0, -4, 4), 7.0), (45, (0, -10, -14), 6.0)):
            targets = lung_points(canvas, thorax, rng, side, count, depth=4.0, near=thorax.pleura)
            if len(targets):
                _draw_tree(canvas, thorax, hilum + np.asarray(offset, float), targets, root)
        _draw_bronchi(canvas, thorax, m, side)


def lung_points(
    canvas: Canvas,
    thorax: Thorax,
    rng: np.random.Generator,
    side: str,
    count: int,
    depth: float,
    lobe: str | None = None,
    near: Array | None = None,
) -> np.ndarray:
    """Random points (x, y, z) of a lung or lobe at least ``depth`` mm inside, at most ``count``.

    ``near`` replaces the lungs' signed distance, e.g. by one that does not know the heart.
    """
    a = thorax.anatomy
    n = 40 * count
    sign = 1.0 if side == "right" else -1.0
    points = np.empty((n, 3), np.float32)
    points[:, 0] = sign * rng.uniform(0.0, a.half_width, n)
    points[:, 1] = rng.uniform(-1.1 * a.half_depth, 1.05 * a.half_depth, n)
    points[:, 2] = rng.uniform(max(thorax.base_z, canvas.z[0, 0, 0]), min(a.apex_z, canvas.z[-1, 0, 0]), n)
    index = np.stack(
        [
            np.rint((points[:, 2] - canvas.z[0, 0, 0]) / canvas.step),
            np.rint((points[:, 1] - canvas.y[0, 0, 0]) / canvas.pixel),
            np.rint((points[:, 0] - canvas.x[0, 0, 0]) / canvas.pixel),
        ]
    ).astype(int)
    inside = np.all((index >= 0) & (index < np.asarray(canvas.hu.shape)[:, None]), 0)
    points, index = points[inside], index[:, inside]
    keep = (thorax.lung if near is None else near)[tuple(index)] < -depth
    if lobe is not None:
        keep &= thorax.in_lobe(points[:, 0], points[:, 1], points[:, 2], lobe) > depth
    return points[keep][:count]


def _draw_fissures(canvas: Canvas, thorax: Thorax, side: str) -> None:
    mask = thorax.lung_alpha * thorax.side_mask(canvas, side)
    oblique, horizontal = thorax.fissure_fields(canvas.x, canvas.y, canvas.z, side)
    thickness = np.float32(max(canvas.pixel, 0.6 * canvas.step))
    sheet = np.clip(1.0 - np.abs(oblique) / thickness, 0.0, 1.0) * np.float32(1.6 / thickness)
    if side == "right":
        minor = (
            np.clip(1.0 - np.abs(horizontal) / thickness, 0.0, 1.0)
            * (oblique > 0)
            * np.float32(1.6 / thickness)
        )
        sheet = np.maximum(sheet, minor)
    canvas.hu += 260.0 * mask * sheet


def _draw_tree(
    canvas: Canvas, thorax: Thorax, root: np.ndarray, targets: np.ndarray, root_radius: float
) -> None:
    """Grow a tree from the root through the targets, nearest first, with radii after Murray's law."""
    order = np.argsort(((targets - root) ** 2).sum(1))
    nodes = np.vstack([root[None], targets[order]]).astype(np.float64)
    parent = np.zeros(len(nodes), int)
    for i in range(1, len(nodes)):
        gap = np.sqrt(((nodes[:i] - nodes[i]) ** 2).sum(1))
        reach = np.sqrt(((nodes[:i] - root) ** 2).sum(1))
        parent[i] = int(np.argmin(gap + 0.35 * reach))
    leaves = np.zeros(len(nodes))
    leaves[np.setdiff1d(np.arange(len(nodes)), parent[1:])] = 1.0
    for i in range(len(nodes) - 1, 0, -1):
        leaves[parent[i]] += leaves[i]
    radius = np.maximum(root_radius * (leaves / leaves[0]) ** 0.42, 1.05)
    for i in range(1, len(nodes)):
        p = parent[i]
        draw_path(
            canvas,
            [nodes[p], nodes[i]],
            [min(radius[p], radius[i] * 1.35), radius[i]],
            38.0,
            thorax.lung_alpha,
        )


_LOBAR_BRONCHI = {
    "right upper lobe": (30.0, -6.0, 38.0),
    "right middle lobe": (34.0, -34.0, -26.0),
    "right lower lobe": (28.0, 18.0, -52.0),
    "left upper lobe": (28.0, -16.0, 34.0),
    "left lower lobe": (26.0, 18.0, -50.0),
}
"""Course of the lobar bronchi from the hilum: outwards, to the back, upwards (mm)."""


def bronchial_paths(
    thorax: Thorax, m: Mediastinum, side: str, segments: bool = False
) -> list[tuple[list[np.ndarray], list[float]]]:
    """Centre lines and lumen radii of the lobar bronchi of a side, with segmental ones where wanted."""
    sign, hilum = thorax.side_sign(side), m.hila[side]
    paths: list[tuple[list[np.ndarray], list[float]]] = []
    for lobe in LOBES[side]:
        course = np.array(_LOBAR_BRONCHI[lobe]) * (sign, 1.0, 1.0)
        middle, end = hilum + 0.5 * course * (1.0, 0.6, 0.9), hilum + course
        paths.append(([hilum, middle, end], [4.2, 3.0, 2.2]))
        if segments:
            for turn in ((1.5, 1.7, 1.35), (1.9, 0.4, 1.3), (1.25, 0.9, 1.75)):
                paths.append(([end, hilum + course * turn], [2.2, 1.7]))
    return paths


def _draw_bronchi(canvas: Canvas, thorax: Thorax, m: Mediastinum, side: str) -> None:
    paths = bronchial_paths(thorax, m, side)
    for points, radii in paths:
        draw_path(canvas, points, [r + 1.6 for r in radii], 0.0, thorax.lung_alpha)
    for points, radii in paths:
        draw_path(canvas, points, radii, -950.0)
