"""The loader: batches of a view in planned order, over ranks and worker processes, resumable in mid-epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ctflow.data.views import Batch, View
from ctflow.errors import ConfigError
from ctflow.seeding import derived_generator

log = logging.getLogger("ctflow")


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


_ORDER = {
    "seed": "seed",
    "global_batch": "global_batch",
    "shuffle_shards": "data.shuffle_shards",
    "repeat": "data.repeat",
    "set_size": "samples of an epoch",
    "train": "cases of data.train (fingerprint)",
}
"""The keys that decide the order of an epoch, and their names in messages."""

ItemBatches = Sequence[Sequence[int]] | NDArray[np.int64]


class _Batches(IterableDataset[Batch]):
    """Reads given batches; worker w of W reads every W-th, so the loader hands them out in order."""

    def __init__(self, view: View, batches: ItemBatches, epoch: int | None) -> None:
        self.view, self.batches, self.epoch = view, batches, epoch

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for items in self.batches[first::step]:
            yield self.view.batch([int(i) for i in items], self.epoch)


class _Loader:
    """The base of the two loaders: reading batches with or without worker processes."""

    def __init__(self, view: View, num_workers: int, pin_memory: bool) -> None:
        self.view, self.num_workers, self.pin_memory = view, num_workers, pin_memory

    def _read(self, batches: ItemBatches, epoch: int | None) -> Iterator[Batch]:
        workers = min(self.num_workers, len(batches))
        dataset = _Batches(self.view, batches, epoch)
        yield from DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
        )


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to all processes (Ctrl-C, a scheduler's) is the parent's to answer; workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class TrainLoader(_Loader):
    """One epoch of training batches of this rank.

    The order depends on (seed, epoch) alone; ranks share each global batch. ``state_dict`` holds the place of
    the next batch, counted in samples over all ranks, so that a run goes on where it was, also on another
    number of ranks with the same global batch. Lightning calls ``state_dict``, ``load_state_dict`` and
    (through ``sampler``) ``set_epoch`` by itself.

    Args:
        view: What is read.
        batch_size: Samples per rank and micro-step.
        accumulate: Micro-steps of one optimizer step.
        repeat: Passes over the set in one epoch.
        seed: Seed of the order.
        shuffle_shards: Shards mixed at a time.
        rank: This process.
        world_size: All processes.
        num_workers: Loader processes.
        pin_memory: Put batches into page-locked memory.
    """

    def __init__(
        self,
        view: View,
        *,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        repeat: int = 1,
        shuffle_shards: int = 8,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(view, num_workers, pin_memory)
        self.batch_size, self.accumulate, self.repeat = batch_size, accumulate, repeat
        self.seed, self.shuffle_shards = seed, shuffle_shards
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0
        cases = [view.shard_items(), [case.case_id for case in view.shards.cases]]
        self._set = hashlib.sha256(json.dumps(cases).encode()).hexdigest()[:12]
        self._order(0)  # too small a set fails here, not after the first checkpoint is loaded

    @property
    def sampler(self) -> Self:
        """Where Lightning looks for ``set_epoch``."""
        return self

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-step over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        samples = len(self.view) * self.repeat
        return samples // (self.micro_batch * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch; the place moves on as each batch is handed out, worker prefetching aside."""
        epoch, place = self.epoch, self.position
        batches = rank_batches(self._order(epoch), self.rank, self.world_size, self.batch_size)[place:]
        for batch in self._read(batches, epoch):
            place += 1
            self.epoch, self.position = (epoch, place) if place < len(self) else (epoch + 1, 0)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, unless the loader is in it."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch and what it depends on."""
        return {
            "epoch": self.epoch,
            "samples": self.position * self.micro_batch,
            "seed": self.seed,
            "set_size": len(self.view) * self.repeat,
            "global_batch": self.micro_batch * self.accumulate,
            "shuffle_shards": self.shuffle_shards,
            "repeat": self.repeat,
            "train": self._set,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place.

        Raises:
            ConfigError: In mid-epoch, something that decides the order is another one.
        """
        ours = self.state_dict()
        changed = [k for k in _ORDER if k in state and state[k] != ours[k]]
        if changed and state["samples"]:
            was = ", ".join(f"{_ORDER[k]}={state[k]}" for k in changed)
            now = ", ".join(f"{_ORDER[k]}={ours[k]}" for k in changed)
            raise ConfigError(
                f"the run to resume stopped in mid-epoch with {was}, now {now}",
                "what decides the order of the data stays as it is in mid-epoch",
                "give these keys their old values (global_batch is data.batch_size x devices x nodes x "
                "accumulate), or start a new run with another name=…",
            )
        if "train" in changed:
            log.info("data.train holds other cases than before: %d samples of an epoch", ours["set_size"])
        self.epoch, self.position = state["epoch"], state["samples"] // self.micro_batch

    def _order(self, epoch: int) -> NDArray[np.int64]:
        items = self.view.shard_items() * self.repeat
        return epoch_order(items, self.seed, epoch, self.micro_batch * self.accumulate, self.shuffle_shards)


class EvaluationLoader(_Loader):
    """Every sample of every case once, in order; a case lies on one rank.

    Args:
        view: What is read.
        batch_size: Samples per rank and step; the last batch may be smaller.
        rank: This process.
        world_size: All processes.
        num_workers: Loader processes.
        pin_memory: Put batches into page-locked memory.
    """

    def __init__(
        self,
        view: View,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(view, num_workers, pin_memory)
        items = [i for scan in rank_cases(len(view.scans), rank, world_size) for i in view.scan_items(scan)]
        self.batches = [items[first : first + batch_size] for first in range(0, len(items), batch_size)]

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """All batches of this rank."""
        return self._read(self.batches, None)
