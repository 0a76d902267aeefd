"""Precision, recall, density and coverage: fidelity and variety, separated by nearest neighbours.

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019); Naeem et
al., "Reliable Fidelity and Diversity Metrics for Generative Models" (2020). One sample per case: slices of
one volume lie near each other and would be each other's neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.errors import MetricError

NEIGHBOURS = 5
NAMES = ("precision", "recall", "density", "coverage")


class NeighbourStatistic:
    """One of the four over chosen cases, from distances that are computed once.

    - precision: share of scored samples within the ball of a real one;
    - recall: share of real samples within the ball of a scored one;
    - density: how many real balls a scored sample lies in, over the neighbours; may exceed 1;
    - coverage: share of real balls that hold a scored sample.

    A ball reaches to the sample's ``neighbours``-th nearest in its own set.

    Args:
        name: Which.
        fake: One sample per case ``[N, d]``.
        real: The same for the reference set ``[M, d]``.
        neighbours: See above.

    Raises:
        MetricError: Sets of no more than ``neighbours`` cases, other shapes, or values that are not finite.
    """

    def __init__(self, name: str, fake: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> None:
        assert name in NAMES
        if fake.ndim != 2 or fake.shape[1:] != real.shape[1:]:
            raise MetricError(f"features {tuple(fake.shape)} and {tuple(real.shape)}", "[N, d] and [M, d]")
        if min(len(fake), len(real)) <= neighbours:
            raise MetricError(f"{len(fake)} and {len(real)} cases", f"more than {neighbours} in each set")
        if not (torch.isfinite(fake).all() and torch.isfinite(real).all()):
            raise MetricError("features that are NaN or infinite", "finite features")
        x, y = fake.double(), real.double()
        self.name, self.neighbours = name, neighbours
        self.fake_cases, self.real_cases = len(fake), len(real)
        self._ff, self._rr, self._fr = (torch.cdist(a, b) for a, b in ((x, x), (y, y), (x, y)))

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Cases in the smaller of both chosen sets."""
        return min(len(fake), len(real))

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The share over the chosen cases."""
        f, r = torch.tensor(list(fake)), torch.tensor(list(real))
        between = self._fr[f][:, r]
        if self.name == "recall":
            return float((between <= self._radii(self._ff, f)[:, None]).any(0).double().mean())
        inside = between <= self._radii(self._rr, r)
        if self.name == "precision":
            return float(inside.any(1).double().mean())
        if self.name == "density":
            return float(inside.double().sum(1).mean() / self.neighbours)
        return float(inside.any(0).double().mean())

    def _radii(self, distances: Tensor, chosen: Tensor) -> Tensor:
        """Distance of each chosen sample to its neighbour; the nearest is the sample itself."""
        return distances[chosen][:, chosen].kthvalue(self.neighbours + 1, dim=1).values
