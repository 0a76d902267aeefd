"""The spectrum of the data: its transform, its estimates against least squares, its use in the FMvT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.fft
import torch

from ctflow.config.models import FMvTConfig
from ctflow.models import Conditions, FMvT
from ctflow.models.spectrum import LEAST_POWER, Spectrum

SIZE = (6, 4, 8)
TINY = FMvTConfig(
    input_size=[16, 4, 4], latent_channels=4, hidden_size=32, depth=1, num_heads=4, text_dim=12, spectrum=True
)


def blocks(count: int, seed: int = 0) -> torch.Tensor:
    """Data with a different power in every frequency, ``[count, 2, 6, 4, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.1 + 3 * torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(7)).square()
    coefficients = deviation * torch.randn(count, 2, *SIZE, generator=generator)
    return torch.from_numpy(scipy.fft.idctn(coefficients.numpy(), axes=(2, 3, 4), norm="ortho")).float()


@pytest.fixture
def spectrum():
    spectrum = Spectrum(2, SIZE)
    assert spectrum.measure(blocks(4000, seed=1).split(1000)) == 4000
    return spectrum


def test_the_power_is_that_of_the_cosine_transform(spectrum):
    coefficients = scipy.fft.dctn(blocks(4000, seed=1).numpy(), axes=(2, 3, 4), norm="ortho")
    expected = torch.from_numpy((coefficients**2).mean(axis=0))
    torch.testing.assert_close(spectrum.power, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.8, 0.99])
def test_the_estimates_are_those_of_least_squares(spectrum, t):
    """Against a fit of data and velocity to each coefficient of other noisy blocks."""
    x = blocks(20000, seed=2)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    z = (1 - t) * x + t * noise
    found = spectrum(z, torch.full((len(z), 1), t))
    transform = lambda y: torch.from_numpy(scipy.fft.dctn(y.numpy(), axes=(2, 3, 4), norm="ortho"))  # noqa: E731
    read = transform(z)
    for told, wanted in ((found.data, x), (found.velocity, noise - x)):
        fitted = (read * transform(wanted)).mean(dim=0) / read.square().mean(dim=0) * read
        error = (transform(told) - transform(wanted)).square().mean(dim=0)
        least = (fitted - transform(wanted)).square().mean(dim=0)
        assert (error <= 1.01 * least + 1e-4).all()


def test_at_the_ends_of_time(spectrum):
    x = blocks(3)
    torch.testing.assert_close(spectrum(x, torch.zeros(3, 1)).data, x, rtol=1e-4, atol=1e-4)
    noise = torch.randn(3, 2, *SIZE)
    found = spectrum(noise, torch.ones(3, 1))
    assert torch.equal(found.data, torch.zeros_like(noise))  # noise says nothing about the data
    torch.testing.assert_close(found.velocity, noise, rtol=1e-4, atol=1e-4)


def test_white_data_give_the_line_of_unit_variance():
    z, t = torch.randn(2, 2, *SIZE), torch.tensor([[0.3], [0.9]])
    line = ((2 * t - 1) / (t.square() + (1 - t).square()))[:, :, None, None, None] * z
    torch.testing.assert_close(Spectrum(2, SIZE)(z, t).velocity, line, rtol=1e-4, atol=1e-5)


def test_known_slices_count_as_data_at_the_others_time(spectrum):
    """A clean slice, and the same slice at the others' time without noise, say the same."""
    x = blocks(2)
    z = 0.4 * x + 0.6 * torch.randn(x.shape)
    known = torch.tensor([True, True, False, False, False, False])[:, None, None]
    clean, scaled = torch.where(known, x, z), torch.where(known, 0.4 * x, z)
    times = torch.full((2, 6), 0.6).masked_fill(known[:, 0, 0], 0.0)
    found, wanted = spectrum(clean, times), spectrum(scaled, torch.full((2, 1), 0.6))
    torch.testing.assert_close(found.velocity, wanted.velocity, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.data, wanted.data, rtol=1e-4, atol=1e-4)


def test_half_precision_around_it_changes_nothing(spectrum):
    z, t = blocks(2), torch.full((2, 1), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        found = spectrum(z, t)
    assert torch.equal(found.velocity, spectrum(z, t).velocity)


def test_empty_frequencies_and_no_blocks(spectrum):
    spectrum.measure([torch.zeros(4, 2, *SIZE)])
    assert (spectrum.power == LEAST_POWER).all()
    assert torch.isfinite(spectrum(torch.zeros(1, 2, *SIZE), torch.zeros(1, 1)).data).all()
    with pytest.raises(ValueError, match="no blocks"):
        spectrum.measure([])
    with pytest.raises(ValueError, match=r"spectrum of blocks \[2, 6, 4, 8\], found \[2, 6, 8, 8\]"):
        spectrum(torch.zeros(1, 2, 6, 8, 8), torch.zeros(1, 1))


@torch.no_grad()
def test_a_network_that_says_nothing_answers_with_the_estimate():
    network = FMvT(TINY).eval()
    z, t = torch.randn(2, 4, 16, 4, 4), torch.tensor([0.3, 0.9])
    assert network.spectrum is not None
    network.spectrum.power.copy_(torch.rand(network.spectrum.power.shape) + 0.1)
    known = torch.arange(16).expand(2, -1) < 3
    answer = network(z, t, Conditions(torch.randn(2, 1, 12), torch.randn_like(z), known=known))
    wanted = network.spectrum(z, t[:, None].expand(-1, 16).masked_fill(known, 0.0)).velocity
    torch.testing.assert_close(answer, wanted)


@torch.no_grad()
def test_the_network_reads_the_estimate():
    """Equal estimates of the data give equal corrections, whatever the noisy block."""
    network = FMvT(replace(TINY, local_channels=6)).eval()
    assert network.spectrum is not None
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    network.spectrum.power.fill_(LEAST_POWER)  # nothing but noise: every estimate is nearly zero
    text, previous = torch.randn(1, 1, 12), torch.randn(1, 4, 16, 4, 4)
    first, second = (
        network(z, torch.tensor([0.9]), Conditions(text, previous)) - z / 0.9
        for z in torch.randn(2, 1, 4, 16, 4, 4).unbind()
    )
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)


def test_spectrum_is_a_kind_of_preconditioning():
    with pytest.raises(ValueError, match="needs preconditioned=true"):
        replace(TINY, preconditioned=False)
