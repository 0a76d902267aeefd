"""Fréchet distance between two sets of features: float64 always, exact below and above N = d.

``FD = |m1 - m2|² + tr(S1) + tr(S2) - 2 tr((S1 S2)^½)`` with unbiased covariances (ddof 1): Heusel et al.,
"GANs Trained by a Two Time-Scale Update Rule" (2017), eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.errors import MetricError


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a set of features, in float64; they add.

    Attributes:
        count: Number of samples, scalar.
        total: Sum of the samples ``[d]``.
        outer: Sum of the outer products ``[d, d]``.
    """

    count: Tensor
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Statistics of ``features [N, d]``."""
        x = features.double()
        return cls(torch.tensor(float(len(x)), dtype=torch.float64, device=x.device), x.sum(0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """Mean ``[d]``."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance ``[d, d]`` (ddof 1)."""
        mean = self.mean
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def mapped(self, matrix: Tensor) -> Moments:
        """Statistics of ``x @ matrix`` (``matrix [d, k]``)."""
        matrix = matrix.to(self.total)
        return Moments(self.count, self.total @ matrix, matrix.T @ self.outer @ matrix)


def frechet_from_moments(first: Moments, second: Moments) -> Tensor:
    """Fréchet distance of two sets given by their streamed sums.

    ``S1 = H Hᵀ`` from ``eigh``, then ``tr((S1 S2)^½) = Σ √eigvalsh(Hᵀ S2 H)``, negative rounding clamped.
    Directions in which S1 vanishes to rounding are left out of H: they add nothing, and their noise would
    enter as a square root.

    Args:
        first: One set, at least two samples.
        second: The other set, at least two samples.

    Returns:
        Scalar in float64, never below 0 by more than rounding.

    Raises:
        MetricError: Fewer than two samples, or sums that are not finite.
    """
    for name, moments in (("first", first), ("second", second)):
        if float(moments.count) < 2:
            raise MetricError(f"the {name} set has {int(moments.count)} samples", "at least 2")
        _check_finite(name, moments.outer)
    s1, s2 = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(s1)
    keep = values > values.max().clamp_min(0) * len(values) * torch.finfo(torch.float64).eps
    root = vectors[:, keep] * values[keep].sqrt()  # [d, r]
    cross = torch.linalg.eigvalsh(root.T @ s2 @ root).clamp_min(0).sqrt().sum()
    return _assemble(first.mean, second.mean, s1.trace(), s2.trace(), cross)


def frechet_from_features(first: Tensor, second: Tensor) -> Tensor:
    """Fréchet distance of two sets of kept features.

    Where a set has at most as many samples as dimensions, the trace term is the nuclear norm of
    ``Xc Ycᵀ / √((n-1)(m-1))``, which needs no covariance and is exact; else the streamed form is cheaper.

    Args:
        first: Features ``[n, d]``, n ≥ 2.
        second: Features ``[m, d]``, m ≥ 2.

    Returns:
        Scalar in float64.

    Raises:
        MetricError: Fewer than two samples, different widths, or values that are not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise MetricError(f"feature sets {tuple(first.shape)} and {tuple(second.shape)}", "[n, d] and [m, d]")
    for name, features in (("first", first), ("second", second)):
        if len(features) < 2:
            raise MetricError(f"the {name} set has {len(features)} samples", "at least 2")
        _check_finite(name, features)
    if min(len(first), len(second)) > first.shape[1]:
        # Centring on a common point first keeps the sums small: raw features can sit far from 0.
        centre = first.double().mean(0)
        return frechet_from_moments(Moments.of(first.double() - centre), Moments.of(second.double() - centre))
    x, y = first.double(), second.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    xc, yc = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    cross = torch.linalg.svdvals(xc @ yc.T).sum()
    return _assemble(mean_x, mean_y, xc.square().sum(), yc.square().sum(), cross)


def _assemble(mean1: Tensor, mean2: Tensor, trace1: Tensor, trace2: Tensor, cross: Tensor) -> Tensor:
    return (mean1 - mean2).square().sum() + trace1 + trace2 - 2 * cross


def _check_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise MetricError(f"the {name} set holds NaN or infinite features", "finite features")
