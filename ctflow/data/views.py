"""The three views of a data set: what a sample is, and how samples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctflow.config.encoders import VolumeGrid
from ctflow.data.batches import BlockBatch, SliceBatch, VolumeBatch
from ctflow.data.reader import LatentShards, ShardSet, SliceShards, padded_slices
from ctflow.seeding import derived_generator
from ctflow.types import BLOCK_LENGTH, HUVolume
from ctflow.volume_grid import to_grid

Batch = SliceBatch | BlockBatch | VolumeBatch


class Place(NamedTuple):
    """A sample: the case, its number inside the case, and the pass over the set."""

    case: int
    number: int
    turn: int


class View(ABC):
    """Samples of a set, numbered scan by scan.

    A scan has as many samples as the longest of its reconstructions; which of them a sample is read from is a
    function of (seed, epoch, scan, number, pass).

    Args:
        shards: The set.
        items: Samples of each case.
        seed: Seed of the draws.
        scans: Cases of each scan, ordered by their first; None: every case by itself.
    """

    def __init__(
        self,
        shards: ShardSet,
        items: Sequence[int],
        seed: int = 0,
        scans: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.shards, self.items, self.seed = shards, items, seed
        self.scans = [[case] for case in range(len(shards))] if scans is None else scans
        self.starts = np.concatenate([[0], np.cumsum([max(items[c] for c in scan) for scan in self.scans])])

    def __len__(self) -> int:
        """Samples in one pass."""
        return int(self.starts[-1])

    def shard_items(self) -> list[int]:
        """Samples in each shard; a scan counts where its first reconstruction lies."""
        ends = np.cumsum(self.shards.shard_sizes)
        first = np.searchsorted([scan[0] for scan in self.scans], [0, *ends])
        return np.diff(self.starts[first]).tolist()

    def scan_items(self, scan: int) -> range:
        """Sample numbers of a scan."""
        return range(int(self.starts[scan]), int(self.starts[scan + 1]))

    def locate(self, item: int, epoch: int | None = None) -> Place:
        """What a sample number means in an epoch; numbers beyond the set are further passes over it."""
        turn, item = divmod(item, len(self))
        scan = int(np.searchsorted(self.starts, item, side="right")) - 1
        number, cases = int(item - self.starts[scan]), self.scans[scan]
        case = cases[0]
        if len(cases) > 1:
            name = self.shards.cases[case].scan
            generator = derived_generator(self.seed, "reconstruction", epoch, name, number, turn)
            case = cases[int(torch.randint(len(cases), (), generator=generator))]
        return Place(case, number % self.items[case], turn)

    @abstractmethod
    def batch(self, items: Sequence[int], epoch: int | None) -> Batch:
        """Read samples; ``epoch`` None means evaluation, where nothing varies."""


class SliceView(View):
    """Every slice of every scan.

    Args:
        shards: The set.
        seed: Seed of the draws.
        scans: As in ``View``.
    """

    shards: SliceShards

    def __init__(
        self, shards: SliceShards, seed: int = 0, scans: Sequence[Sequence[int]] | None = None
    ) -> None:
        shards.one_size()
        super().__init__(shards, [case.slices for case in shards.cases], seed, scans)

    def batch(self, items: Sequence[int], epoch: int | None) -> SliceBatch:
        """HU slices ``[B, 1, H, W]``; the epoch decides which reconstruction."""
        places = [self.locate(i, epoch) for i in items]
        cases = [self.shards.cases[p.case] for p in places]
        images = [torch.from_numpy(self.shards.hu(p.case, p.number, p.number + 1)).float() for p in places]
        return SliceBatch(
            images=torch.stack(images),
            case_id=[case.case_id for case in cases],
            slice_index=torch.tensor([p.number for p in places]),
            spacing=torch.tensor([case.spacing for case in cases]),
        )


class BlockView(View):
    """Pairs of blocks: per case and epoch as many as the padded volume has blocks.

    In training each pair is, with probability ``p_start``, (start block, first block); otherwise it is drawn
    evenly from that pair and all pairs of neighbouring blocks that begin at any slice. In evaluation pairs
    are the blocks in order, each with the one before it. Posterior noise is a function of (seed, epoch, case,
    first slice).

    Args:
        shards: The set.
        seed: Seed of the draws and of the posterior noise.
        p_start: StartBoost's probability.
        scans: As in ``View``.
    """

    shards: LatentShards

    def __init__(
        self,
        shards: LatentShards,
        seed: int,
        p_start: float,
        scans: Sequence[Sequence[int]] | None = None,
    ) -> None:
        shards.one_size()
        blocks = [padded_slices(case.slices) // BLOCK_LENGTH for case in shards.cases]
        super().__init__(shards, blocks, seed, scans)
        self.p_start = p_start

    def first_slice(self, place: Place, epoch: int | None) -> int:
        """Where the target of a case's pair begins; 0 is the first block."""
        if epoch is None:
            return place.number * BLOCK_LENGTH
        case = self.shards.cases[place.case]
        generator = derived_generator(self.seed, "pair", epoch, case.case_id, place.number, place.turn)
        if torch.rand((), generator=generator).item() < self.p_start:
            return 0
        # starts 1 … 15 are left out: their previous block would mix air and body, which no rollout ever shows
        last = padded_slices(case.slices) - BLOCK_LENGTH
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
        places = [self.locate(i, epoch) for i in items]
        first = [self.first_slice(place, epoch) for place in places]
        pairs = [self.pair(place.case, start, epoch) for place, start in zip(places, first, strict=True)]
        cases = [self.shards.cases[place.case] for place in places]
        text, mask, pooled = self._texts([place.case for place in places])
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
        grid: What volumes are resampled to.
        in_memory: Keep the resampled volumes (int16), which are small where the grid is.
        seed: Seed of the draws.
        scans: As in ``View``.
    """

    shards: SliceShards

    def __init__(
        self,
        shards: SliceShards,
        grid: VolumeGrid,
        in_memory: bool,
        seed: int = 0,
        scans: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(shards, [1] * len(shards), seed, scans)
        self.grid = grid
        self.metadata = [shards.metadata(i) for i in range(len(shards))]
        self.label_names = sorted({name for m in self.metadata for name in m["labels"]})
        self._volumes = [self._volume(i).to(torch.int16) for i in range(len(shards))] if in_memory else []

    def batch(self, items: Sequence[int], epoch: int | None) -> VolumeBatch:
        """Volumes ``[B, 1, D, H, W]`` with reports and labels; the epoch decides which reconstruction."""
        items = [self.locate(i, epoch).case for i in items]
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
        return to_grid(volume, self.grid)
