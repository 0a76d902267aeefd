"""Several processes, one evaluation: batches are shared out, results are read from the common cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

ItemT = TypeVar("ItemT")


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
            dist.barrier()

    @property
    def first(self) -> bool:
        """Whether this rank writes the results."""
        return self.rank == 0


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` describes in the environment; leave it afterwards."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()
