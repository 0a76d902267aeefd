"""Blocks that were solved before, by everything that a block depends on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor


class BlockMemo:
    """The newest solved blocks of one model, by everything a block depends on.

    Args:
        capacity: Blocks kept; the oldest go first.
        first: Only the first so many blocks of a volume are kept: later ones of two rollouts differ.
    """

    def __init__(self, capacity: int, first: int) -> None:
        self.capacity, self.first = capacity, first
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, key: bytes) -> Tensor | None:
        """The block ``[C, T, h, w]``, or None."""
        return self._blocks.get(key)

    def put(self, key: bytes, block: Tensor) -> None:
        """Keep a block."""
        self._blocks[key] = block
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)


def block_key(facts: str, *tensors: Tensor | None) -> bytes:
    """Digest of what a block depends on: ``facts`` in words, and tensors bit by bit."""
    digest = hashlib.sha256(facts.encode())
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{list(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
