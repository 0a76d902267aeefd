"""Timing: interleaved pairs, medians with their spread, the matrix-product peak, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ctflow.processes import return_freed_buffers

MIB = 2**20


@dataclass
class Row:
    """One line of the benchmark.

    Attributes:
        stage: What is timed.
        precision: ``fp32``, ``bf16`` (autocast), or ``-`` where no network is timed.
        seconds: Median wall time.
        spread: First and third quartile of the wall times.
        reference: What it is measured against; empty: nothing.
        reference_seconds: Median wall time of the reference.
        ratio: Median over pairs of reference over stage: above 1 the stage is faster.
        ratio_spread: First and third quartile of the ratios.
        difference: Relative L2 distance of the two outputs; None where there is one alone.
        gflop: Of one call, in matrix products and convolutions; None: not counted.
        share_of_peak: Of the measured matrix-product peak at this precision.
        peak_mib: Most memory beyond what was held before, and beyond the output where the stage says so.
        note: Rates and sizes in words.
    """

    stage: str
    precision: str = "-"
    seconds: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)
    reference: str = ""
    reference_seconds: float | None = None
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    difference: float | None = None
    gflop: float | None = None
    share_of_peak: float | None = None
    peak_mib: float | None = None
    note: str = ""


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, in seconds."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile; the ends where there are two values or one."""
    if len(values) < 3:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def compare(
    row: Row,
    run: Callable[[], Tensor | None],
    reference: Callable[[], Tensor | None] | None,
    repeats: int,
    device: torch.device,
) -> Row:
    """Time a stage, and its reference in turns with it, so that a busy machine slows both.

    Args:
        row: Names and counts; times are filled in.
        run: The stage; its output is compared.
        reference: The same by other means.
        repeats: Pairs, after one call of each to warm up. The order within a pair changes.
        device: Where it runs.
    """
    out = run()
    other = reference() if reference is not None else None
    if out is not None and other is not None:
        row.difference = float((out - other).double().norm() / other.double().norm())
    del out, other
    own: list[float] = []
    theirs: list[float] = []
    for i in range(repeats):
        order = [(own, run), (theirs, reference)]
        for times, call in order if i % 2 else reversed(order):
            if call is not None:
                times.append(timed(call, device))
    row.seconds, row.spread = statistics.median(own), quartiles(own)
    if theirs:
        ratios = [b / a for a, b in zip(own, theirs, strict=True)]
        row.reference_seconds, row.ratio = statistics.median(theirs), statistics.median(ratios)
        row.ratio_spread = quartiles(ratios)
    return row


def counted_gflop(run: Callable[[], object]) -> float:
    """GFLOP of a call in matrix products, convolutions and attention, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


class PeakMemory:
    """Most memory since it was made, beyond what was held then, in MiB; on a CPU that of the process.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / MIB
        else:
            return_freed_buffers()  # a buffer that an earlier row left would hide this one's
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
            self._before = _status("VmRSS")

    def mib(self) -> float:
        """The mark now."""
        return (torch.cuda.max_memory_allocated() / MIB if self._cuda else _status("VmHWM")) - self._before


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return float(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def bytes_read() -> int:
    """Bytes that this process has read from files so far, from the page cache or the disk."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.split("rchar:")[1].split()[0])
