"""Slice shards to latent shards: A-VAE posteriors and text embeddings through ``Trainer.predict``.

One latent shard per slice shard, under the same name. A batch never leaves its volume and a rank writes whole
shards, so one process and several ranks write the same bytes; a killed run goes on with the missing shards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from ctflow.checkpoint import folder_fingerprint, load_avae, load_text_encoder, save_avae
from ctflow.config import parse_command, run_command
from ctflow.config.data import EncodeConfig
from ctflow.data import LatentHeader, LatentShards, LatentShardWriter, SliceShards
from ctflow.errors import ShardError
from ctflow.models import AVAE
from ctflow.shipped import shipped_path
from ctflow.training.parts import newest_part
from ctflow.types import AIR_HU
from ctflow.whitening import Whitening
from data_prep.encode_predict import EncodeLoader, Encoder, ShardWriting
from data_prep.encode_splits import Split, find_splits

log = logging.getLogger("data_prep.encode")
MEASURED_SLICES = 512
"""Slices, evenly spread over the set, that whitening is measured on."""


def make_header(avae: AVAE, config: EncodeConfig, image_size: tuple[int, int]) -> LatentHeader:
    """What all latent shards share: whose latents they are, and its air and white slices."""
    window = avae.config.intensity
    return LatentHeader(
        avae_fingerprint=avae.fingerprint(),
        text_fingerprint=folder_fingerprint(config.clip),
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
    """Encode a folder of slice shards, or every such folder below the source.

    Raises:
        CTFlowError: Bad configuration, missing weights or shards, or an output made by other weights.
    """
    config = parse_command(EncodeConfig, "ctflow encode", __doc__ or "", [], argv).config
    places = find_splits(Path(config.source), Path(config.output))
    sources = [SliceShards(source) for source, _ in places]
    config = _with_parts(config)
    text_encoder = load_text_encoder(shipped_path(config.clip))
    avae = _avae(config, sources[0])
    header = make_header(avae, config, _one_size(sources))
    splits = [
        Split(source, LatentShardWriter(output, header), _posteriors(config, folder))
        for source, (folder, output) in zip(sources, places, strict=True)
    ]
    for split in splits:
        split.check_output()
        split.check_posteriors()
        log.info(
            "%d of %d shards of %s are complete in %s",
            len(split.complete),
            len(split.shards),
            split.source.folder,
            split.writer.folder,
        )
    todo = [split for split in splits if len(split.complete) < len(split.shards)]
    rank = _encode(config, avae, Encoder(avae, text_encoder), todo) if todo else 0
    if rank == 0:
        for split in splits:
            log.info("%d cases of %s are encoded", len(split.source), split.writer.folder)
    return 0


def _encode(config: EncodeConfig, avae: AVAE, encoder: Encoder, splits: list[Split]) -> int:
    """Encode what is not complete; returns this process's rank."""
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else "ddp",
        precision="32-true" if config.precision == "fp32" else "bf16-mixed",
        callbacks=[ShardWriting([(split.source, split.writer) for split in splits])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rank, ranks = trainer.global_rank, trainer.world_size
    loaders = [
        EncodeLoader(s.source, s.shards, s.complete, config.batch_slices, rank, ranks, s.posteriors)
        for s in splits
    ]
    with _one_thread():
        trainer.predict(encoder, loaders, return_predictions=False)
    return rank


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


def _with_parts(config: EncodeConfig) -> EncodeConfig:
    """The A-VAE and the text encoder that are meant, named in the log with the reason.

    Raises:
        ConfigError: One is left open and there is none.
    """
    found = {}
    for key, task, what in (("avae", "autoencoder", "A-VAE"), ("clip", "clip", "text encoder")):
        given = getattr(config, key)
        part = None if given else newest_part(Path(config.runs_dir), task)
        found[key] = given if part is None else str(part.folder)
        log.info("%s: %s (%s)", what, found[key], "as given" if part is None else part.why)
    return replace(config, **found)


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


def _posteriors(config: EncodeConfig, source: Path) -> LatentShards | None:
    """The latents to take over for one folder of slices: ``posteriors``, or its folder of that name."""
    if not config.posteriors:
        return None
    folder = Path(config.posteriors)
    return LatentShards(folder if source == Path(config.source) else folder / source.name)


def _one_size(sources: list[SliceShards]) -> tuple[int, int]:
    """Rows and columns that all splits share.

    Raises:
        ShardError: They differ.
    """
    sizes = {str(source.folder): source.one_size() for source in sources}
    if len(set(sizes.values())) > 1:
        raise ShardError(
            f"slices of different sizes: {sizes}", "one size", "prepare the scans again at one resolution"
        )
    return next(iter(sizes.values()))


@torch.no_grad()
def _flat_mean(avae: AVAE, hu: float, image_size: tuple[int, int]) -> np.ndarray:
    return avae.encode_hu(torch.full((1, *image_size), hu)).mean[0].numpy()


if __name__ == "__main__":
    run_command(main)
