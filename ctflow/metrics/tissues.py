"""Shares of tissue in a volume, by HU alone: global properties that differ from patient to patient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AIR_HU = -400.0
"""Above it lies the body; what it encloses in a slice belongs to it."""
TISSUES = {
    "lung": (-np.inf, -500.0),
    "fat": (-200.0, -50.0),
    "soft tissue": (-30.0, 150.0),
    "bone": (250.0, np.inf),
}
"""HU of the tissues whose share of the body is measured."""


def tissue_shares(hu: NDArray[np.float32]) -> dict[str, float]:
    """Mean HU, share of the body's voxels, and shares of the body by tissue.

    Args:
        hu: ``[S, H, W]`` in HU.

    Returns:
        ``mean HU``; ``body`` and ``<tissue> of body``, 0 … 1.
    """
    body = np.stack([ndimage.binary_fill_holes(part) for part in hu > AIR_HU])
    voxels = max(int(body.sum()), 1)
    shares = {
        f"{name} of body": int((body & (hu > low) & (hu < high)).sum()) / voxels
        for name, (low, high) in TISSUES.items()
    }
    return {"mean HU": float(hu.mean()), "body": float(body.mean()), **shares}
