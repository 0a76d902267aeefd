"""Pleural effusion."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.phantom.scene import WHOLE, Scene
from data_prep.phantom.spec import Finding

FLUID_HU = 10.0
_MOST_OF_THE_LUNG = 0.6


def effusion(scene: Scene, finding: Finding) -> dict[str, Any]:
    """Fluid layers behind (supine), more at the base, climbs along the wall, collapses the lung above."""
    canvas, thorax = scene.canvas, scene.thorax
    assert finding.side and finding.volume_ml
    where = np.nonzero(thorax.lung_alpha * thorax.side_mask(canvas, finding.side) > 0)
    share = thorax.lung_alpha[where]
    depth = np.clip(thorax.lung[where], -60.0, 0.0)
    score = canvas.y[0, where[1], 0] - 0.25 * (canvas.z[where[0], 0, 0] - thorax.base_z)
    score += 17.0 * np.exp(depth / 8.0)  # the meniscus
    order = np.argsort(-score)
    total = np.cumsum(share[order]) * canvas.voxel_ml
    goal = min(finding.volume_ml, _MOST_OF_THE_LUNG * float(total[-1]))
    threshold = score[order[min(int(np.searchsorted(total, goal)), len(order) - 1)]]
    collapse = 5.0 + 9.0 * min(finding.volume_ml / 1000.0, 1.0)
    fluid = np.clip(0.5 + (score - threshold) / canvas.pixel, 0.0, 1.0) * share
    squeezed = np.clip(0.5 + (score - threshold + collapse) / 4.0, 0.0, 1.0) * share - fluid
    scene.occupy(where, np.clip(fluid + squeezed, 0, 1))
    if scene.reserve_only:
        return {}
    scene.fill_lung(where, 0.75 * squeezed, 30.0)
    scene.fill_lung(where, fluid, FLUID_HU)
    if scene.wants_masks:
        whole = np.zeros(canvas.hu.shape, np.float32)
        whole[where] = fluid
        scene.keep_mask(finding, WHOLE, whole)
    weight = fluid / max(float(fluid.sum()), 1e-6)
    center = [round(float((weight * axis).sum()), 1) for axis in where]
    return {"volume_ml": round(float(fluid.sum()) * canvas.voxel_ml, 1), "center_voxel": center}
