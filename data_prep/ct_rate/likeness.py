"""Volumes that show one patient without a common name: copies, and reconstructions of one scan.

A coarse picture of each volume (means over 30 mm of slices and an 8 × 8 grid) is compared from the lowest
slice up. Two reconstructions of one scan with one field of view differ by a few HU in it (1.4 on a 1 mm and a
5 mm series of a real chest), two patients by far more (300 and above on six real scans).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLAB_MM = 30.0
GRID = 8
ALIKE_HU = 20.0
"""Most root mean square difference of two coarse pictures of one patient."""
MIN_SLABS = 3
MAX_LENGTH_RATIO = 1.25
_KEY = MIN_SLABS * GRID**2


def coarse_picture(hu: NDArray[np.int16], z_mm: float) -> list[int]:
    """Mean HU of slabs, rows and columns, flat (``GRID²`` numbers per slab), for the journal.

    Args:
        hu: Int16 HU ``[slices, rows, columns]``, S,P,R; rows and columns multiples of 16.
        z_mm: Millimetres between slices.
    """
    slab = max(1, round(SLAB_MM / z_mm))
    count = len(hu) // slab
    cells = hu[: count * slab].reshape(count, slab, GRID, hu.shape[1] // GRID, GRID, hu.shape[2] // GRID)
    return np.rint(cells.mean((1, 3, 5), dtype=np.float64)).astype(int).ravel().tolist()


def alike(one: ArrayLike, other: ArrayLike) -> bool:
    """Whether two coarse pictures show one patient; too short or too unequal ones never do."""
    first, second = np.asarray(one), np.asarray(other)
    slabs = sorted((first.size // GRID**2, second.size // GRID**2))
    if slabs[0] < MIN_SLABS or slabs[1] > MAX_LENGTH_RATIO * slabs[0]:
        return False
    common = slabs[0] * GRID**2
    difference = first[:common] - second[:common]
    return float(np.sqrt(np.mean(np.square(difference)))) <= ALIKE_HU


_T = TypeVar("_T")


@dataclass
class Looks(Generic[_T]):
    """Coarse pictures of what was seen so far, searched without comparing each with each.

    Attributes:
        owners: What each picture belongs to.
    """

    owners: list[_T] = field(default_factory=list)
    _pictures: list[NDArray[np.int_]] = field(default_factory=list)
    _lowest: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, _KEY), np.float32))

    def add(self, picture: ArrayLike, owner: _T) -> None:
        """Remember a picture; too short ones are never found."""
        flat = np.asarray(picture)
        if flat.size < _KEY:
            return
        if len(self.owners) == len(self._lowest):
            self._lowest = np.concatenate(
                [self._lowest, np.empty((max(64, len(self._lowest)), _KEY), np.float32)]
            )
        self._lowest[len(self.owners)] = flat[:_KEY]
        self.owners.append(owner)
        self._pictures.append(flat)

    def find(self, picture: ArrayLike) -> list[_T]:
        """Owners of the pictures that are alike, in the order in which they came."""
        flat = np.asarray(picture)
        if flat.size < _KEY or not self.owners:
            return []
        # Where the whole differs by at most ``ALIKE_HU``, the lowest slabs cannot differ by more than this.
        limit = ALIKE_HU**2 * flat.size
        near = np.square(self._lowest[: len(self.owners)] - flat[:_KEY]).sum(axis=1) <= limit
        return [self.owners[k] for k in np.flatnonzero(near) if alike(self._pictures[k], flat)]
