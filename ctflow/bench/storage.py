"""Rows of the data and the metrics: blocks out of shards, the Fréchet distance, the ingest."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.bench.measure import MIB, Row, bytes_read, compare
from ctflow.config.bench import BenchConfig
from ctflow.data import LatentHeader, LatentRecord, LatentShards, LatentShardWriter, read_manifest
from ctflow.metrics.frechet import Moments, frechet_from_moments
from ctflow.types import BLOCK_LENGTH
from ctflow.whitening import Whitening

_CPU = torch.device("cpu")
_CHANNELS = 16


def stream_row(config: BenchConfig) -> Row:
    """Random blocks read from shards, against ``torch.load`` of the whole volume that each lies in."""
    rng = np.random.default_rng(0)
    side, slices = config.latent_side, config.volume_slices
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        cases = 8
        zero = np.zeros((_CHANNELS, side, side), np.float32)
        header = LatentHeader(
            "a", "b", Whitening([0.0] * _CHANNELS, [1.0] * _CHANNELS), zero, zero, (-1000.0, 1000.0)
        )
        writer = LatentShardWriter(root, header)
        writer.begin("shard-00000.h5")
        for i in range(cases):
            mean, logvar = rng.normal(0, 1, (2, slices, _CHANNELS, side, side)).astype(np.float16)
            record = LatentRecord(
                f"c{i}", f"p{i}", mean, logvar, (1.5, 1.0, 1.0), np.zeros((1, 8), np.float16),
                np.ones(1, bool), np.zeros(8, np.float32),
            )  # fmt: skip
            writer.append(record)
            torch.save(
                {"mean": torch.from_numpy(mean), "logvar": torch.from_numpy(logvar)}, root / f"c{i}.pt"
            )
        writer.finish()
        shards = LatentShards(root)
        places = [(int(rng.integers(cases)), int(rng.integers(slices - BLOCK_LENGTH + 1))) for _ in range(32)]

        def ours() -> Tensor:
            means = [shards.posterior(i, s, s + BLOCK_LENGTH)[0] for i, s in places]
            return torch.from_numpy(np.stack(means)).float()

        def whole() -> Tensor:
            loaded = [(torch.load(root / f"c{i}.pt", weights_only=True)["mean"], s) for i, s in places]
            return torch.stack([mean[s : s + BLOCK_LENGTH] for mean, s in loaded]).float()

        ours()
        read = [_read_by(call) / len(places) / MIB for call in (ours, whole)]
        row = Row(
            f"{len(places)} blocks of {BLOCK_LENGTH} × {_CHANNELS} × {side}² from shards",
            reference=f"torch.load of whole volumes, {slices} slices",
        )
        compare(row, ours, whole, config.repeats, _CPU)
    told = f"{read[0]:.2f} MiB read a block; reference {read[1]:.2f} MiB"
    row.note = f"{len(places) / row.seconds:.0f} blocks/s, {told}"
    return row


def _read_by(call: Callable[[], object]) -> int:
    before = bytes_read()
    call()
    return bytes_read() - before


def frechet_row(config: BenchConfig) -> Row:
    """The Fréchet distance from streamed sums, against the matrix square root by Schur's method (SciPy)."""
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    d = config.frechet_dimensions
    first, second = (
        Moments.of(torch.randn(2 * d, d, generator=generator) * scale + shift)
        for scale, shift in ((1.0, 0.0), (1.2, 0.1))
    )

    def ours() -> Tensor:
        return frechet_from_moments(first, second)

    def schur() -> Tensor:
        s1, s2 = first.covariance, second.covariance
        root = torch.from_numpy(np.real(sqrtm((s1 @ s2).numpy())))
        return (first.mean - second.mean).square().sum() + (s1 + s2 - 2 * root).trace()

    row = Row(f"Fréchet distance, {d} dimensions", "-", reference="scipy.linalg.sqrtm")
    return compare(row, ours, schur, 1, _CPU)


def ingest_row(config: BenchConfig) -> Row:
    """The ingest of phantoms by one worker, against reading and resampling by nibabel and SciPy alone."""
    import nibabel
    from scipy.ndimage import zoom

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        phantoms = [
            "data_prep.phantom",
            "--output",
            str(root / "in"),
            "--volumes",
            str(config.ingest_volumes),
        ]
        _command([*phantoms, "--seed", "0", "slice_spacing=4.0"])
        began = time.perf_counter()
        ingest = ["data_prep.ct_rate", "--source", str(root / "in"), "--output", str(root / "out")]
        _command([*ingest, "resolution=128", "z_spacing=2.0", "workers=1", "progress=false"])
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        for path in sorted((root / "in").rglob("*.nii.gz")):
            image = nibabel.load(path)
            data = np.asarray(image.dataobj, np.float32)
            zoom(
                data,
                (128 / data.shape[0], 128 / data.shape[1], float(image.header.get_zooms()[2]) / 2.0),
                order=1,
            )
        plain = time.perf_counter() - began
        made = sum(len(e.cases) for s in ("train", "valid") for e in read_manifest(root / "out" / s))
    return Row(
        f"ingest of {made} phantoms to 128², one worker",
        seconds=seconds,
        spread=(seconds, seconds),
        reference="nibabel and scipy.ndimage.zoom: no checks, no shards",
        reference_seconds=plain,
        ratio=plain / seconds,
        ratio_spread=(plain / seconds, plain / seconds),
        note=f"{made / seconds * 60:.0f} volumes a minute, the command's start of some seconds included",
    )


def _command(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
