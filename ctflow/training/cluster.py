"""Processes that a cluster starts: who is first, and whether their number is the one configured."""

from __future__ import annotations

import os

from ctflow.errors import ConfigError
from ctflow.processes import launched_number

_INTERACTIVE = ("bash", "interactive")


def first_process() -> bool:
    """Whether this is the process that makes shared files; launchers name the others by these variables."""
    names = ["LOCAL_RANK", "NODE_RANK", "GROUP_RANK", *(["SLURM_PROCID"] if under_srun() else [])]
    return not any(launched_number(name) for name in names)


def under_srun() -> bool:
    """Whether SLURM started this process as one of its tasks."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _INTERACTIVE


def check_cluster(devices: int, nodes: int, named: bool) -> None:
    """Hold SLURM's tasks against the configuration, before Lightning does it in words of its own.

    Args:
        devices: Processes on each machine.
        nodes: Machines.
        named: Whether the run has a name, which all processes then share.

    Raises:
        ConfigError: Other numbers, or several processes without a name for their run.
    """
    tasks = (launched_number("SLURM_NTASKS") if under_srun() else 1) or 1
    if tasks == 1:
        return
    if tasks != devices * nodes:
        machines = launched_number("SLURM_NNODES", 1) or 1
        raise ConfigError(
            f"SLURM runs {tasks} tasks on {machines} machines (--ntasks), the configuration asks for "
            f"{devices} processes on {nodes}",
            "a task for every process",
            f"give devices={max(tasks // machines, 1)} and nodes={machines} (of a training: loop.devices, "
            "loop.nodes), or --ntasks=1",
        )
    if not named:
        raise ConfigError(
            f"{tasks} tasks of SLURM and no name for their run", "one run folder for all", "give name=…"
        )
    # Lightning reads this one alone; srun sets it only where --ntasks-per-node was given.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))
