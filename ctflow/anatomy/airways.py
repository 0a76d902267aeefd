"""The trachea: an air column near the midline, followed from the top of the scan down to the carina."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.anatomy.grid import IN_PLANE_CROSS, Grid, Mask
from ctflow.anatomy.types import Trachea

LUMEN_HU = (-450.0, -600.0, -750.0)
"""Thresholds tried in turn: a thin wall towards a lung vanishes in the higher ones first."""

MIN_AREA_MM2, MAX_AREA_MM2 = 18.0, 800.0
"""The lumen of a tube in the trachea is at the lower end."""

MAX_ASPECT = 2.4
MAX_OFFSET_MM = 38.0
MAX_STEP_MM = 11.0
MIN_LENGTH_MM = 24.0


@dataclass(frozen=True)
class _Candidate:
    slice: int
    row: float
    column: float
    area_mm2: float
    level: int
    label: int


def find_trachea(grid: Grid, body: Mask, spine: NDArray[np.float64]) -> tuple[Trachea, Mask]:
    """The longest chain of round air spots in front of the spine, ending where it splits or is lost.

    Args:
        grid: Working grid.
        body: Filled body mask.
        spine: ``[S, 2]`` row and column of the spine.

    Returns:
        The trachea, and the mask of its lumen in the working grid.
    """
    labels, candidates = _candidates(grid, body, spine)
    chain = _above_carina(_longest_chain(candidates, grid), candidates, grid)
    mask = np.zeros(grid.hu.shape, dtype=bool)
    for spot in chain:
        mask[spot.slice] |= labels[spot.level][spot.slice] == spot.label
    length = (chain[0].slice - chain[-1].slice) * grid.spacing[0] if chain else 0.0
    if length < MIN_LENGTH_MM:
        return Trachea(present=False), np.zeros_like(mask)
    diameter = float(np.median([2.0 * np.sqrt(spot.area_mm2 / np.pi) for spot in chain]))
    path = tuple(grid.to_volume((spot.slice, spot.row, spot.column)) for spot in chain)
    return Trachea(present=True, path=path, length_mm=length, diameter_mm=diameter), mask


def _candidates(
    grid: Grid, body: Mask, spine: NDArray[np.float64]
) -> tuple[list[NDArray[np.int32]], list[list[_Candidate]]]:
    """Per slice, the round air spots in front of the spine, at every threshold."""
    slices = grid.hu.shape[0]
    pixel = grid.spacing[1] * grid.spacing[2]
    found: list[list[_Candidate]] = [[] for _ in range(slices)]
    all_labels = []
    for level, threshold in enumerate(LUMEN_HU):
        labels, count = ndimage.label((grid.hu < threshold) & body, IN_PLANE_CROSS)
        all_labels.append(labels)
        areas = np.bincount(labels.ravel(), minlength=count + 1) * pixel
        boxes = ndimage.find_objects(labels)
        for label, box in enumerate(boxes, start=1):
            if box is None or not MIN_AREA_MM2 <= areas[label] <= MAX_AREA_MM2:
                continue
            s = box[0].start
            height = (box[1].stop - box[1].start) * grid.spacing[1]
            width = (box[2].stop - box[2].start) * grid.spacing[2]
            if max(height, width) > MAX_ASPECT * min(height, width) or areas[label] < 0.45 * height * width:
                continue
            part = labels[box][0] == label
            rows, columns = np.nonzero(part)
            row, column = rows.mean() + box[1].start, columns.mean() + box[2].start
            ahead = (spine[s, 0] - row) * grid.spacing[1]
            if abs(column - spine[s, 1]) * grid.spacing[2] > MAX_OFFSET_MM or not 8.0 < ahead < 95.0:
                continue
            found[s].append(_Candidate(s, row, column, float(areas[label]), level, label))
    return all_labels, found


def _longest_chain(candidates: list[list[_Candidate]], grid: Grid) -> list[_Candidate]:
    """Link spots of neighbouring slices downwards; one missing slice is bridged."""
    best_score: dict[_Candidate, float] = {}
    came_from: dict[_Candidate, _Candidate | None] = {}
    _, sy, sx = grid.spacing
    for s in range(len(candidates) - 1, -1, -1):
        for spot in candidates[s]:
            score, origin = 1.0, None
            for gap in (1, 2):
                for above in candidates[s + gap] if s + gap < len(candidates) else ():
                    step = np.hypot((above.row - spot.row) * sy, (above.column - spot.column) * sx)
                    ratio = spot.area_mm2 / above.area_mm2
                    # Below the end of a tube the lumen is wider at once, in the same place.
                    end_of_tube = 2.2 <= ratio < 10.0 and step < 0.4 * MAX_STEP_MM
                    if not (end_of_tube or (0.45 < ratio < 2.2 and step <= MAX_STEP_MM)):
                        continue
                    value = best_score[above] + 1.0 - 0.03 * step - 0.3 * abs(np.log(ratio)) - 0.3 * (gap - 1)
                    if value > score:
                        score, origin = value, above
            best_score[spot], came_from[spot] = score, origin
    if not best_score:
        return []
    last: _Candidate | None = max(best_score, key=best_score.__getitem__)
    chain = []
    while last is not None:
        chain.append(last)
        last = came_from[last]
    return chain[::-1]


def _above_carina(
    chain: list[_Candidate], candidates: list[list[_Candidate]], grid: Grid
) -> list[_Candidate]:
    """Cut a chain where it runs into one main bronchus.

    There another air spot of like size lies beside it, and the two stand on either side of where the trachea
    came down; a bulla beside the trachea does not.
    """
    _, sy, sx = grid.spacing
    for position, spot in enumerate(chain):
        if position < len(chain) // 3:
            continue
        above = float(np.median([earlier.column for earlier in chain[max(0, position - 8) : position]]))
        for other in candidates[spot.slice]:
            aside = abs(other.column - spot.column) * sx
            level = abs(other.row - spot.row) * sy < 16.0 and other.area_mm2 > 0.35 * spot.area_mm2
            if level and 12.0 < aside < 60.0 and abs((other.column + spot.column) / 2 - above) * sx < 9.0:
                return chain[:position]
    return chain
