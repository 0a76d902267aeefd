"""Small shard folders made without any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ctflow.data import LatentHeader, LatentRecord, LatentShardWriter, SliceRecord, SliceShardWriter
from ctflow.whitening import Whitening

CHANNELS, SIDE, WIDTH = 4, 2, 6


def slice_record(number: int, slices: int, side: int = 16) -> SliceRecord:
    rng = np.random.default_rng(number)
    hu = rng.integers(-1000, 1000, (slices, side, side)).astype(np.int16)
    return SliceRecord(
        case_id=f"case_{number}",
        patient_id=f"patient_{number // 2}",
        hu=hu,
        spacing=(4.0, 2.5, 2.0),
        report=f"Nodule of {number} mm in the left lung – größer als zuvor.",
        labels={"Lung nodule": number % 2},
        source_sha256=f"{number:064d}",
        truth_path=f"case_{number}.truth.json",
        extra={"kernel": "B30"},
    )


def latent_record(number: int, slices: int, logvar: float = -1.0, tokens: int = 3) -> LatentRecord:
    rng = np.random.default_rng(number)
    shape = (slices, CHANNELS, SIDE, SIDE)
    return LatentRecord(
        case_id=f"case_{number}",
        patient_id=f"patient_{number // 2}",
        mean=rng.normal(size=shape).astype(np.float16),
        logvar=np.full(shape, logvar, np.float16),
        spacing=(4.0, 2.5, 2.0),
        text=rng.normal(size=(tokens, WIDTH)).astype(np.float16),
        text_mask=np.ones(tokens, bool),
        pooled=rng.normal(size=WIDTH).astype(np.float32),
        report="No nodule.",
    )


def latent_header(fingerprint: str = "avae") -> LatentHeader:
    return LatentHeader(
        avae_fingerprint=fingerprint,
        text_fingerprint="text",
        whitening=Whitening(shift=[0.1, 0.2, 0.3, 0.4], scale=[2.0, 1.0, 0.5, 1.5]),
        air=np.full((CHANNELS, SIDE, SIDE), -3.0, np.float32),
        white=np.full((CHANNELS, SIDE, SIDE), 5.0, np.float32),
        hu_window=(-1000.0, 1000.0),
        provenance={"batch_slices": 8},
    )


def write_slices(folder: Path, lengths: Sequence[int], volumes_per_shard: int = 2) -> Path:
    with SliceShardWriter(folder, volumes_per_shard) as writer:
        for number, slices in enumerate(lengths):
            writer.append(slice_record(number, slices))
    return folder


def write_latents(folder: Path, lengths: Sequence[int], per_shard: int = 2, logvar: float = -1.0) -> Path:
    writer = LatentShardWriter(folder, latent_header())
    for first in range(0, len(lengths), per_shard):
        writer.begin(f"shard-{first // per_shard:05d}.h5")
        for number in range(first, min(first + per_shard, len(lengths))):
            writer.append(latent_record(number, lengths[number], logvar, tokens=3 + number % 3))
        writer.finish()
    return folder


@pytest.fixture
def make_slices(tmp_path: Path) -> Callable[..., Path]:
    return lambda lengths, **kw: write_slices(tmp_path / "slices", lengths, **kw)


@pytest.fixture
def make_latents(tmp_path: Path) -> Callable[..., Path]:
    return lambda lengths, **kw: write_latents(tmp_path / "latents", lengths, **kw)


@pytest.fixture
def records() -> dict[str, Callable]:
    """The makers above, for tests that write shards themselves."""
    return {"slice": slice_record, "latent": latent_record, "header": latent_header}
