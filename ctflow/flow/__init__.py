"""The flow-matching path, time distributions, objective and solvers."""

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
from ctflow.flow.solvers import ADAPTIVE_SOLVER, SOLVERS, KnownRegion, Velocity, solve, time_grid

__all__ = [
    "ADAPTIVE_SOLVER",
    "SOLVERS",
    "FlowDraw",
    "KnownRegion",
    "LinearPath",
    "PathSample",
    "Velocity",
    "draw",
    "flow_matching_loss",
    "pair_difference_loss",
    "sample_times",
    "shift_times",
    "solve",
    "time_grid",
    "training_path",
]
