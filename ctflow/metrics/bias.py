"""Uncertainty of a Fréchet distance at finite N: extrapolation to infinity, and intervals by a jackknife
over cases.

Fréchet distances are biased upwards at small N, linearly in 1/N: Chong & Forsyth, "Effectively Unbiased FID
and Inception Score and Where to Find Them" (2020). Bootstrapping with replacement makes the bias worse;
leaving cases out does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ctflow.metrics.statistics import CaseStatistic

JACKKNIFE_GROUPS = 10
LEVEL = 0.95
PARTS = (2, 3, 5)
"""Subsets of the extrapolation: halves, and everything but a third or a fifth."""
MIN_CASES = 8
SAMPLES_PER_DIMENSION = 2


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; ``low`` and ``high`` are NaN where no interval can be given."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def share_interval(hits: int, number: int) -> Interval:
    """A share of ``number`` independent trials with its interval (Wilson 1927)."""
    found = stats.binomtest(hits, number).proportion_ci(LEVEL, method="wilson")
    return Interval(hits / number, float(found.low), float(found.high))


def jackknife(
    statistic: CaseStatistic, seed: int = 0, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """The statistic over all cases and its delete-a-group jackknife interval (none below ``MIN_CASES``).

    Args:
        statistic: A statistic over cases.
        seed: Of the groups.
        bounds: What the statistic cannot pass; the interval, symmetric by itself, is cut there.
    """
    fake, real = list(range(statistic.fake_cases)), list(range(statistic.real_cases))
    found = _jackknifed(lambda f, r: statistic(f, r), fake, real, statistic(fake, real), seed)
    return replace(found, low=_cut(found.low, *bounds), high=_cut(found.high, *bounds))


def _cut(value: float, low: float, high: float) -> float:
    return value if math.isnan(value) else min(max(value, low), high)


def extrapolate(statistic: CaseStatistic, width: int, repeats: int = 4, seed: int = 0) -> Interval | None:
    """The statistic at infinite N: the intercept of a line in 1/N over subsamples without replacement.

    Args:
        statistic: A Fréchet distance over cases.
        width: Dimension of its features; below about twice as many samples the bias is not linear in 1/N.
        repeats: Random partitions of the cases into halves, thirds and fifths.
        seed: Of the partitions.

    Returns:
        Value and interval, or None where there are too few cases or samples to say anything.
    """
    fake, real = list(range(statistic.fake_cases)), list(range(statistic.real_cases))
    if not enough_to_extrapolate(statistic, width):
        return None
    orders = _orders(len(fake), len(real), repeats, seed)

    def intercept(chosen_fake: Sequence[int], chosen_real: Sequence[int]) -> float:
        return _intercept(statistic, chosen_fake, chosen_real, orders)

    return _jackknifed(intercept, fake, real, intercept(fake, real), seed)


def enough_to_extrapolate(statistic: CaseStatistic, width: int) -> bool:
    """Whether half of the cases still hold twice as many samples as there are dimensions."""
    fake, real = range(statistic.fake_cases), range(statistic.real_cases)
    few = min(statistic.fake_cases, statistic.real_cases) < MIN_CASES
    return not few and statistic.samples(fake, real) // 2 >= SAMPLES_PER_DIMENSION * width


def reason_against_extrapolation(statistic: CaseStatistic, width: int) -> str:
    """Why ``extrapolate`` gives nothing here."""
    samples = statistic.samples(range(statistic.fake_cases), range(statistic.real_cases))
    cases = min(statistic.fake_cases, statistic.real_cases)
    needed = 2 * SAMPLES_PER_DIMENSION * width
    return f"{samples} samples of {cases} cases; extrapolation needs {needed} samples and {MIN_CASES} cases"


def _orders(
    fake: int, real: int, repeats: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Random orders of both sets; sets of one size share them, so that paired cases stay together."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(repeats):
        order = rng.permutation(fake)
        pairs.append((order, order if fake == real else rng.permutation(real)))
    return pairs


def _intercept(
    statistic: CaseStatistic,
    fake: Sequence[int],
    real: Sequence[int],
    orders: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> float:
    inverse, values, weights = (
        [1.0 / statistic.samples(fake, real)],
        [statistic(fake, real)],
        [len(PARTS) * 1.0],
    )
    for order_fake, order_real in orders:
        for parts in PARTS:
            f, r = _within(order_fake, fake), _within(order_real, real)
            for part in range(parts):
                if parts == 2:
                    subset_f, subset_r = f[part::2], r[part::2]
                else:
                    subset_f, subset_r = np.delete(f, np.s_[part::parts]), np.delete(r, np.s_[part::parts])
                chosen_f, chosen_r = subset_f.tolist(), subset_r.tolist()
                inverse.append(1.0 / statistic.samples(chosen_f, chosen_r))
                values.append(statistic(chosen_f, chosen_r))
                weights.append(1.0 / (parts * len(orders)))
    # Each subset size weighs the same; the whole set is known without the noise of a partition.
    slope_intercept = np.polyfit(inverse, values, 1, w=np.sqrt(weights))
    return float(slope_intercept[1])


def _within(order: NDArray[np.int64], chosen: Sequence[int]) -> NDArray[np.int64]:
    return order[np.isin(order, np.asarray(chosen))]


def _jackknifed(
    function: Callable[[Sequence[int], Sequence[int]], float],
    fake: list[int],
    real: list[int],
    value: float,
    seed: int,
) -> Interval:
    smaller = min(len(fake), len(real))
    if smaller < MIN_CASES:
        return Interval(value)
    groups = min(JACKKNIFE_GROUPS, smaller)
    order_fake, order_real = _orders(len(fake), len(real), 1, seed + 1)[0]
    left_out = []
    for group in range(groups):
        rest_fake = np.sort(np.delete(order_fake, np.s_[group::groups]))
        rest_real = np.sort(np.delete(order_real, np.s_[group::groups]))
        left_out.append(function(rest_fake.tolist(), rest_real.tolist()))
    error = math.sqrt((groups - 1) / groups * float(np.square(np.array(left_out) - np.mean(left_out)).sum()))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, groups - 1)) * error
    return Interval(value, value - half, value + half)
