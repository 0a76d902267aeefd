"""What ``python -m ctflow.bench`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _embedded_fmvt() -> dict[str, Any]:
    return {
        "input_size": [16, 8, 8],
        "hidden_size": 256,
        "depth": 8,
        "num_heads": 4,
        "text_dim": 128,
        "text_tokens": 128,
    }


@dataclass
class BenchConfig:
    """Keys of ``make bench`` (``ARGS="key=value …"``); the defaults are the embedded checkpoint's sizes.

    Attributes:
        image_size: Rows and columns of a slice.
        slices: Slices per A-VAE call.
        batch_size: Blocks per FMvT call.
        steps: Euler steps of the sampler.
        repeats: Timed runs per stage; the median counts.
        precisions: ``fp32`` and ``bf16`` (autocast).
        avae_channels: Width of the A-VAE's levels.
        avae_groups: Groups of its group norms.
        fmvt: Fields of ``FMvTConfig``.
        output: JSON written at the end.
    """

    image_size: int = 128
    slices: int = 16
    batch_size: int = 4
    steps: int = 10
    repeats: int = 3
    precisions: list[str] = field(default_factory=lambda: ["fp32", "bf16"])
    avae_channels: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    avae_groups: int = 8
    fmvt: dict[str, Any] = field(default_factory=_embedded_fmvt)
    output: str = "runs/bench.json"

    def __post_init__(self) -> None:
        if min(self.image_size, self.slices, self.batch_size, self.steps, self.repeats) < 1:
            raise ValueError(f"sizes, steps and repeats are at least 1, found {self}")
        if not set(self.precisions) <= {"fp32", "bf16"}:
            raise ValueError(f"precisions are fp32 and bf16, found {self.precisions}")
