"""What a process computes with: threads, whether the machine has room for them, and bfloat16."""

from __future__ import annotations

import logging
import os

log = logging.getLogger("ctflow")


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
