"""Settings that a training derives from its data and its machine: passes per epoch, data in memory."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, LatentShards

log = logging.getLogger("ctflow")

MEMORY_SHARE = 0.5
"""Part of the machine's free memory that a set kept in memory may take."""


def fitted_to_data(config: TrainConfig, data: LatentDataModule) -> TrainConfig:
    """Raise ``data.repeat`` where a set is smaller than a step, and read from disk what memory does not hold.

    Args:
        config: The run's configuration.
        data: Its data, opened without ``in_memory``.
    """
    chosen = config.data
    step = chosen.batch_size * config.loop.devices * config.loop.nodes * config.loop.accumulate
    samples = len(data.view("train"))
    if samples * chosen.repeat < step:
        chosen = replace(chosen, repeat=math.ceil(step / samples))
        log.warning(
            "%s holds %d samples, one optimizer step takes %d: every sample is seen %d times an epoch",
            chosen.train,
            samples,
            step,
            chosen.repeat,
        )
    needed, free = memory_needed(data) * config.loop.devices, free_memory()
    if chosen.in_memory and needed > MEMORY_SHARE * free:
        chosen = replace(chosen, in_memory=False)
        log.warning(
            "data.in_memory would take %.1f GB of %.1f GB free memory: the shards are read from disk",
            needed / 1e9,
            free / 1e9,
        )
    return replace(config, data=chosen)


def memory_needed(data: LatentDataModule) -> int:
    """Bytes of a set kept in memory (``data.in_memory``), both splits."""
    total = 0
    for split in ("train", *(["valid"] if data.config.valid else [])):
        shards = data.view(split).shards
        values = sum(case.slices * math.prod(case.size) for case in shards.cases)
        if isinstance(shards, LatentShards):
            values *= 2 * shards.header.air.shape[0]
        elif data.config.view == "volumes":
            values = len(shards) * math.prod(data.config.grid.shape)
        total += 2 * values  # int16 or float16
    return total


def free_memory() -> int:
    """Bytes of memory that can be had now, caches given up."""
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
