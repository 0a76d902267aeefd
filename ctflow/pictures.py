"""Every picture of a volume, in radiological display: the patient's right on the left, the head up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctflow.files import replaced
from ctflow.types import HUVolume

Window = tuple[float, float]
SOFT_TISSUE: Window = (40.0, 400.0)
"""Centre and width in HU."""
LUNG: Window = (-600.0, 1500.0)
BONE: Window = (450.0, 1800.0)
WHOLE: Window = (0.0, 2000.0)
DIFFERENCE: Window = (0.0, 800.0)
"""Of differences: none is middle grey."""
GAP = 2


def apply_window(hu: NDArray[np.floating], window: Window) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a display window (centre, width)."""
    centre, width = window
    return (np.clip((hu - centre) / width + 0.5, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def axial(volume: HUVolume, index: int, window: Window, size: int) -> NDArray[np.uint8]:
    """One axial slice ``[size, size]``: anterior at the top, the patient's right on the left."""
    return _cut(volume.hu[index], window, size, size)


def coronal(volume: HUVolume, window: Window, width: int, row: int | None = None) -> NDArray[np.uint8]:
    """A coronal cut with true proportions: head at the top, the patient's right on the left."""
    plane = volume.hu[::-1, volume.hu.shape[1] // 2 if row is None else row]
    return _cut(plane, window, _height(plane, volume.spacing[0] / volume.spacing[2], width), width)


def sagittal(volume: HUVolume, window: Window, width: int, column: int | None = None) -> NDArray[np.uint8]:
    """A sagittal cut with true proportions: head at the top, anterior on the left."""
    plane = volume.hu[::-1, :, volume.hu.shape[2] // 2 if column is None else column]
    height = _height(plane, volume.spacing[0] / volume.spacing[1], width)
    return _cut(plane, window, height, width, mirrored=False)


def axial_and_coronal(volume: HUVolume, window: Window, size: int) -> NDArray[np.uint8]:
    """The middle axial slice beside the middle coronal one, ``size`` pixels wide each."""
    return beside([axial(volume, len(volume.hu) // 2, window, size), coronal(volume, window, size)])


def comparison(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Slices ``[N, H, W]`` in HU in three rows: the first ones, the second ones, second less first."""
    rows = ((first, WHOLE), (second, WHOLE), (second - first, DIFFERENCE))
    return stack([beside([_cut(hu, window, *hu.shape) for hu in slices]) for slices, window in rows])


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
        beside([axial(volume, round(float(s)), window, tile) for s in slices])
        for window in (LUNG, SOFT_TISSUE)
    ]
    side = (rows[0].shape[1] - 3 * GAP) // 4
    middle = volume.hu.shape[1] // 2
    cuts = beside(
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
    with replaced(path) as temporary:
        Image.fromarray(image).save(temporary, optimize=True)


def beside(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Images beside each other on black, aligned at the top, with a gap between."""
    return stack([tile.T for tile in tiles]).T


def _cut(
    plane: NDArray[np.floating], window: Window, height: int, width: int, mirrored: bool = True
) -> NDArray[np.uint8]:
    """The one way from a plane in HU to a picture; its columns run from the patient's left: mirrored."""
    image = apply_window(plane[:, ::-1] if mirrored else plane, window)
    if image.shape == (height, width):
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    )


def _height(plane: NDArray[np.floating], ratio: float, width: int) -> int:
    """Rows of a picture of this width whose pixels are square; ``ratio``: row spacing over column spacing."""
    return max(round(width * plane.shape[0] * ratio / plane.shape[1]), 1)
