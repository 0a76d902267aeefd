"""Noise as a function of (seed, case, block): the same on any device, batch size, order or restart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

SINGLE_REPORT_CASE = "report"
"""Case id of ``--report``: one seed then compares two texts on equal noise."""


def derived_generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``names`` alone (SHA-256)."""
    digest = hashlib.sha256(repr((int(seed), *map(str, names))).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def case_noise(seed: int, case_id: str, block_index: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one block of one case, drawn on the CPU in float32."""
    return torch.randn(*shape, generator=derived_generator(seed, "block-noise", case_id, block_index))
