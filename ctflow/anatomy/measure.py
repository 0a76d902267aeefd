"""The front door: a HU volume in, a ``Measurement`` out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.airways import find_trachea
from ctflow.anatomy.body import describe_body, find_body, find_spine
from ctflow.anatomy.calcium import measure_calcium, metal_ml
from ctflow.anatomy.consolidation import find_consolidation
from ctflow.anatomy.grid import Grid, Mask, working_grid
from ctflow.anatomy.heart import measure_heart, pericardial_fluid, without_fluid
from ctflow.anatomy.lungs import find_air, split_lungs
from ctflow.anatomy.nodules import find_nodules
from ctflow.anatomy.pleura import find_fluid, muscle_hu, tissue_darkness, volumes_ml
from ctflow.anatomy.ribs import count_ribs
from ctflow.anatomy.thorax import Polar, blood_hu, to_voxels, trace_wall
from ctflow.anatomy.types import SIDES, Calcification, Heart, Lungs, Measurement, Nodule
from ctflow.types import HUVolume

EMPHYSEMA_HU = -900.0
MUCH_PERICARDIAL_ML = 200.0
BELOW_USUAL_LUNG_HU = 75.0
"""Emphysema is darker than EMPHYSEMA_HU and than the lung of its slice by this much."""


WALL_ROOM_MM = 32.0
BACK_ROOM_MM = 14.0
BELOW_ROOM_MM = 28.0
"""Beyond the lungs' box: the chest wall, fluid behind the spine's centre, fluid below the lungs."""


@dataclass(frozen=True)
class Chest:
    """The part of the working grid that holds the chest.

    Attributes:
        grid: Its voxels.
        body: Filled body.
        lungs: Aerated lung by side.
        spine: ``[S, 2]`` row and column of the spine.
    """

    grid: Grid
    body: Mask
    lungs: dict[str, Mask]
    spine: NDArray[np.float64]

    @cached_property
    def lung(self) -> Mask:
        """Aerated lung of both sides."""
        return self.lungs["left"] | self.lungs["right"]


@dataclass(frozen=True)
class Segmentation:
    """The masks a measurement rests on, ``[S, R, C]`` of the chest's part of the working grid; for overlays.

    Attributes:
        box: That part, in voxels of the working grid.
        grid: Its voxels.
        body: Filled body.
        lungs: Aerated lung by side.
        wall: Inside of the rib cage.
        fluid: Pleural fluid by side.
        dense: Consolidation by side.
        heart: Heart shadow.
    """

    box: tuple[slice, slice, slice]
    grid: Grid
    body: Mask
    lungs: dict[str, Mask]
    wall: Mask
    fluid: dict[str, Mask]
    dense: dict[str, Mask]
    heart: Mask


def _nothing() -> None:
    """What is called where nothing is to be done."""


def measure(volume: HUVolume, between: Callable[[], None] = _nothing) -> Measurement:
    """Read the anatomy and the findings that can be read from HU alone.

    Args:
        volume: A chest CT, real, phantom or generated; any in-plane size, 1-5 mm slices work best.
        between: Called between organs, several times a second; its exception ends the measuring.

    Returns:
        The measurement. What is not there is reported as absent, never raised.

    Raises:
        CTFlowError: A spacing that gives slices no body part's size.
    """
    return segment(volume, between)[0]


def segment(volume: HUVolume, between: Callable[[], None] = _nothing) -> tuple[Measurement, Segmentation]:
    """``measure`` with the masks it rests on."""
    whole = working_grid(volume)
    between()
    body = find_body(whole)
    between()
    spine, line = find_spine(whole, body)
    between()
    trachea, lumen = find_trachea(whole, body, line)
    between()
    air = find_air(whole, body, lumen, line)
    between()
    lungs = split_lungs(whole, air, body, line)
    between()
    box = _chest_box(whole, body, lungs, line)
    chest = Chest(
        grid=whole.crop(box),
        body=body[box],
        lungs={side: lungs[side][box] for side in SIDES},
        spine=line[box[0]] - [box[1].start, box[2].start],
    )
    inside = _inside_chest(chest, between)
    measurement = Measurement(
        shape=volume.hu.shape,  # type: ignore[arg-type]
        spacing=volume.spacing,
        body=describe_body(whole, body),
        lungs=_describe_lungs(chest, inside.fluid, inside.dense),
        spine=spine,
        ribs=count_ribs(chest.grid, inside.polar, chest.lung),
        heart=inside.heart,
        trachea=trachea,
        effusion_ml=volumes_ml(chest.grid, inside.fluid),
        consolidation_ml=volumes_ml(chest.grid, inside.dense),
        nodules=inside.nodules,
        calcification=inside.calcification,
        metal_ml=metal_ml(whole, body),
    )
    masks = Segmentation(
        box, chest.grid, chest.body, chest.lungs, inside.wall, inside.fluid, inside.dense, inside.shadow
    )
    return measurement, masks


@dataclass(frozen=True)
class _Inside:
    """The findings within the rib cage."""

    polar: Polar
    wall: Mask
    fluid: dict[str, Mask]
    dense: dict[str, Mask]
    heart: Heart
    shadow: Mask
    nodules: tuple[Nodule, ...]
    calcification: Calcification


def _inside_chest(chest: Chest, between: Callable[[], None]) -> _Inside:
    """Wall, fluid, consolidation, heart, nodules and calcium, each on what was found before it."""
    grid, lungs, lung, spine = chest.grid, chest.lungs, chest.lung, chest.spine
    polar = trace_wall(grid, chest.body, lung, spine)
    rays = to_voxels(grid, polar)
    wall = rays.radius < rays.wall
    muscle = muscle_hu(grid, chest.body, wall)
    darkness = tissue_darkness(grid, lung, rays, muscle)
    between()
    fluid = find_fluid(grid, lung, rays, spine, muscle, darkness)
    wet = fluid["left"] | fluid["right"]
    between()
    dense = find_consolidation(grid, lung, wet, rays, spine, muscle)
    space = {side: lungs[side] | fluid[side] | dense[side] for side in SIDES}
    between()
    heart, shadow = measure_heart(grid, lungs, space, spine, polar, muscle)
    heart = replace(
        heart, pericardial_fluid_ml=pericardial_fluid(grid, shadow, lung, spine, muscle, darkness)
    )
    if heart.pericardial_fluid_ml >= MUCH_PERICARDIAL_ML:
        heart = without_fluid(grid, heart, shadow, darkness)
    exclude = wet | dense["left"] | dense["right"]
    between()
    nodules = find_nodules(grid, lungs, exclude, rays, spine)
    blood = blood_hu(grid, lung, spine)
    between()
    calcification = measure_calcium(grid, chest.body, shadow, rays, spine, blood, lung)
    return _Inside(polar, wall, fluid, dense, heart, shadow, nodules, calcification)


def _chest_box(
    grid: Grid, body: Mask, lungs: dict[str, Mask], spine: NDArray[np.float64]
) -> tuple[slice, slice, slice]:
    """The lungs with the chest wall around them, room for fluid behind, and a little below."""
    lung = lungs["left"] | lungs["right"]
    if not lung.any():
        return slice(0, lung.shape[0]), slice(0, lung.shape[1]), slice(0, lung.shape[2])
    z, y, x = ndimage.find_objects(lung.astype(np.int8))[0]
    sz, sy, sx = grid.spacing
    center = spine[z, 1].mean()
    half = max(center - x.start, x.stop - center) + WALL_ROOM_MM / sx
    back = max(y.stop + WALL_ROOM_MM / sy, spine[z, 0].max() + (BACK_ROOM_MM + WALL_ROOM_MM) / sy)
    low = np.array([z.start - BELOW_ROOM_MM / sz, y.start - WALL_ROOM_MM / sy, center - half])
    high = np.array([z.stop + 1, back, center + half])
    first = np.clip(np.floor(low), 0, None).astype(int)
    last = np.minimum(np.ceil(high), lung.shape).astype(int)
    return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])


def _describe_lungs(chest: Chest, fluid: dict[str, Mask], dense: dict[str, Mask]) -> Lungs:
    """Volumes with vessels and spots filled in, mean HU, and the share of very dark lung."""
    grid, lungs = chest.grid, chest.lungs
    aerated, hull, mean = {}, {}, {}
    for side in SIDES:
        filled = ndimage.binary_closing(lungs[side], grid.disc(5.0)) & ~fluid[side] & ~dense[side]
        aerated[side] = float(filled.sum()) * grid.voxel_ml
        hull[side] = aerated[side] + float((fluid[side] | dense[side]).sum()) * grid.voxel_ml
        mean[side] = float(grid.hu[lungs[side]].mean()) if lungs[side].any() else 0.0
    return Lungs(aerated, hull, mean, _dark_share(grid, chest.lung))


def _dark_share(grid: Grid, lung: Mask) -> float:
    """Share of the lung far darker than the rest of its slice, so that a shifted block counts for nothing."""
    core = ndimage.binary_erosion(lung)
    dark = 0
    for s in np.flatnonzero(core.any(axis=(1, 2))):
        values = grid.smooth[s][core[s]]
        dark += int((values < min(EMPHYSEMA_HU, float(np.median(values)) - BELOW_USUAL_LUNG_HU)).sum())
    return dark / max(int(core.sum()), 1)
