"""Statistics over sets of cases: each takes the chosen cases of both sets and gives one number.

Cases, not slices, are the units of every subset: the slices of one volume depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ctflow.errors import MetricError
from ctflow.metrics.frechet import Moments, frechet_from_features, frechet_from_moments

CASE_SUMS_UP_TO = 512
"""Widest features for which one covariance sum per case is kept; wider ones are recomputed per subset."""


class CaseStatistic(Protocol):
    """A number from the chosen cases of the fake and of the real set."""

    fake_cases: int
    real_cases: int

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The statistic over the cases with these indices."""
        ...

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Samples in the smaller of both chosen sets."""
        ...


class _Cases:
    """Features ``[n_case, d]`` per case, checked."""

    def __init__(self, features: Sequence[Tensor], name: str) -> None:
        if not features:
            raise MetricError(f"the {name} set has no cases", "at least one case")
        self.features = [f.double() for f in features]
        self.counts = torch.tensor([len(f) for f in features])
        self.width = self.features[0].shape[1]
        if any(f.ndim != 2 or f.shape[1] != self.width for f in self.features):
            raise MetricError(
                f"features of different widths in the {name} set", f"[n, {self.width}] in every case"
            )
        if not all(torch.isfinite(f).all() for f in self.features):
            raise MetricError(f"the {name} set holds NaN or infinite features", "finite features")

    def chosen(self, cases: Sequence[int]) -> Tensor:
        """All features ``[n, width]`` of these cases."""
        return torch.cat([self.features[i] for i in cases])

    def count(self, cases: Sequence[int]) -> int:
        """Number of features of these cases."""
        return int(self.counts[list(cases)].sum())


class _TwoSets:
    """Features of the cases of two sets; what subclasses make of chosen ones is their own.

    Args:
        fake: Per case, features ``[n_case, d]``.
        real: The same for the reference set.

    Raises:
        MetricError: A set without cases, features of different widths, or values that are not finite.
    """

    def __init__(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        self._fake, self._real = _Cases(fake, "fake"), _Cases(real, "real")
        if self._fake.width != self._real.width:
            raise MetricError(f"features of width {self._fake.width} and {self._real.width}", "one width")
        self.fake_cases, self.real_cases = len(fake), len(real)

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Samples in the smaller of both chosen sets."""
        return min(self._fake.count(fake), self._real.count(real))


