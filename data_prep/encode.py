"""Slice shards to latent shards: A-VAE posteriors and text embeddings through ``Trainer.predict``.

One latent shard per slice shard, under the same name. A batch never leaves its volume and a rank writes whole
shards, so one process and several ranks write the same bytes; a killed run goes on with the missing shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from ctflow.checkpoint import folder_fingerprint, load_avae, load_text_encoder, save_avae
from ctflow.config import parse_command, run_command
from ctflow.config.data import EncodeConfig
from ctflow.data import (
    LatentHeader,
    LatentShards,
    LatentShardWriter,
    SliceShards,
    read_manifest,
    shards_to_encode,
)
from ctflow.data.reader import read_shard_header
from ctflow.errors import ShardError
from ctflow.models import AVAE
from ctflow.shipped import shipped_path
from ctflow.types import AIR_HU
from ctflow.whitening import Whitening
from data_prep.encode_predict import SOURCE_SHARD, EncodeLoader, Encoder, ShardWriting

log = logging.getLogger("data_prep.encode")
MEASURED_SLICES = 512
"""Slices, evenly spread over the set, that whitening is measured on."""


def make_header(avae: AVAE, config: EncodeConfig, image_size: tuple[int, int]) -> LatentHeader:
    """What all latent shards share: whose latents they are, and its air and white slices."""
    window = avae.config.intensity
    return LatentHeader(
        avae_fingerprint=avae.fingerprint(),
        text_fingerprint=folder_fingerprint(shipped_path(config.clip)),
        whitening=avae.config.whitening,
        air=_flat_mean(avae, AIR_HU, image_size),
        white=_flat_mean(avae, window.hu_max, image_size),
        hu_window=(window.hu_min, window.hu_max),
        provenance={
            "batch_slices": config.batch_slices,
            "precision": config.precision,
            "intensity": asdict(window),
            "image_size": list(image_size),
        },
    )


@torch.no_grad()
def measure_whitening(avae: AVAE, source: SliceShards, batch_slices: int) -> Whitening:
    """Per-channel shift and scale that bring posterior samples to zero mean and unit variance.

    Measured on ``MEASURED_SLICES`` slices spread evenly over the set; the variance is that of samples:
    variance of the means plus mean of the variances.
    """
    starts = np.concatenate([[0], np.cumsum([case.slices for case in source.cases])])
    chosen = np.unique(np.linspace(0, starts[-1] - 1, MEASURED_SLICES).astype(int))
    count = 0
    total, squares = torch.zeros(2, avae.config.latent_channels, dtype=torch.float64)
    for first in range(0, len(chosen), batch_slices):
        items = chosen[first : first + batch_slices]
        cases = np.searchsorted(starts, items, side="right") - 1
        hu = [source.hu(c, i - starts[c], i - starts[c] + 1) for c, i in zip(cases, items, strict=True)]
        mean, logvar = avae.encode_hu(torch.from_numpy(np.concatenate(hu)).float())
        mean = mean.double()
        total = total + mean.sum(dim=(0, 2, 3))
        squares = squares + (mean.square() + logvar.double().exp()).sum(dim=(0, 2, 3))
        count += mean.shape[0] * mean.shape[2] * mean.shape[3]
    shift = total / count
    scale = (squares / count - shift.square()).rsqrt()
    return Whitening(shift=shift.tolist(), scale=scale.tolist())


def main(argv: Sequence[str] | None = None) -> int:
    """Encode a folder of slice shards.

    Raises:
        CTFlowError: Bad configuration, missing weights or shards, or an output made by other weights.
    """
    config = parse_command(EncodeConfig, "ctflow encode", __doc__ or "", [], argv).config
    source = SliceShards(config.source)
    text_encoder = load_text_encoder(shipped_path(config.clip))
    avae = _avae(config, source)
    writer = LatentShardWriter(config.output, make_header(avae, config, source.one_size()))
    shards = _shards(config.source)
    _check_output(writer, config.source)
    complete = set(shards) - set(shards_to_encode(config.source, config.output))
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else "ddp",
        precision="32-true" if config.precision == "fp32" else "bf16-mixed",
        callbacks=[ShardWriting(source, writer)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rank, world_size = trainer.global_rank, trainer.world_size
    loader = EncodeLoader(source, shards, complete, config.batch_slices, rank, world_size)
    log.info("%d of %d shards are complete in %s", len(complete), len(shards), config.output)
    if len(complete) < len(shards):
        with _one_thread():
            model = Encoder(avae, text_encoder, source, _posteriors(config, source, writer.header))
            trainer.predict(model, loader, return_predictions=False)
    if rank == 0:
        log.info("encoded %d cases to %s", len(source), config.output)
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread per process on a CPU: sums split over threads round otherwise, and the bytes would change.

    A machine's cores are used by processes instead (``devices``).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _avae(config: EncodeConfig, source: SliceShards) -> AVAE:
    if config.whitening == "model":
        return load_avae(shipped_path(config.avae))
    if (Path(config.avae_output) / "config.yaml").is_file():
        log.info("whitening taken from %s", config.avae_output)
        return load_avae(config.avae_output)
    avae = load_avae(shipped_path(config.avae))
    avae = avae.with_whitening(measure_whitening(avae, source, config.batch_slices))
    rank_zero_only(save_avae)(config.avae_output, avae)
    return avae


def _posteriors(config: EncodeConfig, source: SliceShards, header: LatentHeader) -> LatentShards | None:
    """The shards whose posteriors are taken over, if any.

    Raises:
        ShardError: They hold latents of another A-VAE, or not of these slices.
    """
    if not config.posteriors:
        return None
    shards = LatentShards(config.posteriors)
    for name in ("avae_fingerprint", "whitening", "hu_window"):
        found, ours = getattr(shards.header, name), getattr(header, name)
        if found != ours:
            raise ShardError(
                f"{config.posteriors} has {name} {found}, avae={config.avae} has {ours}",
                "posteriors of the same A-VAE",
                "name that A-VAE, or leave posteriors empty to encode the slices",
            )
    ours = {case.case_id: case.slices for case in source.cases}
    theirs = {case.case_id: case.slices for case in shards.cases}
    if missing := [name for name, slices in ours.items() if theirs.get(name) != slices]:
        raise ShardError(
            f"{config.posteriors} lacks {len(missing)} of {len(ours)} cases or slices, e.g. {missing[0]}",
            f"latents of all cases of {config.source}",
            "leave posteriors empty to encode the slices",
        )
    return shards


def _shards(source: str) -> dict[str, range]:
    shards, first = {}, 0
    for entry in read_manifest(source):
        shards[entry.file] = range(first, first + len(entry.cases))
        first += len(entry.cases)
    return shards


def _check_output(writer: LatentShardWriter, source: str) -> None:
    """Look at the shards that are complete already.

    Raises:
        ShardError: Complete shards come from other weights or other slice shards.
    """
    done = writer.completed_shards()
    sources = {entry.file: entry.sha256 for entry in read_manifest(source)}
    for name in done:
        header = read_shard_header(writer.folder / name)
        made_from = header.provenance.pop(SOURCE_SHARD)
        for field in ("avae_fingerprint", "text_fingerprint", "whitening", "hu_window", "provenance"):
            found, ours = getattr(header, field), getattr(writer.header, field)
            if found != ours:
                raise ShardError(
                    f"{writer.folder / name} holds latents with {field} {found}, this run would write {ours}",
                    "one encoder and one setting per folder",
                    "give an empty output folder",
                )
        if made_from != sources.get(name):
            raise ShardError(
                f"{writer.folder / name} was not made from {source}/{name} as it is now",
                "latents of these slice shards",
                "give an empty output folder",
            )


@torch.no_grad()
def _flat_mean(avae: AVAE, hu: float, image_size: tuple[int, int]) -> np.ndarray:
    return avae.encode_hu(torch.full((1, *image_size), hu)).mean[0].numpy()


if __name__ == "__main__":
    run_command(main)
