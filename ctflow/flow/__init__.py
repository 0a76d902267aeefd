"""The flow-matching path, time distributions and solvers."""
