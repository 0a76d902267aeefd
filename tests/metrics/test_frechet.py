"""Fréchet distances against an independent implementation, closed forms and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ctflow.metrics.frechet import (
    MetricError,
    Moments,
    frechet_from_features,
    frechet_from_moments,
)


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def independent(x: torch.Tensor, y: torch.Tensor) -> float:
    """The textbook formula with SciPy's Schur-based matrix square root of the symmetrised product."""
    a, b = x.numpy(), y.numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(s1)
    half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(half @ s2 @ half).clip(0)).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1) + np.trace(s2) - 2 * cross)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 24), (30, 200, 48), (40, 25, 96), (64, 64, 64)])
def test_agrees_with_an_independent_implementation(n, m, d):
    x, y = features(n, d, 1), features(m, d, 2, 0.3)
    expected = independent(x, y)
    assert float(frechet_from_features(x, y)) == pytest.approx(expected, rel=1e-6)
    assert float(frechet_from_moments(Moments.of(x), Moments.of(y))) == pytest.approx(expected, rel=1e-6)


def test_agrees_with_scipy_sqrtm_on_well_conditioned_sets():
    x, y = features(300, 16, 3), features(300, 16, 4, 0.5)
    s1, s2 = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    mean = (x.mean(0) - y.mean(0)).square().sum()
    expected = float(mean + np.trace(s1) + np.trace(s2) - 2 * cross)
    assert float(frechet_from_features(x, y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(500, 32), (20, 256)])
def test_identical_sets_are_at_zero(n, d):
    x = 3.0 * features(n, d, 5) + 10.0
    assert abs(float(frechet_from_features(x, x.clone()))) < 1e-5
    assert abs(float(frechet_from_moments(Moments.of(x), Moments.of(x)))) < 1e-5


def test_symmetric_and_invariant_to_rotation():
    x, y = features(40, 64, 6), features(120, 64, 7, 0.2)
    rotation, _ = torch.linalg.qr(features(64, 64, 8))
    value = float(frechet_from_features(x, y))
    assert float(frechet_from_features(y, x)) == pytest.approx(value, rel=1e-9)
    assert float(frechet_from_features(x @ rotation, y @ rotation)) == pytest.approx(value, rel=1e-9)


def test_sums_add_over_parts():
    x, y = features(100, 12, 9), features(90, 12, 10)
    whole = frechet_from_moments(Moments.of(x), Moments.of(y))
    parts = Moments.of(x[:33]) + Moments.of(x[33:50]) + Moments.of(x[50:])
    assert float(frechet_from_moments(parts, Moments.of(y))) == pytest.approx(float(whole), abs=1e-9)


def test_mapped_moments_are_moments_of_mapped_features():
    x, matrix = features(50, 10, 11), features(10, 4, 12)
    mapped, direct = Moments.of(x).mapped(matrix), Moments.of(x @ matrix)
    torch.testing.assert_close(mapped.covariance, direct.covariance)
    torch.testing.assert_close(mapped.mean, direct.mean)


def test_closed_form_of_diagonal_gaussians():
    zero, one = torch.zeros(3), torch.ones(3)
    value = frechet_from_moments(moments(zero, torch.diag(4 * one)), moments(one, torch.eye(3)))
    assert float(value) == pytest.approx(3 + 3 * (2 - 1) ** 2)


def moments(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    """Sums over nine samples that have exactly this mean and covariance."""
    mean, covariance = mean.double(), covariance.double()
    count = torch.tensor(9.0, dtype=torch.float64)
    return Moments(count, 9 * mean, 8 * covariance + 9 * torch.outer(mean, mean))


class _Identity(nn.Module):
    num_features = 20

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :20]


def test_torchmetrics_fid_agrees():
    x, y = features(120, 20, 13), features(100, 20, 14, 0.4)
    theirs = FrechetInceptionDistance(
        feature=_Identity(), normalize=True, input_img_size=(1, 4, 5)
    ).set_dtype(torch.float64)
    theirs.update(x.view(-1, 1, 4, 5), real=True)
    theirs.update(y.view(-1, 1, 4, 5), real=False)
    assert float(theirs.compute()) == pytest.approx(float(frechet_from_features(x, y)), rel=1e-6)


@pytest.mark.parametrize("bad", ["nan", "few", "width"])
def test_bad_input_is_an_error_not_a_number(bad):
    x, y = features(10, 4, 15), features(10, 4, 16)
    if bad == "nan":
        y[3, 1] = float("nan")
    elif bad == "few":
        y = y[:1]
    else:
        y = y[:, :3]
    with pytest.raises(MetricError):
        frechet_from_features(x, y)
