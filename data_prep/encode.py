"""Slice shards to latent shards: A-VAE posteriors and text embeddings through ``Trainer.predict``.

One latent shard per slice shard, under the same name. A batch never leaves its volume and a rank writes whole
shards, so one process and several ranks write the same bytes; a killed run goes on with the missing shards.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from ctflow.checkpoint import folder_fingerprint, load_avae, load_text_encoder, part_folder, save_avae
from ctflow.config import parse_command, run_command
from ctflow.config.data import EncodeConfig
from ctflow.data import LatentHeader, LatentShards, LatentShardWriter, SliceShards
from ctflow.errors import ConfigError, ShardError
from ctflow.files import write_text
from ctflow.models import AVAE, TextEncoder
from ctflow.models.text import UNKNOWN_WORTH_A_WORD
from ctflow.outputs import check_writable
from ctflow.parts import Part, claimed, this_part
from ctflow.processes import leave_group_at_exit
from ctflow.shipped import shipped_path
from ctflow.training.cluster import check_cluster, first_process
from ctflow.training.parts import FOLDERS, newest_part
from ctflow.types import AIR_HU
from ctflow.whitening import Whitening
from data_prep.encode_predict import EncodeLoader, Encoder, ShardWriting
from data_prep.encode_splits import Split, find_splits
from data_prep.unfinished import ENCODING, SHARDS, unfinished

log = logging.getLogger("data_prep.encode")
MEASURED_SLICES = 512
"""Slices, evenly spread over the set, that whitening is measured on."""
LONGEST_WAIT = timedelta(days=7)
"""A process whose shards are done waits for the others; one shard of large slices takes hours on a CPU."""


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
    part = _part(config)
    places = find_splits(Path(config.source), Path(config.output))
    for line in [line for source, _ in places for line in unfinished(source)]:
        log.warning("the preparation of %s: %s", config.source, line)
    sources = [SliceShards(source) for source, _ in places]
    config = _with_parts(config)
    text_encoder = load_text_encoder(config.clip)
    avae = _avae(config, sources[0], part)
    with _one_thread():
        header = make_header(avae, config, _one_size(sources))
    splits = [
        Split(source, LatentShardWriter(output, header), _posteriors(config, folder))
        for source, (folder, output) in zip(sources, places, strict=True)
    ]
    for split in splits:
        check_writable(split.writer.folder)
        split.check_output()
        split.check_posteriors()
        log.info(
            "%d of %d shards of %s are complete in %s",
            len(split.complete),
            len(split.shards),
            split.source.folder,
            split.writer.folder,
        )
    _check_reports(text_encoder, splits, config.max_unknown)
    todo = [split for split in splits if len(split.complete) < len(split.shards)]
    rank = _encode(config, Encoder(avae, text_encoder), todo, part) if todo else 0
    for split in splits if rank == 0 else ():
        left = unfinished(split.writer.folder)
        if not left:
            log.info("%d cases of %s are encoded", len(split.source), split.writer.folder)
        for line in left:
            log.info("%s: %s", split.writer.folder, line)
    return 0


def _part(config: EncodeConfig) -> Part:
    """This run's share; processes that ``srun`` or ``torchrun`` starts are parts, with ``devices`` one run.

    Raises:
        ConfigError: A part without their number, or one that lies outside of it.
    """
    names = [n for n in os.environ if config.devices == 1 or n.startswith("SLURM_ARRAY_TASK_")]
    return this_part(config.part, config.parts, {name: os.environ[name] for name in names})


def _encode(config: EncodeConfig, encoder: Encoder, splits: list[Split], part: Part) -> int:
    """Encode what is not complete; returns this process's rank.

    Raises:
        ShardError: Another process encodes the same part.
        ConfigError: SLURM started another number of processes than configured.
    """
    alone = part.count > 1 and config.devices == 1  # the scheduler's processes do not form a group
    if not alone:
        check_cluster(config.devices, 1, named=True)
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else DDPStrategy(timeout=LONGEST_WAIT),
        precision="32-true" if config.precision == "fp32" else "bf16-mixed",
        plugins=[LightningEnvironment()] if alone else None,
        callbacks=[ShardWriting([(split.source, split.writer) for split in splits])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rank, ranks = trainer.global_rank, trainer.world_size
    share = Part(part.index * ranks + rank, part.count * ranks)
    loaders = [
        EncodeLoader(s.source, s.shards, s.complete, config.batch_slices, share, s.posteriors) for s in splits
    ]
    with ExitStack() as stack:
        for split in splits if alone or first_process() else ():
            folder = split.writer.folder / ENCODING
            stack.enter_context(claimed(folder, part, split.writer.folder))
            write_text(folder / SHARDS, json.dumps(list(split.shards)) + "\n")
        stack.enter_context(_one_thread())
        leave_group_at_exit()
        trainer.predict(encoder, loaders, return_predictions=False)
        # All processes end together: the first one keeps the folder claimed, and says what is done.
        # A callback cannot wait: Lightning calls none in a process that finds its shards complete.
        trainer.strategy.barrier()
    return rank


def _check_reports(encoder: TextEncoder, splits: list[Split], limit: float) -> None:
    """Look at the reports of shards that are not complete yet, before hours of work.

    Single reports that the encoder hardly knows are named and encoded: a data set is not held up by them, and
    a text encoder that was trained on few reports of the same data cannot know every word of the others.

    Raises:
        ShardError: The text encoder knows too few words of more than half of them.
    """
    few: list[str] = []
    shares: list[float] = []
    for split in splits:
        for name in sorted(set(split.shards) - split.complete):
            for case in split.shards[name]:
                metadata = split.source.metadata(case)
                share, examples = encoder.unknown_words(metadata["report"])
                shares.append(share)
                if share > limit:
                    few.append(f"{metadata['case_id']} ({share:.0%}: {', '.join(examples)} …)")
    found = (
        f"{len(few)} of {len(shares)} reports have more than {limit:.0%} words that the text encoder does "
        f"not know: {'; '.join(few[:3])}"
    )
    if len(few) > len(shares) / 2:
        raise ShardError(
            found,
            "reports in the language of its training",
            "train a text encoder on these reports (make train-clip), or give max_unknown=1 to go on",
        )
    if few:
        log.warning("%s: they hardly say anything to the model", found)
    if shares and (mean := sum(shares) / len(shares)) > UNKNOWN_WORTH_A_WORD:
        log.warning(
            "the text encoder does not know %.0f %% of the words of %d reports: they hardly say anything to "
            "it; one trained on them does (make train-clip)",
            100 * mean,
            len(shares),
        )


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
    found: dict[str, Any] = {}
    for key, task, what in (("avae", "autoencoder", "A-VAE"), ("clip", "clip", "text encoder")):
        given = getattr(config, key)
        part = None if given else newest_part(Path(config.runs_dir), task)
        found[key] = str(part_folder(shipped_path(given), FOLDERS[task]) if part is None else part.folder)
        log.info("%s: %s (%s)", what, found[key], "as given" if part is None else part.why)
    return replace(config, **found)


def _avae(config: EncodeConfig, source: SliceShards, part: Part) -> AVAE:
    """The A-VAE, with the whitening that is asked for.

    Raises:
        ConfigError: Several parts would measure it.
    """
    if config.whitening == "model":
        return load_avae(config.avae)
    if (Path(config.avae_output) / "config.yaml").is_file():
        log.info("whitening taken from %s", config.avae_output)
        return load_avae(config.avae_output)
    if part.count > 1:
        raise ConfigError(
            f"whitening=measured in {part}, and nothing in {config.avae_output} yet",
            "one A-VAE for all parts",
            "run once without parts until the whitening is measured (it is written first), then all parts",
        )
    avae = load_avae(config.avae)
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
