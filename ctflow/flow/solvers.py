"""Solvers of dz/dt = v(z, t) from noise (t = 1) to data (t = 0)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torchdiffeq import odeint

from ctflow.config.generation import FIXED_SOLVERS
from ctflow.flow.objective import LinearPath, shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(z, t)`` with ``z [B, ...]`` and a scalar tensor ``t``, to dz/dt of z's shape."""

Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]
"""``step(field, z, t, t_next)`` to the state at t_next."""

ADAPTIVE_SOLVER = "dopri5"
SOLVERS = (*FIXED_SOLVERS, ADAPTIVE_SOLVER)
DOPRI5_TOLERANCE = 1e-5
DOPRI5_MOST_STEPS = 2000
"""An error beyond: a field that needs more is not one that a trained network makes."""


@dataclass(frozen=True)
class KnownRegion:
    """Values that are known at t = 0 and held while the rest is solved.

    Attributes:
        mask: Bool, broadcastable to the state; True where the value is known.
        value: Data, of the state's shape (read where the mask is True).
        clean: Held at their values, for a network that is trained with clean known slices; otherwise on the
            straight path from their noise, where a network that knows one time for all expects them.
    """

    mask: Tensor
    value: Tensor
    clean: bool = False


@dataclass(frozen=True)
class Churn:
    """Fresh noise between the steps of a fixed solver.

    A step to the time t' goes on to (1 - share) t', and noise brings the state back to the path at t' (Karras
    et al. 2022, section 4, in the flow's times). An exact velocity gives the same distribution with and
    without it. A network's errors add up along a deterministic path: noise that a step has not taken out
    looks like data to the next one. Here most of it is drawn anew. The last step is an Euler step, which ends
    at the mean of the data that the network sees there.

    Attributes:
        share: In (0, 1]; 1 solves every step to t = 0.
        noise: Standard normal ``[steps - 1, B, ...]``, early steps counted, steps taken before not.
        below: Only steps that end below this time are churned: long steps through the times in which layout
            is decided would make volumes more alike.
    """

    share: float
    noise: Tensor
    below: float = 1.0


def time_grid(steps: int, shift: float = 1.0, early: int = 0) -> Tensor:
    """Times of a fixed solver from 1 to 0.

    Args:
        steps: Equally spaced times, then shifted.
        shift: Odds t / (1 - t) are multiplied by it (``shift_times``).
        early: So many times more between 1 and the first step's end. Each has twice the odds of the next: a
            direction of the data with the variance v is as strong as the noise at the odds √v, and the
            directions of greatest variance hold the layout.

    Returns:
        ``[steps + early + 1]``.

    Raises:
        ValueError: ``early`` for a single step, which ends at 0.
    """
    times = torch.linspace(1, 0, steps + 1)
    times = times if shift == 1 else shift_times(times, shift)
    if not early:
        return times
    if steps < 2:
        raise ValueError(f"early steps need a first step that ends above t = 0, found {steps} step")
    odds = times[1] / (1 - times[1]) * 2.0 ** torch.arange(early, 0, -1)
    return torch.cat([times[:1], odds / (1 + odds), times[1:]])


def step_ends(times: Tensor, churn: float = 0.0, below: float = 1.0) -> Tensor:
    """Times ``[steps]`` at which the steps over ``times [steps + 1]`` end, before noise brings them back."""
    return (1 - churn * (times[1:] < below)) * times[1:]


def renoise(z: Tensor, t: Tensor, back: Tensor, noise: Tensor) -> Tensor:
    """A state at time ``t``, brought back to the path's earlier point ``back`` by standard normal noise."""
    kept = (1 - back) / (1 - t)
    return kept * z + (back**2 - (kept * t) ** 2).clamp_min(0).sqrt() * noise


def solve(
    velocity: Velocity,
    z1: Tensor,
    steps: int,
    solver: str = "euler",
    known: KnownRegion | None = None,
    shift: float = 1.0,
    churn: Churn | None = None,
    early: int = 0,
    taken: int = 0,
) -> Tensor:
    """Integrate from t = 1, or from the end of the first steps, to t = 0.

    The fixed solvers take the steps of ``time_grid(steps, shift, early)``; dopri5 chooses its own (relative
    and absolute tolerance 1e-5).

    Args:
        velocity: The field.
        z1: Noise ``[B, ...]``, or the state after ``taken`` steps.
        steps: Number of steps of the grid; not read by dopri5.
        solver: One of ``SOLVERS``.
        known: Region held at known values: clean, or on the straight path from its noise to its value, so
            that the network sees it at the right noise level at every t.
        shift: Of the time grid; above 1 most steps lie near the noise, where layout is decided.
        churn: Fresh noise after every step but the last; None: none. Only for the fixed solvers.
        early: Further steps before the first one's end (``time_grid``); not read by dopri5.
        taken: First steps of the grid that are left out; 0 for dopri5, and with a known region.

    Returns:
        The state at t = 0.

    Raises:
        ValueError: An unknown solver, fewer than one step, churn for dopri5, or ``taken`` where it cannot be.
    """
    if solver not in SOLVERS or steps < 1:
        raise ValueError(f"solver is one of {SOLVERS} with at least 1 step, found {solver!r} with {steps}")
    if churn is not None and solver == ADAPTIVE_SOLVER:
        raise ValueError(f"churn needs the steps of a fixed solver {FIXED_SOLVERS}, found {solver!r}")
    if taken and not (0 < taken < steps + early and solver in FIXED_SOLVERS and known is None):
        raise ValueError(
            f"taken leaves out some steps of a fixed solver without known region, found {taken} of "
            f"{steps + early} with {solver!r}"
        )
    if known is not None and known.clean:
        z1 = torch.where(known.mask, known.value, z1)
    field = velocity if known is None else _hold(velocity, z1, known)
    if solver == ADAPTIVE_SOLVER:
        z = _dopri5(field, z1)
    elif churn is None:
        z = integrate(field, z1, time_grid(steps, shift, early)[taken:], solver)
    else:
        z = _churned(field, z1, time_grid(steps, shift, early)[taken:].to(z1), solver, churn, known)
    return z if known is None else torch.where(known.mask, known.value, z)


