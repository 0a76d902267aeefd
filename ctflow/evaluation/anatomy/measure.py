"""The measuring module's front door: a HU volume in, a ``Measurement`` out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.evaluation.anatomy.airways import find_trachea
from ctflow.evaluation.anatomy.body import describe_body, find_body, find_spine
from ctflow.evaluation.anatomy.calcium import measure_calcium
from ctflow.evaluation.anatomy.consolidation import find_consolidation
from ctflow.evaluation.anatomy.grid import Grid, Mask, working_grid
from ctflow.evaluation.anatomy.heart import measure_heart, pericardial_fluid, without_fluid
from ctflow.evaluation.anatomy.lungs import find_air, split_lungs
from ctflow.evaluation.anatomy.nodules import find_nodules
from ctflow.evaluation.anatomy.pleura import find_fluid, muscle_hu, tissue_darkness, volumes_ml
from ctflow.evaluation.anatomy.ribs import count_ribs
from ctflow.evaluation.anatomy.thorax import Polar, blood_hu, to_voxels, trace_wall
from ctflow.evaluation.anatomy.types import SIDES, Lungs, Measurement
from ctflow.types import HUVolume

EMPHYSEMA_HU = -920.0
MUCH_PERICARDIAL_ML = 100.0
BELOW_USUAL_LUNG_HU = 70.0
"""Emphysema is darker than EMPHYSEMA_HU and than the patient's own lung by this much."""


@dataclass(frozen=True)
class Segmentation:
    """The masks a measurement rests on, in the working grid; for overlays and tests.

    Attributes:
        grid: The working grid.
        body: Filled body.
        lungs: Aerated lung by side.
        trachea: Lumen.
        spine: ``[S, 2]`` row and column of the spine.
        polar: Rays to the wall of the rib cage.
        wall: Voxels inside it.
        fluid: Pleural fluid by side.
        dense: Consolidation by side.
        heart: Heart shadow.
    """

    grid: Grid
    body: Mask
    lungs: dict[str, Mask]
    trachea: Mask
    spine: NDArray[np.float64]
    polar: Polar
    wall: Mask
    fluid: dict[str, Mask]
    dense: dict[str, Mask]
    heart: Mask


def measure(volume: HUVolume) -> Measurement:
    """Read the anatomy and the findings that can be read from HU alone.

    Args:
        volume: A chest CT, real, phantom or generated; any in-plane size, 1-5 mm slices work best.

    Returns:
        The measurement. What is not there is reported as absent, never raised.
    """
    return segment(volume)[0]


def segment(volume: HUVolume) -> tuple[Measurement, Segmentation]:
    """``measure`` with the masks it rests on."""
    grid = working_grid(volume)
    body = find_body(grid)
    spine, line = find_spine(grid, body)
    trachea, lumen = find_trachea(grid, body, line)
    lungs, _ = split_lungs(grid, find_air(grid, body, lumen), body, line)
    lung = lungs["left"] | lungs["right"]
    polar = trace_wall(grid, body, lung, line)
    rays = to_voxels(grid, polar)
    wall = rays.radius < rays.wall
    muscle = muscle_hu(grid, body, wall)
    darkness = tissue_darkness(grid, lung, rays, muscle)
    fluid = find_fluid(grid, lung, rays, line, muscle, darkness)
    wet = fluid["left"] | fluid["right"]
    dense = find_consolidation(grid, lung, wet, rays, line)
    space = {side: lungs[side] | fluid[side] | dense[side] for side in SIDES}
    heart, shadow = measure_heart(grid, lungs, space, line, polar)
    heart = replace(heart, pericardial_fluid_ml=pericardial_fluid(grid, shadow, lung, line, darkness))
    if heart.pericardial_fluid_ml >= MUCH_PERICARDIAL_ML:
        heart = without_fluid(grid, heart, shadow, darkness)
    exclude = wet | dense["left"] | dense["right"]
    carina = (trachea.path[-1][0] - (grid.factors[0] - 1) / 2) / grid.factors[0] if trachea.present else None
    nodules = find_nodules(grid, lungs, exclude, rays, line, carina)
    calcification, metal = measure_calcium(grid, body, shadow, rays, line, blood_hu(grid, lung, line), lung)
    measurement = Measurement(
        shape=volume.hu.shape,  # type: ignore[arg-type]
        spacing=volume.spacing,
        body=describe_body(grid, body),
        lungs=_describe_lungs(grid, lungs, fluid, dense),
        spine=spine,
        ribs=count_ribs(grid, polar, body, lung),
        heart=heart,
        trachea=trachea,
        effusion_ml=volumes_ml(grid, fluid),
        consolidation_ml=volumes_ml(grid, dense),
        nodules=nodules,
        calcification=calcification,
        metal_ml=metal,
    )
    return measurement, Segmentation(grid, body, lungs, lumen, line, polar, wall, fluid, dense, shadow)


def _describe_lungs(
    grid: Grid, lungs: dict[str, Mask], fluid: dict[str, Mask], dense: dict[str, Mask]
) -> Lungs:
    """Volumes with vessels and spots filled in, mean HU, and the share of very dark lung."""
    aerated, hull, mean = {}, {}, {}
    for side in SIDES:
        filled = ndimage.binary_closing(lungs[side], grid.disc(5.0)) & ~fluid[side] & ~dense[side]
        aerated[side] = float(filled.sum()) * grid.voxel_ml
        hull[side] = aerated[side] + float((fluid[side] | dense[side]).sum()) * grid.voxel_ml
        mean[side] = float(grid.hu[lungs[side]].mean()) if lungs[side].any() else 0.0
    values = grid.smooth[ndimage.binary_erosion(lungs["left"] | lungs["right"])]
    if values.size == 0:
        return Lungs(aerated, hull, mean)
    limit = min(EMPHYSEMA_HU, float(np.median(values)) - BELOW_USUAL_LUNG_HU)
    return Lungs(aerated, hull, mean, float((values < limit).mean()))
