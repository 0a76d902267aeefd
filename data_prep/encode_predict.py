"""Lightning parts of ``data_prep.encode``: what a rank reads, what it computes, how shards are written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ctflow.data import LatentRecord, LatentShards, LatentShardWriter, SliceShards, read_manifest
from ctflow.data.writer import shard_index
from ctflow.errors import ShardError
from ctflow.models import AVAE, Posterior, TextEncoder
from ctflow.parts import Part

SOURCE_SHARD = "source_shard_sha256"
"""Name in a latent shard's provenance: the slice shard it was made from."""


@dataclass
class EncodeBatch:
    """Some consecutive slices of one case.

    Attributes:
        hu: Int16 HU ``[N, rows, columns]``.
        shard: File name the case goes to.
        case: Index of the case in the source.
        ends_case: These are the case's last slices.
        ends_shard: The case is the shard's last one.
        posterior: The slices' posterior where it is known already; else None.
    """

    hu: Tensor
    shard: str
    case: int
    ends_case: bool
    ends_shard: bool
    posterior: Posterior | None = None


class EncodeLoader:
    """The batches of this process: whole shards, those already complete left out.

    Args:
        source: What is encoded.
        shards: Case indices of every shard, by file name.
        complete: File names to leave out.
        batch_slices: Slices of a batch.
        share: Which shards are this process's.
        posteriors: Latents of the same slices and A-VAE that are taken over; None: all slices are encoded.
    """

    def __init__(
        self,
        source: SliceShards,
        shards: dict[str, range],
        complete: set[str],
        batch_slices: int,
        share: Part,
        posteriors: LatentShards | None = None,
    ) -> None:
        self.source, self.batch_slices, self.posteriors = source, batch_slices, posteriors
        mine = [name for name in shards if share.owns(shard_index(name))]  # whatever other shards there are
        self.shards = {name: shards[name] for name in mine if name not in complete}

    def __len__(self) -> int:
        sizes = [self.source.cases[case].slices for cases in self.shards.values() for case in cases]
        return sum(-(-size // self.batch_slices) for size in sizes)

    def __iter__(self) -> Iterator[EncodeBatch]:
        for name, cases in self.shards.items():
            for case in cases:
                hu = torch.from_numpy(self.source.hu(case))
                for start in range(0, len(hu), self.batch_slices):
                    part = hu[start : start + self.batch_slices]
                    last = start + self.batch_slices >= len(hu)
                    ends_shard = last and case == cases[-1]
                    yield EncodeBatch(part, name, case, last, ends_shard, self._known(case, start, len(part)))

    def _known(self, case: int, start: int, slices: int) -> Posterior | None:
        if self.posteriors is None:
            return None
        index = self.posteriors.index(self.source.cases[case].case_id)
        mean, logvar = self.posteriors.posterior(index, start, start + slices)
        return Posterior(torch.from_numpy(mean), torch.from_numpy(logvar))


class Encoder(LightningModule):
    """The A-VAE's encoder and the text tower as ``Trainer.predict`` wants them.

    Args:
        avae: Encodes slices.
        text_encoder: Encodes reports.
    """

    def __init__(self, avae: AVAE, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.avae = avae.to(memory_format=torch.channels_last)  # a quarter faster on CPUs
        self.clip = text_encoder.clip
        self.text_encoder = text_encoder

    def predict_step(self, batch: EncodeBatch, batch_idx: int, dataloader_idx: int = 0) -> Posterior:
        """Posterior of the batch's slices, float16 on the CPU."""
        if batch.posterior is not None:
            return batch.posterior
        mean, logvar = self.avae.encode_hu(batch.hu.float())
        return Posterior(mean.float().half().cpu(), logvar.float().half().cpu())


class ShardWriting(Callback):
    """Collects posteriors to cases and cases to shards.

    Args:
        places: For every loader in turn, where reports and metadata come from and where cases go.
    """

    def __init__(self, places: Sequence[tuple[SliceShards, LatentShardWriter]]) -> None:
        self.places = places
        self._hashes = [{e.file: e.sha256 for e in read_manifest(source.folder)} for source, _ in places]
        self._parts: list[Posterior] = []
        self._shard = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal ends the command, and the next goes on: Lightning would note SIGTERM and compute on."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: EncodeBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what is complete with this batch."""
        assert isinstance(pl_module, Encoder)
        self._parts.append(outputs)
        if not batch.ends_case:
            return
        source, writer = self.places[dataloader_idx]
        if batch.shard != self._shard:
            writer.begin(batch.shard, {SOURCE_SHARD: self._hashes[dataloader_idx][batch.shard]})
            self._shard = batch.shard
        writer.append(self._record(source, batch, pl_module.text_encoder))
        if batch.ends_shard:
            writer.finish()
            self._shard = ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the unfinished shard."""
        for _, writer in self.places:
            writer.discard()

    def _record(self, source: SliceShards, batch: EncodeBatch, text_encoder: TextEncoder) -> LatentRecord:
        mean, logvar = (torch.cat(part).numpy() for part in zip(*self._parts, strict=True))
        self._parts = []
        metadata = source.metadata(batch.case)
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise ShardError(
                f"case {metadata['case_id']!r} of {source.folder / batch.shard}: the A-VAE's posterior has "
                "values that float16 cannot hold",
                "finite latents",
                "check the A-VAE's reconstructions, or encode with precision=fp32",
            )
        tokens, mask, pooled = (
            part[0].float().cpu().numpy() for part in text_encoder.encode([metadata["report"]])
        )
        real = int(np.flatnonzero(mask)[-1]) + 1
        return LatentRecord(
            mean=mean,
            logvar=logvar,
            text=tokens[:real].astype(np.float16),
            text_mask=mask[:real].astype(bool),
            pooled=pooled,
            **metadata,
        )
