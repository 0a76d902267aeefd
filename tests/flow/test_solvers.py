"""Solvers against closed-form answers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ctflow.flow import SOLVERS, Churn, KnownRegion, LinearPath, integrate, solve, time_grid


def growth(z, t):
    """dz/dt = (1 + t) z, so z(0) = z(1) exp(-3/2)."""
    return (1 + t) * z


def gaussian(z, t, s=0.5):
    """The exact velocity for data N(0, s^2): the solution is z(0) = s z(1)."""
    return z * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_of_convergence(solver, order):
    z1 = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = z1 * math.exp(-1.5)
    errors = [float((solve(growth, z1, n, solver) - exact).abs().max()) for n in (32, 64)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("steps", "shift", "early"), [(2, 1.0, 0), (8, 2.0, 0), (8, 2.0, 5), (20, 4.0, 0)])
def test_multistep_is_the_solver_of_diffusers(steps, shift, early):
    """Two Euler steps at the beginning and one at the end, the second order between them."""
    times = time_grid(steps, shift, early)
    other = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, euler_at_final=True
    )
    other.set_timesteps(len(times) - 1)
    other.sigmas = times
    z = noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for index, step in enumerate(other.timesteps):
        z = other.step(growth(z, times[index]), step, z).prev_sample
    found = solve(growth, noise, steps, "multistep", shift=shift, early=early)
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-5)
    exact = noise * math.exp(-1.5)
    if steps > 2:
        plain = solve(growth, noise, steps, "euler", shift=shift, early=early)
        assert (found - exact).abs().max() < 0.5 * (plain - exact).abs().max()


def test_multistep_forgets_where_churn_parts_two_steps():
    """Churned steps and the one after them are Euler steps: nothing goes on from before the fresh noise."""
    noise = torch.randn(6, 3, 4)
    churned = [
        solve(growth, noise[0], 6, name, churn=Churn(0.5, noise[1:])) for name in ("multistep", "euler")
    ]
    torch.testing.assert_close(*churned)
    above = solve(growth, noise[0], 6, "multistep", churn=Churn(0.5, noise[1:], below=0.4))
    euler = solve(growth, noise[0], 6, "euler", churn=Churn(0.5, noise[1:], below=0.4))
    assert not torch.allclose(above, euler)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [("euler", 0.02), ("midpoint", 1e-3), ("heun", 1e-3), ("multistep", 2e-3), ("dopri5", 1e-4)],
)
def test_the_gaussian_flow(solver, tolerance):
    z1 = torch.randn(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(solve(gaussian, z1, 60, solver), 0.5 * z1, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_path_is_exact_in_one_step(solver):
    x, noise = torch.randn(2, 5), torch.randn(2, 5)
    velocity = LinearPath().velocity(x, noise)
    torch.testing.assert_close(solve(lambda z, t: velocity, noise, 1, solver), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_values_are_held_on_their_path(solver):
    noise, value = torch.randn(1, 6), torch.randn(1, 6)
    mask = torch.tensor([True, True, False, False, False, True])
    seen = []

    def field(z, t):
        seen.append(((1 - t) * value + t * noise - z)[:, mask].abs().max())
        return growth(z, t)

    out = solve(field, noise, 8, solver, KnownRegion(mask, value))
    assert torch.equal(out[:, mask], value[:, mask])
    assert max(seen) < 1e-5
    torch.testing.assert_close(out[:, ~mask], solve(growth, noise, 8, solver)[:, ~mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_clean_known_values_never_move(solver):
    noise, value = torch.randn(1, 6), torch.randn(1, 6)
    mask = torch.tensor([True, True, False, False, False, True])
    seen = []

    def field(z, t):
        seen.append((value - z)[:, mask].abs().max())
        return growth(z, t)

    out = solve(field, noise, 8, solver, KnownRegion(mask, value, clean=True))
    assert max(seen) == 0 and torch.equal(out[:, mask], value[:, mask])
    torch.testing.assert_close(out[:, ~mask], solve(growth, noise, 8, solver)[:, ~mask], rtol=1e-4, atol=1e-5)


def test_a_shifted_grid_takes_most_steps_near_the_noise():
    plain, shifted = time_grid(4), time_grid(4, 6.0)
    assert plain.tolist() == [1, 0.75, 0.5, 0.25, 0]
    odds = shifted[1:-1] / (1 - shifted[1:-1])
    torch.testing.assert_close(odds, 6 * plain[1:-1] / (1 - plain[1:-1]))
    # A flow that is decided near t = 1 (data of variance 100) is solved better by as many steps.
    z1 = torch.randn(256, generator=torch.Generator().manual_seed(1))

    def wide(z, t):
        return z * (t - (1 - t) * 100) / ((1 - t) ** 2 * 100 + t**2)

    errors = [float((solve(wide, z1, 12, shift=s) - 10 * z1).abs().mean()) for s in (1.0, 6.0)]
    assert errors[1] < errors[0] / 2


def test_early_steps_halve_the_odds_down_to_the_first_steps_end():
    plain, early = time_grid(8, 2.0), time_grid(8, 2.0, early=3)
    assert torch.equal(early[4:], plain[1:]) and early[0] == 1
    odds = early[1:5] / (1 - early[1:5])
    torch.testing.assert_close(odds[:-1], 2 * odds[1:], rtol=1e-3, atol=0.0)
    with pytest.raises(ValueError, match="found 1 step"):
        time_grid(1, early=3)


def test_early_steps_keep_the_directions_of_great_variance():
    z1 = torch.ones(1, dtype=torch.float64)

    def kept(variance, early, solver="euler"):
        spread = math.sqrt(variance)
        end = solve(lambda z, t: gaussian(z, t, spread), z1, 8, solver, shift=2.0, early=early)
        return float(end) / spread

    # Eight Euler steps with a shift of 2 leave a quarter of it, five early ones as much as of others.
    assert kept(3000, 0) < 0.25
    assert kept(3000, 5) == pytest.approx(kept(1, 0), abs=0.02)
    assert kept(1, 5) == pytest.approx(kept(1, 0), abs=0.01)
    # The second order keeps what Euler steps lose, at as many evaluations.
    for variance in (3000, 1000, 300, 100, 30, 10):
        assert kept(variance, 5) < 0.86
        assert kept(variance, 5, "multistep") == pytest.approx(1, abs=0.03)


def test_unknown_solver_and_no_steps():
    with pytest.raises(ValueError, match="'rk9'"):
        solve(growth, torch.zeros(1), 1, "rk9")
    with pytest.raises(ValueError, match="with 0"):
        solve(growth, torch.zeros(1), 0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_churn_keeps_the_distribution_of_an_exact_velocity(share):
    g = torch.Generator().manual_seed(1)
    z1, noise = torch.randn(100_000, generator=g), torch.randn(39, 100_000, generator=g)
    out = solve(gaussian, z1, 40, "midpoint", churn=Churn(share, noise))
    assert float(out.std()) == pytest.approx(0.5, rel=0.015)  # the error of a deviation of 100,000: 0.2 %
    correlation = float((out * z1).mean() / out.std())
    assert correlation < 0.6  # without churn it is 1: the outcome is a multiple of its noise


def test_churn_takes_out_what_a_network_leaves():
    """Data are 0, and the network leaves a fifth of the noise: dz/dt = 0.8 z / t.

    The deterministic path keeps t^0.8 of its noise, the one with churn about t.
    """
    g = torch.Generator().manual_seed(2)
    z1, noise = torch.randn(4_000, generator=g), torch.randn(63, 4_000, generator=g)
    plain, churned = (
        solve(lambda z, t: 0.8 * z / t, z1, 64, "euler", churn=churn) for churn in (None, Churn(0.5, noise))
    )
    assert float(churned.std()) < 0.6 * float(plain.std())  # 0.51 on average


@pytest.mark.parametrize("clean", [True, False])
def test_churn_leaves_known_values(clean):
    g = torch.Generator().manual_seed(3)
    z1, value, noise = (
        torch.randn(1, 6, generator=g),
        torch.randn(1, 6, generator=g),
        torch.randn(7, 1, 6, generator=g),
    )
    mask = torch.tensor([True, True, False, False, False, True])
    seen = []

    def field(z, t):
        held = value if clean else (1 - t) * value + t * z1
        seen.append((held - z)[:, mask].abs().max())
        return growth(z, t)

    out = solve(field, z1, 8, "heun", KnownRegion(mask, value, clean), churn=Churn(0.5, noise))
    assert torch.equal(out[:, mask], value[:, mask]) and max(seen) < 1e-5
    other = solve(field, z1, 8, "heun", KnownRegion(mask, value, clean), churn=Churn(0.5, -noise))
    assert not torch.isclose(out, other)[:, ~mask].any()


def test_churn_acts_below_a_time_alone():
    g = torch.Generator().manual_seed(4)
    z1, noise = torch.randn(50, generator=g), torch.randn(7, 50, generator=g)
    states = {}
    for name, churn in (
        ("plain", None),
        ("late", Churn(0.5, noise, below=0.6)),
        ("never", Churn(0.5, noise, 0.0)),
    ):
        states[name] = {}

        def field(z, t, seen=states[name]):
            seen[round(float(t), 4)] = z.clone()
            return gaussian(z, t)

        solve(field, z1, 8, "euler", churn=churn)
    for t in (1.0, 0.875, 0.75, 0.625):  # the step that ends at 0.5 is the first one with fresh noise
        assert torch.equal(states["late"][t], states["plain"][t])
    assert not torch.isclose(states["late"][0.5], states["plain"][0.5]).any()
    for t, z in states["plain"].items():
        torch.testing.assert_close(states["never"][t], z)


def test_churn_needs_steps():
    with pytest.raises(ValueError, match="churn needs the steps of a fixed solver"):
        solve(growth, torch.ones(1), 4, "dopri5", churn=Churn(0.5, torch.ones(3, 1)))


@pytest.mark.parametrize(("solver", "share"), [("euler", 0.0), ("heun", 0.5), ("multistep", 0.0)])
def test_steps_that_were_taken_are_left_out(solver, share):
    """From the state after the first steps the others end where all of them end."""

    def field(z, t):
        return z - t

    generator = torch.Generator().manual_seed(2)
    z1, noise = torch.randn(3, generator=generator), torch.randn(5, 3, generator=generator)
    churn = Churn(share, noise, below=0.45) if share else None  # none of the first two steps is churned
    whole = solve(field, z1, 6, "euler" if solver == "multistep" else solver, shift=2.0, churn=churn)
    first = integrate(field, z1, time_grid(6, 2.0)[:3], "euler" if solver == "multistep" else solver)
    rest = Churn(share, noise[2:], below=0.45) if share else None
    out = solve(field, first, 6, solver, shift=2.0, churn=rest, taken=2)
    if solver == "multistep":  # of second order: nearer to the exact end than Euler steps
        exact = solve(field, first, 600, "heun", shift=2.0, taken=200)
        assert (out - exact).abs().max() < 0.7 * (whole - exact).abs().max()
    else:
        torch.testing.assert_close(out, whole)


def test_steps_cannot_be_left_out_everywhere():
    z = torch.zeros(2)
    known = KnownRegion(torch.ones(2, dtype=torch.bool), z)
    for solver, taken, region in (("euler", 4, None), ("dopri5", 1, None), ("euler", 1, known)):
        with pytest.raises(ValueError, match=f"found {taken} of 4"):
            solve(lambda z, t: z, z, 4, solver, region, taken=taken)