def integrate(field: Velocity, z: Tensor, times: Tensor, solver: str = "euler") -> Tensor:
    """Take the steps of a fixed solver from ``times[0]`` to ``times[-1]``.

    Args:
        field: The field.
        z: The state at ``times[0]``, ``[B, ...]``.
        times: Falling times ``[steps + 1]``.
        solver: One of ``FIXED_SOLVERS``.

    Returns:
        The state at ``times[-1]``.
    """
    step = _step(solver)
    for t, t_next in pairwise(times.to(z)):
        z = step(field, z, t, t_next)
    return z


def _churned(
    field: Velocity, z1: Tensor, times: Tensor, solver: str, churn: Churn, known: KnownRegion | None
) -> Tensor:
    """The steps of a fixed solver with fresh noise in between; what is known is not touched by it."""
    z, step = z1, _step(solver)
    ends = step_ends(times, churn.share, churn.below)
    for index, (t, t_next) in enumerate(pairwise(times[:-1])):
        if solver == "multistep" and ends[index] < t_next:
            step = _step(solver)  # fresh noise parts the estimates before it from those after it
        z = step(field, z, t, ends[index])
        z = renoise(z, ends[index], t_next, churn.noise[index])
        if known is not None:
            held = known.value if known.clean else LinearPath().sample(known.value, z1, t_next).z_t
            z = torch.where(known.mask, held, z)
    return integrate(field, z, times[-2:])


def _hold(velocity: Velocity, z1: Tensor, known: KnownRegion) -> Velocity:
    straight = torch.zeros_like(z1) if known.clean else LinearPath().velocity(known.value, z1)

    def held(z: Tensor, t: Tensor) -> Tensor:
        return torch.where(known.mask, straight, velocity(z, t))

    return held


def _step(solver: str) -> Step:
    """A fixed solver's step; that of ``multistep`` remembers the last one."""
    plain: dict[str, Step] = {"euler": _euler_step, "midpoint": _midpoint_step, "heun": _heun_step}
    return _MultistepStep() if solver == "multistep" else plain[solver]


def _euler_step(field: Velocity, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    return z + (t_next - t) * field(z, t)


def _midpoint_step(field: Velocity, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    half = (t_next - t) / 2
    return z + 2 * half * field(z + half * field(z, t), t + half)


def _heun_step(field: Velocity, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    step = t_next - t
    start = field(z, t)
    return z + step / 2 * (start + field(z + step * start, t_next))


class _MultistepStep:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) in the flow's times: one evaluation, second order.

    The estimate of the data at the step's beginning goes on along the line through the last step's, in the
    logarithm of the odds (1 - t) / t. The first two steps (the odds are 0 at t = 1) and one that ends at
    t = 0 are Euler steps.
    """

    def __init__(self) -> None:
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, field: Velocity, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        data = z - t * field(z, t)
        estimate = data
        if self.last is not None and t_next > 0:
            earlier, before = self.last
            beyond = (_log_odds(t_next) - _log_odds(t)) / (_log_odds(t) - _log_odds(earlier))
            estimate = data + beyond / 2 * (data - before)
        self.last = (t, data) if t < 1 else None
        return z + (t_next - t) / t * (z - estimate)  # known clean values stay exactly


def _log_odds(t: Tensor) -> Tensor:
    """Of data to noise."""
    return ((1 - t) / t).log()


def _dopri5(field: Velocity, z1: Tensor) -> Tensor:
    times = torch.tensor([1.0, 0.0], device=z1.device)
    tolerances = {
        "rtol": DOPRI5_TOLERANCE,
        "atol": DOPRI5_TOLERANCE,
        "options": {"max_num_steps": DOPRI5_MOST_STEPS},
    }
    return odeint(lambda t, z: field(z, t), z1, times, method="dopri5", **tolerances)[-1]
