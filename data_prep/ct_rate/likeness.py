"""Volumes that show one patient without a common name: copies, and reconstructions of one scan.

Coarse pictures (means over 30 mm of slices and an 8 × 8 grid) are compared at offsets of 6 mm, since copies
are trimmed at either end. Two reconstructions of one scan with one field of view differ by a few HU (1.4 on
a 1 mm and a 5 mm series of a real chest), its copies trimmed by 3 to 27 mm by at most 27, those of eight
phantoms by at most 34: slabs between two others are interpolated. Of 220 phantoms no two differ by less
than 52.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLAB_MM = 30.0
GRID = 8
ALIKE_HU = 40.0
"""Most root mean square difference of two coarse pictures of one patient."""
MIN_SLABS = 3
MAX_LENGTH_RATIO = 1.25
STEPS = 5
"""Offsets per slab."""
MAX_OFFSET = 0.2
"""Greatest offset, as a part of the shorter volume."""
_KEY = 2
"""Slabs in the middle of a volume, which overlap at every offset."""


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
    first, second = _slabs(one), _slabs(other)
    shorter, longer = sorted((len(first), len(second)))
    if shorter < MIN_SLABS or longer > MAX_LENGTH_RATIO * shorter:
        return False
    reach = round(MAX_OFFSET * STEPS * shorter)
    for step in range(-reach, reach + 1):
        positions = np.arange(len(first)) * STEPS + step
        inside = (positions >= 0) & (positions <= (len(second) - 1) * STEPS)
        if inside.sum() < MIN_SLABS:
            continue
        difference = first[inside] - _at(second, positions[inside])
        if float(np.sqrt(np.mean(np.square(difference)))) <= ALIKE_HU:
            return True
    return False


def _slabs(picture: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(picture, np.float32).reshape(-1, GRID**2)


def _at(slabs: NDArray[np.float32], positions: NDArray[np.int_]) -> NDArray[np.float32]:
    """Slabs at places counted in ``1/STEPS``, interpolated between two."""
    below, part = np.divmod(positions, STEPS)
    weight = (part / np.float32(STEPS))[:, None].astype(np.float32)
    above = np.minimum(below + 1, len(slabs) - 1)
    return (1 - weight) * slabs[below] + weight * slabs[above]


_T = TypeVar("_T")


@dataclass
class Looks(Generic[_T]):
    """Coarse pictures of what was seen so far, searched without comparing each with each.

    Attributes:
        owners: What each picture belongs to.
    """

    owners: list[_T] = field(default_factory=list)
    _pictures: list[NDArray[np.float32]] = field(default_factory=list)
    _middles: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, _KEY * GRID**2), np.float32))

    def add(self, picture: ArrayLike, owner: _T) -> None:
        """Remember a picture; too short ones are never found."""
        slabs = _slabs(picture)
        if len(slabs) < MIN_SLABS:
            return
        if len(self.owners) == len(self._middles):
            more = np.empty((max(64, len(self._middles)), _KEY * GRID**2), np.float32)
            self._middles = np.concatenate([self._middles, more])
        first = (len(slabs) - _KEY) // 2
        self._middles[len(self.owners)] = slabs[first : first + _KEY].ravel()
        self.owners.append(owner)
        self._pictures.append(slabs)

    def find(self, picture: ArrayLike) -> list[_T]:
        """Owners of the pictures that are alike, in the order in which they came."""
        slabs = _slabs(picture)
        if len(slabs) < MIN_SLABS or not self.owners:
            return []
        places = np.arange((len(slabs) - _KEY) * STEPS + 1)
        windows = np.concatenate([_at(slabs, places + k * STEPS) for k in range(_KEY)], axis=1)
        middles = self._middles[: len(self.owners)]
        squares = np.square(windows).sum(axis=1)[:, None] + np.square(middles).sum(axis=1)
        # Where the whole differs by at most ``ALIKE_HU``, the middle cannot differ by more than this.
        near = (squares - 2 * windows @ middles.T).min(axis=0) <= ALIKE_HU**2 * slabs.size
        return [self.owners[k] for k in np.flatnonzero(near) if alike(self._pictures[k], slabs)]
