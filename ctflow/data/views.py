"""The three views of a data set: what a sample is, and how samples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ctflow.config.data import DataConfig
from ctflow.data.batches import BlockBatch, SliceBatch, VolumeBatch
from ctflow.data.reader import LatentShards, ShardSet, SliceShards, padded_slices
from ctflow.data.resample import to_grid
from ctflow.seeding import derived_generator
from ctflow.types import BLOCK_LENGTH, HUVolume

Batch = SliceBatch | BlockBatch | VolumeBatch


class View(ABC):
    """Samples of a set, numbered case by case.

    Args:
        shards: The set.
        items: Samples of each case.
    """

    def __init__(self, shards: ShardSet, items: Sequence[int]) -> None:
        self.shards = shards
        self.starts = np.concatenate([[0], np.cumsum(items)])

    def __len__(self) -> int:
        """Samples in one pass."""
        return int(self.starts[-1])

    def shard_items(self) -> list[int]:
        """Samples in each shard."""
        ends = np.cumsum([0, *self.shards.shard_sizes])
        return np.diff(self.starts[ends]).tolist()

    def case_items(self, case: int) -> range:
        """Sample numbers of a case."""
        return range(int(self.starts[case]), int(self.starts[case + 1]))

    def locate(self, item: int) -> tuple[int, int]:
        """Case of a sample and its number inside the case."""
        case = int(np.searchsorted(self.starts, item, side="right")) - 1
        return case, int(item - self.starts[case])

    @abstractmethod
    def batch(self, items: Sequence[int], epoch: int | None) -> Batch:
        """Read samples; ``epoch`` None means evaluation, where nothing varies."""


class SliceView(View):
    """Every slice of every case."""

    shards: SliceShards

    def __init__(self, shards: SliceShards) -> None:
        super().__init__(shards, [case.slices for case in shards.cases])

    def batch(self, items: Sequence[int], epoch: int | None) -> SliceBatch:
        """HU slices ``[B, 1, H, W]``; the epoch changes nothing."""
        places = [self.locate(i) for i in items]
        cases = [self.shards.cases[c] for c, _ in places]
        images = [torch.from_numpy(self.shards.hu(c, s, s + 1)).float() for c, s in places]
        return SliceBatch(
            images=torch.stack(images),
            case_id=[case.case_id for case in cases],
            slice_index=torch.tensor([s for _, s in places]),
            spacing=torch.tensor([case.spacing for case in cases]),
        )


class BlockView(View):
    """Pairs of blocks: per case and epoch as many as the padded volume has blocks.

    In training each pair is, with probability ``p_start``, (start block, first block); otherwise it is drawn evenly
    from that pair and all pairs of neighbouring blocks that begin at any slice. In evaluation pairs are the blocks
    in order, each with the one before it. Posterior noise is a function of (seed, epoch, case, first slice).

    Args:
        shards: The set.
        seed: Seed of the draws and of the posterior noise.
        p_start: StartBoost's probability.
    """

    shards: LatentShards

    def __init__(self, shards: LatentShards, seed: int, p_start: float) -> None:
        super().__init__(shards, [padded_slices(case.slices) // BLOCK_LENGTH for case in shards.cases])
        self.seed, self.p_start = seed, p_start

    def first_slice(self, case: int, number: int, epoch: int | None) -> int:
        """Where the target of a case's pair begins; 0 is the first block."""
        if epoch is None:
            return number * BLOCK_LENGTH
        generator = derived_generator(self.seed, "pair", epoch, self.shards.cases[case].case_id, number)
        if torch.rand((), generator=generator).item() < self.p_start:
            return 0
        # starts 1 … 15 are left out: their previous block would mix air and body, which no rollout ever shows
        last = padded_slices(self.shards.cases[case].slices) - BLOCK_LENGTH
        choice = int(torch.randint(0, max(last - BLOCK_LENGTH + 2, 1), (), generator=generator))
        return 0 if choice == 0 else BLOCK_LENGTH - 1 + choice

    def pair(self, case: int, first: int, epoch: int | None) -> tuple[Tensor, Tensor]:
        """Previous and target block of a case, whitened samples, each ``[C, 16, h, w]``."""
        generator = derived_generator(self.seed, "posterior", epoch, self.shards.cases[case].case_id, first)
        if first == 0:
            return self.shards.start_block(), self.shards.sample(case, 0, BLOCK_LENGTH, generator)
        both = self.shards.sample(case, first - BLOCK_LENGTH, first + BLOCK_LENGTH, generator)
        return both[:, :BLOCK_LENGTH], both[:, BLOCK_LENGTH:]

    def batch(self, items: Sequence[int], epoch: int | None) -> BlockBatch:
        """Pairs of blocks with their reports; text padded to the longest of the set."""
        places = [self.locate(i) for i in items]
        first = [self.first_slice(case, number, epoch) for case, number in places]
        pairs = [self.pair(case, start, epoch) for (case, _), start in zip(places, first, strict=True)]
        cases = [self.shards.cases[case] for case, _ in places]
        text, mask, pooled = self._texts([case for case, _ in places])
        return BlockBatch(
            previous=torch.stack([previous for previous, _ in pairs]),
            target=torch.stack([target for _, target in pairs]),
            text=text,
            text_mask=mask,
            pooled=pooled,
            position=torch.tensor(first),
            length=torch.tensor([case.slices for case in cases]),
            spacing=torch.tensor([case.spacing for case in cases]),
            case_id=[case.case_id for case in cases],
        )

    def _texts(self, cases: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [self.shards.text(case) for case in cases]
        text = torch.zeros(len(texts), self.shards.tokens, texts[0][0].shape[1])
        mask = torch.zeros(len(texts), self.shards.tokens, dtype=torch.bool)
        for row, (tokens, real, _) in enumerate(texts):
            text[row, : len(tokens)] = torch.from_numpy(tokens)
            mask[row, : len(tokens)] = torch.from_numpy(real)
        return text, mask, torch.stack([torch.from_numpy(pooled) for _, _, pooled in texts])


class VolumeView(View):
    """Whole volumes on the image tower's grid.

    Args:
        shards: The set.
        config: ``volume_spacing`` and ``volume_shape``.
        in_memory: Keep the resampled volumes (int16), which are small where the grid is.
    """

    shards: SliceShards

    def __init__(self, shards: SliceShards, config: DataConfig, in_memory: bool) -> None:
        super().__init__(shards, [1] * len(shards))
        self.spacing, self.shape = config.volume_spacing, config.volume_shape
        self.metadata = [shards.metadata(i) for i in range(len(shards))]
        self.label_names = sorted({name for m in self.metadata for name in m["labels"]})
        self._volumes = [self._volume(i).to(torch.int16) for i in range(len(shards))] if in_memory else []

    def batch(self, items: Sequence[int], epoch: int | None) -> VolumeBatch:
        """Volumes ``[B, 1, D, H, W]`` with reports and labels; the epoch changes nothing."""
        labels = [[float(self.metadata[i]["labels"].get(n, np.nan)) for n in self.label_names] for i in items]
        volumes = [self._volumes[i].float() if self._volumes else self._volume(i) for i in items]
        return VolumeBatch(
            hu=torch.stack(volumes)[:, None],
            reports=[self.metadata[i]["report"] for i in items],
            labels=torch.tensor(labels).reshape(len(items), len(self.label_names)),
            label_names=self.label_names,
            case_id=[self.shards.cases[i].case_id for i in items],
        )

    def _volume(self, i: int) -> Tensor:
        volume = HUVolume(self.shards.hu(i).astype(np.float32), self.shards.cases[i].spacing)
        return to_grid(volume, self.spacing, self.shape)
