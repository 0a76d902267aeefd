"""Subsets of cases, the kernel distance, extrapolation and intervals."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from ctflow.metrics import MetricError, frechet_from_features
from ctflow.metrics.bias import extrapolate, jackknife, share_interval
from ctflow.metrics.statistics import FrechetStatistic, KernelStatistic, PerCaseMean

WIDTH = 12


def gaussians(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two known Gaussians: mean, covariance, mean, covariance."""
    generator = torch.Generator().manual_seed(seed)
    mixes = [
        torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5 for _ in range(2)
    ]
    means = [torch.zeros(WIDTH, dtype=torch.float64), torch.full((WIDTH,), 0.3, dtype=torch.float64)]
    return means[0], mixes[0] @ mixes[0].T, means[1], mixes[1] @ mixes[1].T


def cases(mean, covariance, number: int, per_case: int, seed: int) -> list[torch.Tensor]:
    distribution = torch.distributions.MultivariateNormal(mean, covariance + 1e-9 * torch.eye(WIDTH))
    torch.manual_seed(seed)
    return list(distribution.sample((number, per_case)))


def test_known_gaussians_lie_in_the_extrapolated_interval_where_the_raw_value_is_biased():
    mean1, cov1, mean2, _ = gaussians(0)
    parameters = (mean1, cov1, mean2, 1.2 * cov1)
    # The covariances commute, so that the trace term has a closed form.
    truth = float((mean1 - mean2).square().sum() + (2.2 - 2 * 1.2**0.5) * cov1.trace())
    raw_errors, errors = [], []
    for seed in range(3):
        fake, real = cases(*parameters[:2], 40, 5, 10 + seed), cases(*parameters[2:], 40, 5, 20 + seed)
        statistic = FrechetStatistic(fake, real)
        raw, infinite = jackknife(statistic), extrapolate(statistic, WIDTH)
        assert infinite is not None and truth in infinite
        raw_errors.append(raw.value - truth)
        errors.append(infinite.value - truth)
    assert min(raw_errors) > 0
    assert abs(np.mean(errors)) < 0.5 * np.mean(raw_errors)


def test_subsets_equal_the_distance_of_the_chosen_features():
    parameters = gaussians(3)
    fake, real = cases(*parameters[:2], 9, 7, 1), cases(*parameters[2:], 9, 7, 2)
    statistic = FrechetStatistic(fake, real)
    chosen = [0, 3, 4, 8]
    direct = frechet_from_features(torch.cat([fake[i] for i in chosen]), torch.cat([real[i] for i in chosen]))
    assert statistic(chosen, chosen) == pytest.approx(float(direct), rel=1e-9)


def test_kernel_distance_is_torchmetrics_on_all_samples():
    parameters = gaussians(4)
    fake, real = cases(*parameters[:2], 6, 8, 3), cases(*parameters[2:], 6, 8, 4)
    statistic = KernelStatistic(fake, real)
    everything = list(range(6))
    assert statistic(everything, everything) == pytest.approx(
        float(poly_mmd(torch.cat(real), torch.cat(fake))), rel=1e-9
    )
    some = [1, 2, 5]
    expected = poly_mmd(torch.cat([real[i] for i in some]), torch.cat([fake[i] for i in some]))
    assert statistic(some, some) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_of_equal_distributions_is_around_zero():
    parameters = gaussians(5)
    interval = jackknife(
        KernelStatistic(cases(*parameters[:2], 30, 6, 5), cases(*parameters[:2], 30, 6, 6)), seed=1
    )
    assert 0.0 in interval


def test_too_few_cases_give_no_interval_and_no_extrapolation():
    parameters = gaussians(6)
    few = FrechetStatistic(cases(*parameters[:2], 5, 40, 7), cases(*parameters[2:], 5, 40, 8))
    assert math.isnan(jackknife(few).low)
    assert extrapolate(few, WIDTH) is None
    thin = FrechetStatistic(cases(*parameters[:2], 20, 2, 7), cases(*parameters[2:], 20, 2, 8))
    assert extrapolate(thin, WIDTH) is None  # half of the cases hold fewer than 2 × 12 samples


def test_mean_per_case_matches_the_classical_interval():
    values = torch.from_numpy(np.random.default_rng(0).normal(5, 2, 50))
    interval = jackknife(PerCaseMean(values))
    classical = 1.96 * float(values.std()) / 50**0.5
    assert interval.value == pytest.approx(float(values.mean()))
    assert 0.5 * classical < interval.high - interval.value < 2.5 * classical


def test_nan_and_mixed_widths_are_errors():
    good = torch.zeros(4, 3)
    with pytest.raises(MetricError, match="NaN"):
        FrechetStatistic([good, torch.full((2, 3), float("nan"))], [good])
    with pytest.raises(MetricError, match="width"):
        KernelStatistic([good], [torch.zeros(4, 2)])


def test_the_interval_of_a_share() -> None:
    found = share_interval(9, 10)
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.9, 0.596, 0.982)  # Newcombe 1998
