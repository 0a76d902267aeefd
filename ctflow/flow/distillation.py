"""What a student learns from its teacher: one step that lands where many of the teacher's steps do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ctflow.flow.solvers import Velocity, integrate


@dataclass(frozen=True)
class Lesson:
    """One interval of the student's time grid as the teacher solves it.

    Attributes:
        velocity: The velocity with which one Euler step lands where the teacher does, ``[B, ...]``.
        first: The teacher's own velocity at the interval's beginning, same shape: a single Euler step of the
            teacher would follow it.
    """

    velocity: Tensor
    first: Tensor


def lesson(teacher: Velocity, z: Tensor, times: Tensor, solver: str = "euler") -> Lesson:
    """Let the teacher solve an interval.

    The student's target is (z(t_first) - z(t_last)) / (t_first - t_last): progressive distillation (Salimans
    & Ho 2022, section 3) in the velocity, with any number of the teacher's steps at once.

    Args:
        teacher: The teacher's field, guidance included.
        z: The state at ``times[0]``, ``[B, ...]``.
        times: Falling times ``[steps + 1]``.
        solver: One of the fixed solvers; all of them evaluate the field at the interval's beginning first.
    """
    first: list[Tensor] = []

    def noted(state: Tensor, t: Tensor) -> Tensor:
        velocity = teacher(state, t)
        if not first:
            first.append(velocity)
        return velocity

    end = integrate(noted, z, times, solver)
    return Lesson((z - end) / (times[0] - times[-1]).to(z), first[0])
