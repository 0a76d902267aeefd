"""The flow-matching path, time distributions, objective and solvers."""

from ctflow.flow.distillation import Lesson, lesson
from ctflow.flow.objective import (
    FlowDraw,
    LinearPath,
    PathSample,
    draw,
    flow_matching_loss,
    pair_difference_loss,
    sample_times,
    shift_times,
    training_path,
)
from ctflow.flow.solvers import (
    ADAPTIVE_SOLVER,
    SOLVERS,
    Churn,
    KnownRegion,
    Velocity,
    integrate,
    renoise,
    solve,
    step_ends,
    time_grid,
)

__all__ = [
    "ADAPTIVE_SOLVER",
    "SOLVERS",
    "Churn",
    "FlowDraw",
    "KnownRegion",
    "Lesson",
    "LinearPath",
    "PathSample",
    "Velocity",
    "draw",
    "flow_matching_loss",
    "integrate",
    "lesson",
    "pair_difference_loss",
    "renoise",
    "sample_times",
    "shift_times",
    "solve",
    "step_ends",
    "time_grid",
    "training_path",
]
