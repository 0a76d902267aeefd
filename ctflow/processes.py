"""This process among others on its machine: who makes what, on which device, with which threads and memory.

PyTorch is imported where it is used: the commands check their arguments before.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ctflow.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("ctflow")

ItemT = TypeVar("ItemT")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's ``malloc.h``."""
MALLOC_SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))


@dataclass(frozen=True)
class Ranks:
    """This process among those of ``torchrun`` (1 of 1 without it)."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """This rank's items. Batches are formed before, so that they are the same on any number of ranks."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    @property
    def first(self) -> bool:
        """Whether this rank writes the results."""
        return self.rank == 0


def launched_number(
    name: str, default: int | None = None, environment: Mapping[str, str] = os.environ
) -> int | None:
    """A number that a scheduler or launcher gives its processes.

    Args:
        name: Of the variable.
        default: Where it is not set.
        environment: Variables of the process.

    Raises:
        ConfigError: It is set, and is not a whole number from 0 on.
    """
    if name not in environment:
        return default
    text = environment[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"the variable {name}={text!r} of the environment",
            "a whole number from 0 on, as a scheduler sets it",
            f"start the command through the scheduler, or unset {name}",
        )
    return int(text)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes in the environment; leave it afterwards."""
    size = launched_number("WORLD_SIZE") or 1
    if size == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()


def leave_group_at_exit() -> None:
    """Leave the process group that Lightning joins, when this process ends; it leaves NCCL's alone.

    A process that ends in a gloo group aborts now and then (status -6, "terminate called without an active
    exception"): the group's threads outlive the interpreter.
    """

    def leave() -> None:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    atexit.register(leave)


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def keep_freed_buffers() -> bool:
    """Keep freed buffers in this process instead of returning them to the kernel after every operation.

    glibc maps every buffer above 32 MB anew, and the kernel clears its pages on first touch: that takes as
    long as the convolutions of the embedded backbones themselves. The values computed do not change.

    Returns:
        Whether the C library took the settings; false where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl exports no mallopt; glibc answers 1 where it accepts a setting.
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in MALLOC_SETTINGS)


def return_freed_buffers() -> bool:
    """Return freed buffers to the kernel, so that the process holds what it uses.

    Returns:
        Whether the C library could; false where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return trim is not None


def log_threads() -> None:
    """Say the number of threads, and warn where other processes keep the cores busy.

    Threads that wait for each other on a busy core are 5 to 10 times slower than one thread. The number is
    not changed by itself: sums round by it, and a run that goes on is to repeat its losses.
    """
    import torch

    if torch.cuda.is_available():
        return
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    log.info("threads: %d on %d cores (OMP_NUM_THREADS=N sets another number)", threads, cores)
    if threads > 1 and load + threads > cores + 1:
        log.warning(
            "other processes keep %.1f of %d cores busy: %d threads then run several times slower than one; "
            "OMP_NUM_THREADS=1 is the better choice on a shared machine",
            load,
            cores,
            threads,
        )


def bf16_supported(device_type: str) -> bool:
    """Whether bfloat16 arithmetic runs in hardware (a CPU needs AVX512-BF16 or AMX)."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return False


def use_own_device() -> None:
    """Take the CUDA device that is this process's among those of its node; without CUDA nothing happens."""
    import torch

    local = launched_number("LOCAL_RANK", launched_number("SLURM_LOCALID"))
    if local is not None and torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())


def matrix_peak(precision: str, device: torch.device, side: int) -> float:
    """Measured rate of a square matrix product, the best of some, in GFLOP/s; no random number is drawn.

    Args:
        precision: ``fp32`` or ``bf16``.
        device: Where.
        side: Rows and columns.
    """
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.linspace(-1, 1, side * side, device=device).reshape(side, side).to(kind)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times[1:]) / 1e9


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run ``python -m module`` with its output on this process's, and never leave it behind.

    A SIGTERM to this process alone (a Ctrl-C goes to both) is handed on. The command then saves what it has
    and ends, whatever its status, and the signal takes its course here: no further command is run.

    Args:
        module: A module of this environment.
        arguments: Of its command line.

    Returns:
        Its exit status; negative: the signal that ended it.
    """
    with subprocess.Popen([sys.executable, "-m", module, *arguments]) as child:
        if threading.current_thread() is not threading.main_thread():
            return child.wait()  # signals reach the main thread alone
        handed_on: list[int] = []

        def hand_on(number: int, _: object) -> None:
            handed_on.append(number)
            child.terminate()

        before = signal.signal(signal.SIGTERM, hand_on)
        try:
            status = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if handed_on:
        signal.raise_signal(signal.SIGTERM)
    return status
