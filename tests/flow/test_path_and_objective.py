"""The direction of time, and what a training step draws."""

from __future__ import annotations

import math

import pytest
import torch

from ctflow.config.models import FlowConfig
from ctflow.flow import (
    LinearPath,
    draw,
    flow_matching_loss,
    pair_difference_loss,
    sample_times,
    training_path,
)


def test_noise_is_at_one_and_data_at_zero():
    x, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    path = LinearPath()
    torch.testing.assert_close(path.sample(x, noise, torch.ones(2)).z_t, noise)
    torch.testing.assert_close(path.sample(x, noise, torch.zeros(2)).z_t, x)
    torch.testing.assert_close(path.sample(x, noise, torch.tensor(0.25)).z_t, 0.75 * x + 0.25 * noise)
    torch.testing.assert_close(path.velocity(x, noise), noise - x)


@pytest.mark.parametrize("offset", [0.0, 1e-5, 0.1])
def test_velocity_is_the_derivative_of_the_path(offset):
    path = LinearPath(offset)
    x, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    t, h = torch.tensor([0.3, 0.8], dtype=torch.float64), 1e-4
    difference = (path.sample(x, noise, t + h).z_t - path.sample(x, noise, t - h).z_t) / (2 * h)
    torch.testing.assert_close(path.sample(x, noise, t).velocity, difference, rtol=1e-9, atol=1e-9)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 4\]"):
        LinearPath().sample(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor(0.5))


def test_time_distributions():
    generator = torch.Generator().manual_seed(0)
    uniform = sample_times(20_000, FlowConfig(time_distribution="uniform"), generator)
    logit = sample_times(20_000, FlowConfig(), generator)
    shifted = sample_times(20_000, FlowConfig(time_shift=6.0, time_spread=1.5), generator)
    assert uniform.min() >= 0 and uniform.max() <= 1
    assert abs(float(uniform.std()) - 12**-0.5) < 0.01
    assert abs(float(torch.logit(logit).mean())) < 0.03
    assert abs(float(torch.logit(logit).std()) - 1) < 0.03
    assert abs(float(torch.logit(shifted).mean()) - math.log(6)) < 0.04
    assert abs(float(torch.logit(shifted).std()) - 1.5) < 0.04


def test_draw():
    config = FlowConfig(noise_offset=0.5, condition_noise=0.05, text_dropout=0.25, previous_dropout=0.0)
    block = torch.zeros(400, 2, 4, 4, 4)
    chance = draw(config, block, torch.Generator().manual_seed(0))
    assert chance.t.shape == (400,)
    # The offset is one value per channel and sample: the mean over a channel has its spread, the rest has
    # unit spread.
    means = chance.noise.mean(dim=(2, 3, 4))
    assert abs(float(means.std()) - (0.25 + 1 / 64) ** 0.5) < 0.03
    assert abs(float((chance.noise - means[:, :, None, None, None]).std()) - 1) < 0.02
    assert abs(float(chance.condition_noise.std()) - 0.05) < 0.002
    assert 60 < int(chance.drop_text.sum()) < 140
    assert chance.drop_previous is None
    again = draw(config, block, torch.Generator().manual_seed(0))
    assert torch.equal(again.noise, chance.noise) and torch.equal(again.t, chance.t)


def test_loss_is_one_mean_per_sample():
    prediction, velocity = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    velocity[1] = 2
    assert flow_matching_loss(prediction, velocity).tolist() == [1, 4]


def test_configuration_is_checked():
    assert training_path(FlowConfig(path_offset=1e-5)).offset == 1e-5
    for bad in (
        {"time_distribution": "beta"},
        {"path_offset": 1.0},
        {"text_dropout": 1.0},
        {"noise_offset": -1.0},
    ):
        with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
            FlowConfig(**bad)


def test_known_slices_and_noise_levels_are_drawn_per_sample():
    config = FlowConfig(known_share=0.5, most_known=8, condition_noise=0.2)
    chance = draw(config, torch.zeros(600, 2, 16, 2, 2), torch.Generator().manual_seed(0), told_noise=True)
    counts = chance.known.sum(dim=1)
    assert (chance.known == (torch.arange(16) < counts[:, None])).all()
    assert 240 < int((counts == 0).sum()) < 360
    assert counts.unique().tolist() == list(range(9))
    assert 0 <= chance.previous_noise.min() < 0.02 and 0.18 < chance.previous_noise.max() <= 0.2
    spread = chance.condition_noise.flatten(1).std(dim=1)
    assert float((spread / chance.previous_noise.clamp_min(0.01) - 1).abs().median()) < 0.1


def test_known_slices_do_not_count():
    prediction, velocity = torch.zeros(2, 1, 4, 1, 1), torch.ones(2, 1, 4, 1, 1)
    velocity[:, :, :2] = 3
    known = torch.tensor([[True, True, False, False], [False] * 4])
    assert flow_matching_loss(prediction, velocity, known).tolist() == [1, 5]


def test_pair_difference_is_what_partners_do_not_share():
    generator = torch.Generator().manual_seed(3)
    prediction, velocity = torch.randn(2, 4, 3, 5, 2, 2, generator=generator)
    partner = torch.tensor([1, 0, 3, 2])
    residual = prediction - velocity
    difference = pair_difference_loss(prediction, velocity, partner)
    mean = (residual + residual[partner]).square().flatten(1).mean(1) / 4
    own = residual.square().flatten(1).mean(1)
    torch.testing.assert_close(difference + mean, (own + own[partner]) / 2)
