"""How grainy a scan is: it tells a soft from a sharp reconstruction where no kernel does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.ct_rate.hounsfield import Rescale

TISSUE = (-50.0, 150.0)
_SLICES = 9
_MIN_PAIRS = 500
_TO_SIGMA = 1.4826 / np.sqrt(2.0)
"""From the median absolute difference of two equal noisy values to the standard deviation of one."""


def tissue_noise(view: NDArray[Any], rescale: Rescale) -> float | None:
    """Noise between neighbouring pixels of soft tissue, in HU; None where there is hardly any tissue.

    Args:
        view: Stored values ``[slices, rows, columns]``; nine slices of the middle half are looked at.
        rescale: Makes them HU.
    """
    count = len(view)
    differences = []
    for k in np.unique(np.linspace(count // 4, count - 1 - count // 4, _SLICES).astype(int)):
        hu = rescale(view[k])
        inside = (hu > TISSUE[0]) & (hu < TISSUE[1])
        differences.append(np.abs(np.diff(hu, axis=1))[inside[:, 1:] & inside[:, :-1]])
    found = np.concatenate(differences)
    return round(float(np.median(found) * _TO_SIGMA), 2) if found.size >= _MIN_PAIRS else None
