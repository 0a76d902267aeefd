"""What a student is taught, against flows that are known exactly."""

import math

import pytest
import torch

from ctflow.flow import integrate, lesson, shift_times, time_grid


def gaussian(spread):
    """The velocity for data N(0, spread²), and its exact flow from one time to another."""

    def deviation(t):
        return ((1 - t) ** 2 * spread**2 + t**2) ** 0.5

    def velocity(z, t):
        return z * (t - (1 - t) * spread**2) / deviation(t) ** 2

    return velocity, lambda z, t, end: z * deviation(end) / deviation(t)


@pytest.mark.parametrize("spread", [0.3, 8.0])
@pytest.mark.parametrize("index", range(4))
def test_the_target_approaches_the_exact_flow_map(spread, index):
    velocity, flow = gaussian(spread)
    z = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for substeps in (32, 64):
        fine = time_grid(4 * substeps, 3.0)[index * substeps : (index + 1) * substeps + 1].double()
        t, end = fine[0], fine[-1]
        exact = (z - flow(z, t, end)) / (t - end)
        taught = lesson(velocity, z, fine)
        assert torch.equal(taught.first, velocity(z, t))
        errors.append(float((taught.velocity - exact).norm() / exact.norm()))
    assert errors[1] < 0.1 and math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


def test_steps_of_the_targets_lead_where_the_teacher_ends():
    velocity, _ = gaussian(2.0)
    noise = torch.randn(64, generator=torch.Generator().manual_seed(1))
    coarse, fine = time_grid(4, 3.0), time_grid(20, 3.0)
    torch.testing.assert_close(coarse, fine[::5])
    torch.testing.assert_close(coarse[2], shift_times(torch.tensor(0.5), 3.0))
    z = noise
    for index in range(4):
        taught = lesson(velocity, z, fine[5 * index : 5 * index + 6])
        z = z + (coarse[index + 1] - coarse[index]) * taught.velocity
    torch.testing.assert_close(z, integrate(velocity, noise, fine), rtol=1e-5, atol=1e-6)


def test_one_substep_teaches_the_teachers_own_velocity():
    velocity, _ = gaussian(2.0)
    z = torch.randn(64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    taught = lesson(velocity, z, torch.tensor([0.8, 0.5], dtype=torch.float64))
    torch.testing.assert_close(taught.velocity, taught.first)
