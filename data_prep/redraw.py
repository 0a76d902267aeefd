"""Latent shards as a checkpoint draws them: noised to a time of its grid, and solved from there.

    ctflow redraw source=runs/shards/latents/train output=runs/shards/redrawn/train

A decoder learns from them what latents with the generator's own errors stand for (``data.redrawn`` and
``autoencoder.redrawn_share`` of an A-VAE's training). Every shard is written again under its name, with equal
cases, reports and order. A killed run goes on with the missing shards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctflow.config import parse_command, run_command
from ctflow.config.data import RedrawConfig
from ctflow.data import LatentHeader, LatentRecord, LatentShards, LatentShardWriter, read_manifest
from ctflow.data.reader import read_shard_header
from ctflow.data.writer import shard_index
from ctflow.errors import CTFlowError, ShardError
from ctflow.generation import redraw
from ctflow.outputs import check_writable
from ctflow.parts import claimed, this_part
from ctflow.pipeline import CTFlow
from ctflow.seeding import derived_generator
from ctflow.types import BLOCK_LENGTH

log = logging.getLogger("data_prep.redraw")
SOURCE_SHARD = "redrawn_from_sha256"
"""Name in a shard's provenance: the latent shard it was made from."""
REDRAWN = "redrawn"
"""Name in a shard's provenance: checkpoint, sampling and seed."""
SURE = -30.0
"""Log-variance of redrawn latents: each of them is one draw."""


def main(argv: Sequence[str] | None = None) -> int:
    """Redraw a folder of latent shards.

    Raises:
        CTFlowError: Latents of other encoders, a grid with fewer steps, or an output made in another way.
    """
    config = parse_command(RedrawConfig, "ctflow redraw", __doc__ or "", [], argv).config
    part = this_part(config.part, config.parts)
    model = CTFlow.from_pretrained(config.checkpoint or None, config.device)
    source, output = LatentShards(config.source), Path(config.output)
    sampling = model.system.config.rollout
    _check(source, model, config)
    record = {
        "checkpoint": model.fingerprint,
        "sampling": asdict(sampling),
        "most_steps": config.most_steps,
        "seed": config.seed,
    }
    header = replace(source.header, provenance=source.header.provenance | {REDRAWN: record})
    writer = LatentShardWriter(output, header)
    check_writable(output)
    entries = read_manifest(source.folder)
    _check_output(writer, header, {entry.file: entry.sha256 for entry in entries})
    with claimed(output / ".redrawing", part, output):
        first, done = 0, writer.completed_shards()
        jobs = []
        for entry in entries:
            if part.owns(shard_index(entry.file)) and entry.file not in done:
                jobs.append((entry, range(first, first + len(entry.cases))))
            first += len(entry.cases)
        with tqdm(total=sum(len(cases) for _, cases in jobs), desc="redrawing", unit="case") as bar:
            for entry, cases in jobs:
                writer.begin(entry.file, {SOURCE_SHARD: entry.sha256})
                try:
                    for case in cases:
                        writer.append(redrawn(source, case, model, config))
                        bar.update()
                except BaseException:
                    writer.discard()
                    raise
                writer.finish()
    log.info("%d of %d shards are redrawn in %s", len(writer.completed_shards()), len(entries), output)
    return 0


def redrawn(source: LatentShards, case: int, model: CTFlow, config: RedrawConfig) -> LatentRecord:
    """One case as the model draws it; a function of (seed, case id), whatever else is redrawn.

    Raises:
        ShardError: The model drew latents that float16 cannot hold.
    """
    entry = source.cases[case]
    generator = derived_generator(config.seed, "redraw", entry.case_id)
    steps = int(torch.randint(1, config.most_steps + 1, (), generator=generator))
    latents, device = source.whitened(case), model.device
    channels, slices, *size = latents.shape
    shape = (steps, -(-slices // BLOCK_LENGTH), channels, BLOCK_LENGTH, *size)
    tokens, mask, _ = source.text(case)
    drawn = redraw(
        model.fmvt,
        latents.to(device),
        source.start_block().to(device),
        source.white().to(device),
        (torch.from_numpy(tokens).float(), torch.from_numpy(mask)),
        entry.spacing,
        model.system.config.rollout,
        steps,
        torch.randn(shape, generator=generator).to(device),
    )
    mean = source.header.whitening.unwhiten(drawn.cpu().float().transpose(0, 1)).half().numpy()
    if not np.isfinite(mean).all():
        raise ShardError(
            f"case {entry.case_id!r} of {source.folder}: the model drew values that float16 cannot hold",
            "finite latents",
            "check the checkpoint, or give fewer most_steps",
        )
    return replace(source.record(case), mean=mean, logvar=np.full_like(mean, SURE))


def _check(source: LatentShards, model: CTFlow, config: RedrawConfig) -> None:
    own: dict[str, Any] = {
        "avae_fingerprint": model.avae.fingerprint(),
        "whitening": model.avae.config.whitening,
    }
    for field, wanted in own.items():
        if (found := getattr(source.header, field)) != wanted:
            raise ShardError(
                f"{source.folder} has {field} {found}, the checkpoint has {wanted}",
                "latents of the checkpoint's A-VAE",
                "encode the slices with avae=CHECKPOINT clip=CHECKPOINT",
            )
    if source.text(0)[0].shape[1] != model.text_encoder.dim:
        raise ShardError(
            f"{source.folder} holds report embeddings of width {source.text(0)[0].shape[1]}",
            f"width {model.text_encoder.dim}, the checkpoint's text encoder's",
            "encode the slices with avae=CHECKPOINT clip=CHECKPOINT",
        )
    sampling = model.system.config.rollout
    if config.most_steps > sampling.steps or sampling.solver == "dopri5":
        raise CTFlowError(
            f"most_steps={config.most_steps}, and the checkpoint samples with {sampling.solver} in "
            f"{sampling.steps} steps",
            "a fixed solver with at least as many steps",
            "give fewer most_steps",
        )


def _check_output(writer: LatentShardWriter, header: LatentHeader, sources: dict[str, str]) -> None:
    for name in sorted(writer.completed_shards()):
        found = read_shard_header(writer.folder / name).provenance
        wanted = {REDRAWN: header.provenance[REDRAWN], SOURCE_SHARD: sources.get(name)}
        for field, value in wanted.items():
            if found.get(field) != value:
                raise ShardError(
                    f"{writer.folder / name} has {field} {found.get(field)}, this run would write {value}",
                    "one source, checkpoint and setting per folder",
                    "give an empty output folder",
                )


if __name__ == "__main__":
    run_command(main)
