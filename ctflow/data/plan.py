"""Which sample is read when: a function of (seed, epoch) alone, split over ranks afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.errors import ConfigError
from ctflow.seeding import derived_generator


def epoch_order(
    shard_items: Sequence[int], seed: int, epoch: int, global_batch: int, shuffle_shards: int
) -> NDArray[np.int64]:
    """All samples of a training epoch in global order.

    Shards are shuffled, then the samples of ``shuffle_shards`` neighbouring ones are mixed: reading stays
    within a few files. The remainder under one global batch is left out; it moves on with the epoch, so that
    every sample has its turn.

    Args:
        shard_items: Samples in each shard; samples are numbered through all shards.
        seed: Seed of the order.
        epoch: Epoch, from 0.
        global_batch: Samples of one optimizer step over all ranks and accumulated micro-steps.
        shuffle_shards: Shards mixed at a time.

    Returns:
        Sample numbers, a multiple of ``global_batch`` of them.

    Raises:
        ConfigError: Fewer samples than one global batch.
    """
    total = sum(shard_items)
    if total < global_batch:
        raise ConfigError(
            f"an epoch has {total} samples, one optimizer step takes {global_batch}",
            "at least one full step per epoch",
            "raise data.repeat, or lower data.batch_size or the accumulation",
        )
    generator = derived_generator(seed, "order", epoch)
    starts = np.concatenate([[0], np.cumsum(shard_items)])
    shards = torch.randperm(len(shard_items), generator=generator).numpy()
    order = []
    for first in range(0, len(shards), shuffle_shards):
        window = shards[first : first + shuffle_shards]
        items = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in window])
        order.append(items[torch.randperm(len(items), generator=generator).numpy()])
    remainder = total % global_batch
    dropped = (epoch * remainder + np.arange(remainder)) % total
    joined = np.concatenate(order).astype(np.int64)
    return joined[~np.isin(joined, dropped)]


def rank_batches(order: NDArray[np.int64], rank: int, world_size: int, batch_size: int) -> NDArray[np.int64]:
    """This rank's share ``[steps, batch_size]`` of each run of ``world_size · batch_size`` samples."""
    return order.reshape(-1, world_size, batch_size)[:, rank]


def rank_cases(cases: int, rank: int, world_size: int) -> range:
    """Cases a rank evaluates: every case on exactly one rank."""
    return range(rank, cases, world_size)