class FrechetStatistic(_TwoSets):
    """Fréchet distance between chosen cases.

    Args:
        fake: Per case, features ``[n_case, d]`` (projected and whitened already where the backbone asks for
        it).
        real: The same for the reference set.
    """

    def __init__(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        super().__init__(fake, real)
        self.width = self._real.width
        self._sums: tuple[_CaseSums, _CaseSums] | None = None
        if self.width <= CASE_SUMS_UP_TO:
            centre = self._real.chosen(range(self.real_cases)).mean(0)
            self._sums = (_CaseSums(self._fake, centre), _CaseSums(self._real, centre))

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The distance in float64."""
        if self._sums is not None and self.samples(fake, real) > self.width:
            return float(frechet_from_moments(self._sums[0].of(fake), self._sums[1].of(real)))
        return float(frechet_from_features(self._fake.chosen(fake), self._real.chosen(real)))


class _CaseSums:
    def __init__(self, cases: _Cases, centre: Tensor) -> None:
        moments = [Moments.of(f - centre) for f in cases.features]
        self.count = torch.stack([m.count for m in moments])
        self.total = torch.stack([m.total for m in moments])
        self.outer = torch.stack([m.outer for m in moments])

    def of(self, chosen: Sequence[int]) -> Moments:
        """Summed moments of these cases."""
        rows = list(chosen)
        return Moments(self.count[rows].sum(), self.total[rows].sum(0), self.outer[rows].sum(0))


class KernelStatistic(_TwoSets):
    """Kernel distance (KID): unbiased squared MMD with the cubic kernel ``(x·y / d + 1)³`` over all samples.

    Bińkowski et al., "Demystifying MMD GANs" (2018). The kernel's sums are kept per pair of cases, so every
    subset of cases is exact and memory does not grow with the square of the samples.

    Args:
        fake: Per case, features ``[n_case, d]``.
        real: The same for the reference set.
    """

    def __init__(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        super().__init__(fake, real)
        self._ff = _kernel_sums(self._fake, self._fake, same=True)
        self._rr = _kernel_sums(self._real, self._real, same=True)
        self._fr = _kernel_sums(self._fake, self._real, same=False)

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The squared distance in float64; it may be slightly negative, being unbiased."""
        n, m = self._fake.count(fake), self._real.count(real)
        if min(n, m) < 2:
            raise MetricError(f"sets of {n} and {m} samples", "at least 2 in each")
        f, r = torch.tensor(list(fake)), torch.tensor(list(real))
        within = self._ff[f][:, f].sum() / (n * (n - 1)) + self._rr[r][:, r].sum() / (m * (m - 1))
        return float(within - 2 * self._fr[f][:, r].sum() / (n * m))


def _kernel_sums(first: _Cases, second: _Cases, same: bool) -> Tensor:
    """Sums of the kernel over every pair of cases ``[cases, cases]``; a sample is not paired with itself.

    Args:
        first: Rows.
        second: Columns.
        same: Whether both are one set: half of the pairs are computed, and mirrored.
    """
    everything = second.chosen(range(len(second.features))) / first.width
    owners = torch.repeat_interleave(torch.arange(len(second.features)), second.counts)
    starts = second.counts.cumsum(0) - second.counts
    sums = torch.zeros(len(first.features), len(second.features), dtype=torch.float64)
    for i, x in enumerate(first.features):
        begin = int(starts[i]) if same else 0
        kernel = (x @ everything[begin:].T).add_(1)
        sums[i].index_add_(0, owners[begin:], kernel.square().mul_(kernel).sum(0))
    if not same:
        return sums
    itself = [((x.square().sum(1) / first.width + 1) ** 3).sum() for x in first.features]
    return sums.triu() + sums.triu(1).T - torch.stack(itself).diag()


class PerCaseMean:
    """The mean of one number per case, as a statistic (CLIP score, rates); cases without it are NaN and left
    out.

    Args:
        values: One value per case.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()
        self.fake_cases = self.real_cases = len(values)

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Cases with a value."""
        return int(torch.isfinite(self.values[list(fake)]).sum())

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The mean over the chosen cases that have a value."""
        return float(self.values[list(fake)].nanmean())


class DiagonalFrechetStatistic(_TwoSets):
    """Fréchet distance between chosen cases of Gaussians whose features are taken as uncorrelated.

    ``|m₁ − m₂|² + Σ (s₁ − s₂)²``, for fewer samples than dimensions. The estimated covariances then span
    different directions in the two sets, and the full distance mostly measures this.

    Args:
        fake: Per case, features ``[n_case, d]``.
        real: The same for the reference set.
    """

    width = 1
    """Dimensions that the samples have to outnumber."""

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The distance in float64."""
        x, y = self._fake.chosen(fake), self._real.chosen(real)
        if min(len(x), len(y)) < 2:
            raise MetricError(f"sets of {len(x)} and {len(y)} samples", "at least 2 in each")
        means, spreads = x.mean(0) - y.mean(0), x.std(0) - y.std(0)
        return float(means.square().sum() + spreads.square().sum())


class MeanOf:
    """The mean of several statistics over the same cases.

    Args:
        parts: At least one.
    """

    def __init__(self, parts: Sequence[CaseStatistic]) -> None:
        self.parts = parts
        self.fake_cases, self.real_cases = parts[0].fake_cases, parts[0].real_cases

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Samples in the smallest chosen set of any part."""
        return min(part.samples(fake, real) for part in self.parts)

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """The mean over the chosen cases."""
        return sum(part(fake, real) for part in self.parts) / len(self.parts)
