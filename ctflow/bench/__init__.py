"""``python -m ctflow.bench`` (``make bench``): every stage against a reference in the same run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ctflow.config import parse_command
from ctflow.config.bench import GROUPS, BenchConfig

log = logging.getLogger("ctflow")

DESCRIPTION = """Measure every stage on this machine: a stage and its reference in turns, medians with
quartiles, outputs compared. Writes a JSON file and a Markdown table beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what ``rows`` names and write the tables.

    Raises:
        CTFlowError: Bad configuration or checkpoint.
    """
    from ctflow.bench.measure import Row
    from ctflow.bench.table import write_tables
    from ctflow.processes import matrix_peak

    config = parse_command(BenchConfig, "ctflow bench", DESCRIPTION, [], argv).config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = {precision: matrix_peak(precision, device, config.peak_side) for precision in config.precisions}
    facts = _facts(device, peaks, config)
    rows: list[Row] = []
    for name in config.rows:
        log.info("%s …", name)
        for row in _group(name, config, device, peaks):
            rows.append(row)
            log.info("%-62s %-5s %9.4f s%s", row.stage, row.precision, row.seconds, _ratio(row.ratio))
            write_tables(rows, facts, Path(config.output))  # a kill leaves what was measured
    log.info("written to %s and %s", config.output, Path(config.output).with_suffix(".md"))
    return 0


def _group(name: str, config: BenchConfig, device: torch.device, peaks: dict[str, float]) -> Iterable[Any]:
    """The rows of one group."""
    from ctflow.bench.generating import beside_row, generation_rows
    from ctflow.bench.networks import avae_rows, fmvt_rows, memory_rows, steps_row
    from ctflow.bench.storage import frechet_row, ingest_row, stream_row
    from ctflow.pipeline import CTFlow

    def model() -> CTFlow:
        return CTFlow.from_pretrained(config.checkpoint or None)

    def student() -> CTFlow | None:
        return CTFlow.from_pretrained(config.student) if config.student else None

    groups: dict[str, Callable[[], Iterable[Any]]] = {
        "fmvt": lambda: fmvt_rows(config, device, peaks),
        "avae": lambda: avae_rows(config, device, peaks, model().avae),
        "steps": lambda: [steps_row(config, device, model(), student())],
        "stream": lambda: [stream_row(config)],
        "frechet": lambda: [frechet_row(config)],
        "ingest": lambda: [ingest_row(config)],
        "beside": lambda: [beside_row(config, model())],
        "generation": lambda: generation_rows(config, model()),
        "memory": lambda: memory_rows(config),
    }
    assert groups.keys() == set(GROUPS)
    return groups[name]()


def _facts(device: torch.device, peaks: dict[str, float], config: BenchConfig) -> dict[str, Any]:
    cuda = device.type == "cuda"
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    return {
        "machine": torch.cuda.get_device_name() if cuda else f"CPU, {threads} threads on {cores} cores",
        "load before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "repeats": config.repeats,
        **{f"matrix products {precision}": f"{peak:.0f} GFLOP/s" for precision, peak in peaks.items()},
    }


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"  {ratio:.2f} × its reference"
