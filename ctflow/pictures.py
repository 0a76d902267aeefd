"""Pictures of a volume: axial slices, a coronal and a sagittal cut, in radiological display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctflow.types import HUVolume

Window = tuple[float, float]
SOFT_TISSUE: Window = (40.0, 400.0)
"""Centre and width in HU."""
LUNG: Window = (-600.0, 1500.0)
WHOLE: Window = (0.0, 2000.0)
GAP = 2


def apply_window(hu: NDArray[np.floating], window: Window) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a display window (centre, width)."""
    centre, width = window
    return (np.clip((hu - centre) / width + 0.5, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def axial(volume: HUVolume, index: int, window: Window, size: int) -> NDArray[np.uint8]:
    """One axial slice ``[size, size]``: anterior at the top, the patient's right on the left."""
    return _resize(apply_window(volume.hu[index, :, ::-1], window), size, size)


def coronal(volume: HUVolume, window: Window, width: int, row: int | None = None) -> NDArray[np.uint8]:
    """A coronal cut with true proportions: head at the top, the patient's right on the left."""
    plane = volume.hu[::-1, volume.hu.shape[1] // 2 if row is None else row, ::-1]
    height = round(width * plane.shape[0] * volume.spacing[0] / (plane.shape[1] * volume.spacing[2]))
    return _resize(apply_window(plane, window), max(height, 1), width)


def sagittal(volume: HUVolume, window: Window, width: int, column: int | None = None) -> NDArray[np.uint8]:
    """A sagittal cut with true proportions: head at the top, anterior on the left."""
    plane = volume.hu[::-1, :, volume.hu.shape[2] // 2 if column is None else column]
    height = round(width * plane.shape[0] * volume.spacing[0] / (plane.shape[1] * volume.spacing[1]))
    return _resize(apply_window(plane, window), max(height, 1), width)


def montage(volume: HUVolume, columns: int = 5, tile: int = 160) -> NDArray[np.uint8]:
    """A page of one volume: axial slices from bottom to top in both windows, then coronal and sagittal cuts.

    Args:
        volume: The volume.
        columns: Axial slices shown, evenly spaced.
        tile: Pixels of an axial tile's side.

    Returns:
        8-bit grey image ``[height, width]``.
    """
    slices = np.linspace(0.08, 0.92, columns) * (volume.hu.shape[0] - 1)
    rows = [
        _row([axial(volume, round(float(s)), window, tile) for s in slices]) for window in (LUNG, SOFT_TISSUE)
    ]
    side = (rows[0].shape[1] - 3 * GAP) // 4
    middle = volume.hu.shape[1] // 2
    cuts = _row(
        [
            coronal(volume, LUNG, side, middle),
            coronal(volume, SOFT_TISSUE, side, middle),
            sagittal(volume, LUNG, side, volume.hu.shape[2] // 4),
            sagittal(volume, SOFT_TISSUE, side),
        ]
    )
    return stack([*rows, cuts])


def stack(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images one below the other on black, left-aligned, with a gap between."""
    width = max(r.shape[1] for r in rows)
    page = np.zeros((sum(r.shape[0] for r in rows) + GAP * (len(rows) - 1), width), np.uint8)
    top = 0
    for row in rows:
        page[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + GAP
    return page


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an 8-bit image ``[H, W]`` or ``[H, W, 3]``; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, optimize=True)


def _row(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return stack([t.T for t in tiles]).T


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    )
