"""From a specification to a scan with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.types import HUVolume
from data_prep.phantom.abdomen import draw_abdomen
from data_prep.phantom.body import draw_body_wall, draw_neck
from data_prep.phantom.canvas import Array, Canvas
from data_prep.phantom.findings import draw_findings
from data_prep.phantom.lungs import draw_lungs
from data_prep.phantom.mediastinum import Mediastinum, build_mediastinum, draw_airways, draw_mediastinum
from data_prep.phantom.report import Report, report_for
from data_prep.phantom.scene import Scene
from data_prep.phantom.skeleton import draw_ribs, draw_shoulders, draw_spine, draw_sternum
from data_prep.phantom.spec import Acquisition, PhantomSpec
from data_prep.phantom.thorax import Thorax, build_thorax


@dataclass(frozen=True)
class Phantom:
    """A drawn phantom.

    Attributes:
        volume: The scan.
        report: Its report.
        truth: What is in it (see docs/phantoms.md).
        masks: uint8 masks ``[S, R, C]`` by name; empty unless asked for.
    """

    volume: HUVolume
    report: Report
    truth: dict[str, Any]
    masks: dict[str, NDArray[np.uint8]]


def make_phantom(spec: PhantomSpec, masks: bool = False) -> Phantom:
    """Draw a phantom: the same specification always gives the same voxels.

    Args:
        spec: From ``sample_spec``, edited or not.
        masks: Whether to give the masks of lungs, heart and findings too.

    Returns:
        Scan, report and truth.
    """
    canvas = Canvas.blank(spec.acquisition)
    thorax = build_thorax(canvas, spec.anatomy)
    draw_body_wall(canvas, thorax)
    draw_neck(canvas, thorax)
    draw_sternum(canvas, thorax)
    draw_shoulders(canvas, thorax)
    draw_ribs(canvas, thorax)
    draw_spine(canvas, thorax)
    mediastinum = build_mediastinum(canvas, thorax, spec.cardiothoracic_ratio)
    thorax.close_lungs(canvas)
    draw_abdomen(canvas, thorax)
    draw_lungs(canvas, thorax, mediastinum)
    draw_mediastinum(canvas, thorax, mediastinum)
    draw_airways(canvas, thorax, mediastinum)
    scene = Scene(canvas, thorax, mediastinum, wants_masks=masks)
    findings = draw_findings(scene, spec.findings, spec.reserved)
    hu = _scan(canvas.hu, spec.acquisition)
    truth = {
        "shape": list(hu.shape),
        "spacing": [round(v, 5) for v in spec.acquisition.spacing],
        "coverage": _coverage(spec, thorax),
        "anatomy": _anatomy_truth(spec, canvas, thorax, mediastinum),
        "findings": findings,
    }
    drawn = {name: (alpha > 0.5).astype(np.uint8) for name, alpha in scene.masks.items()}
    if masks:
        for side in ("left", "right"):
            drawn[f"lung_{side}"] = (thorax.lung_alpha * thorax.side_mask(canvas, side) > 0.5).astype(
                np.uint8
            )
    return Phantom(HUVolume(hu, spec.acquisition.spacing), report_for(spec), truth, drawn)


def _scan(hu: Array, acquisition: Acquisition) -> Array:
    """Kernel and noise of the scanner; result rounded to whole HU."""
    rng = np.random.default_rng(acquisition.seed)
    soft = np.float32(0.22 * (1.0 - acquisition.sharpness))
    out = hu
    for axis in (1, 2):
        out = _smooth(out, axis, soft)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    grain = np.float32(0.28 * (1.0 - 0.7 * acquisition.sharpness))
    for axis in (1, 2):
        noise = _smooth(noise, axis, grain)
    kept = (1 - 2 * grain) ** 2 + 2 * grain**2
    out = out + noise * np.float32(acquisition.noise_hu / kept)
    return np.clip(np.rint(out), -1024, 3071).astype(np.float32)


def _smooth(values: Array, axis: int, share: np.float32) -> Array:
    """Three-tap blur along one axis: ``share`` to each neighbour."""
    out = values * (1 - 2 * share)
    front = [slice(None)] * 3
    back = [slice(None)] * 3
    front[axis], back[axis] = slice(1, None), slice(None, -1)
    out[tuple(front)] += share * values[tuple(back)]
    out[tuple(back)] += share * values[tuple(front)]
    edge = [slice(None)] * 3
    for place in (0, -1):
        edge[axis] = place  # type: ignore[call-overload]
        out[tuple(edge)] += share * values[tuple(edge)]
    return out


def _coverage(spec: PhantomSpec, thorax: Thorax) -> dict[str, Any]:
    acquisition = spec.acquisition
    complete = acquisition.bottom_z <= thorax.base_z and acquisition.top_z >= spec.anatomy.apex_z
    return {
        "bottom_mm": round(acquisition.bottom_z, 1),
        "top_mm": round(acquisition.top_z, 1),
        "lungs_complete": bool(complete),
    }


def _anatomy_truth(spec: PhantomSpec, canvas: Canvas, thorax: Thorax, m: Mediastinum) -> dict[str, Any]:
    volumes = {
        side: round(float((thorax.lung_alpha * thorax.side_mask(canvas, side)).sum()) * canvas.voxel_ml, 1)
        for side in ("left", "right")
    }
    middle = canvas.hu.shape[0] // 2
    columns = np.nonzero((canvas.hu[middle] > -500).any(0))[0]
    spine = canvas.index_of(
        (thorax.spine_x[middle, 0, 0], thorax.spine_y[middle, 0, 0], canvas.z[middle, 0, 0])
    )
    top_z = min(float(canvas.z[-1, 0, 0]), float(m.trachea[0][2]))
    top = [np.interp(-top_z, -m.trachea[:, 2], m.trachea[:, axis]) for axis in (0, 1)]
    return {
        "lung_volume_ml": volumes,
        "body_width_mm": round(float(np.ptp(columns) + 1) * canvas.pixel, 1) if len(columns) else 0.0,
        "heart_width_mm": round(m.heart_width, 1),
        "thorax_width_mm": round(2 * float(thorax.width.max()), 1),
        "spine_center_voxel": spine[1:],
        "trachea": {
            "top_voxel": canvas.index_of((top[0], top[1], top_z)),
            "bottom_voxel": canvas.index_of(m.trachea[-1]),
            "diameter_mm": round(2 * spec.anatomy.trachea_radius, 1),
        },
    }
