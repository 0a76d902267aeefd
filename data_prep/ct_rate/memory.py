"""The memory that a volume takes, by its header before any voxel is read, and the memory there is."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from data_prep.ct_rate.discovery import Item
from data_prep.ct_rate.nifti_reader import header_bytes

WORKER_BYTES = 0.3 * 2**30
"""Memory of a worker besides the volume: libraries, and prepared slices."""
_UNPACKED = 3.0
"""Bytes of voxels over bytes of a compressed CT, for files whose header is not looked into."""


def available_bytes() -> float:
    """Memory that is free for this run: the machine's, or less where a control group allows less."""
    return min(_limits(), default=float("inf"))


def worker_bytes(memory_gb: float) -> float:
    """The memory that a worker may still allocate: its limit less the address space of its libraries."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:  # no worker of a pool
        return memory_gb * 2**30
    pages = _number(Path("/proc/self/statm")) or 0.0
    return max(0.0, min(memory_gb * 2**30, limit) - pages * resource.getpagesize())


def needed_bytes(item: Item) -> float:
    """Memory of a worker while it reads an item: by the header of a NIfTI, by the size of other files."""
    try:
        if item.kind == "nifti":
            return header_bytes(Path(item.files[0])) + WORKER_BYTES
        return sum(Path(name).stat().st_size for name in item.files) * _UNPACKED + WORKER_BYTES
    except (
        Exception
    ):  # whatever a library raises on damaged bytes: the worker will tell what is wrong with them
        return WORKER_BYTES


def _limits() -> Iterator[float]:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            yield float(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = (_number(Path("/sys/fs/cgroup") / name) for name in (limit, used))
        if most is not None and now is not None:
            yield most - now


def _number(path: Path) -> float | None:
    """The first number of a file; None where there is none, as for ``max``."""
    try:
        word = path.read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return float(word) if word.isdigit() else None
