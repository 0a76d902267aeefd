"""The three views of a data set: what a sample is, and how samples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.config.encoders import VolumeGrid
from ctflow.data.batches import BlockBatch, SliceBatch, VolumeBatch
from ctflow.data.reader import LatentShards, ShardSet, SliceShards, padded_slices
from ctflow.data.records import CaseEntry
from ctflow.errors import ShardError
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

    Attributes:
        rows: Rows of a batch that one sample makes.
    """

    rows = 1

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
        """The sample of a number in an epoch; numbers beyond the set are further passes over it."""
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
        redrawn: Latents of some of the scans as a generator draws them; None: batches have none.

    Raises:
        ShardError: ``redrawn`` holds none of the scans, or another number of slices of one.
    """

    shards: SliceShards

    def __init__(
        self,
        shards: SliceShards,
        seed: int = 0,
        scans: Sequence[Sequence[int]] | None = None,
        redrawn: LatentShards | None = None,
    ) -> None:
        shards.one_size()
        super().__init__(shards, [case.slices for case in shards.cases], seed, scans)
        self.redrawn = redrawn
        self._redrawn_cases: dict[int, int] = {}
        if redrawn is not None:
            self._redrawn_cases = _same_scans(shards, redrawn)

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
            redrawn=None if self.redrawn is None else torch.stack([self._redrawn(p) for p in places]),
        )

    def _redrawn(self, place: Place) -> Tensor:
        """A slice's redrawn latent ``[C, h, w]``, or NaN."""
        assert self.redrawn is not None
        if place.case not in self._redrawn_cases:
            return torch.full_like(self.redrawn.air(), torch.nan)
        case = self._redrawn_cases[place.case]
        return self.redrawn.whitened(case, place.number, place.number + 1)[:, 0]


def _same_scans(shards: SliceShards, redrawn: LatentShards) -> dict[int, int]:
    """Index of a case among the slices: its index among the redrawn latents.

    Raises:
        ShardError: No case is in both, or one has another number of slices.
    """
    indices = {case.case_id: i for i, case in enumerate(redrawn.cases)}
    found = {i: indices[case.case_id] for i, case in enumerate(shards.cases) if case.case_id in indices}
    others = [i for i, k in found.items() if shards.cases[i].slices != redrawn.cases[k].slices]
    if others or not found:
        what = (
            f"other numbers of slices, e.g. of {shards.cases[others[0]].case_id}"
            if others
            else "none of them"
        )
        raise ShardError(
            f"{redrawn.folder} holds {what}",
            f"redrawn latents of the scans in {shards.folder}",
            "encode these slices, then redraw their latents: ctflow redraw",
        )
    return found


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
        return self._rows([(place.case, self.first_slice(place, epoch)) for place in places], epoch)

    def _rows(self, chosen: Sequence[tuple[int, int]], epoch: int | None) -> BlockBatch:
        """A batch of given cases and first slices."""
        pairs = [self.pair(case, first, epoch) for case, first in chosen]
        cases = [self.shards.cases[case] for case, _ in chosen]
        text, mask, pooled = self._texts([case for case, _ in chosen])
        return BlockBatch(
            previous=torch.stack([previous for previous, _ in pairs]),
            target=torch.stack([target for _, target in pairs]),
            text=text,
            text_mask=mask,
            pooled=pooled,
            position=torch.tensor([first for _, first in chosen]),
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


class PairView(BlockView):
    """The same block of both volumes of a contrast pair, in neighbouring rows.

    A contrast pair is two cases of one patient on one grid (``data_prep.phantom`` with ``pairs=true``); other
    cases are left out. In training a share of the blocks is drawn where the two volumes differ.

    Args:
        shards: The set.
        seed: As for ``BlockView``.
        p_start: As for ``BlockView``.
        differing_share: Probability that a training block is drawn in proportion to the difference of its
            slices.

    Raises:
        ShardError: The set has no contrast pair.
    """

    rows = 2

    def __init__(self, shards: LatentShards, seed: int, p_start: float, differing_share: float) -> None:
        self.partner = contrast_partners(shards.cases)
        super().__init__(shards, seed, p_start, [[case] for case in sorted(self.partner)])
        self.differing_share = differing_share
        if not self.partner:
            raise ShardError(
                f"{shards.folder} has no contrast pair",
                "two cases of a patient with equal numbers of slices and equal spacing",
                "make some (python -m data_prep.phantom … pairs=true), or leave data.pairs=false",
            )
        self._differences: dict[int, NDArray[np.float64]] = {}

    def first_slice(self, place: Place, epoch: int | None) -> int:
        """As in ``BlockView``, or where the two differ."""
        if epoch is not None:
            case = self.shards.cases[place.case]
            generator = derived_generator(
                self.seed, "differing", epoch, case.case_id, place.number, place.turn
            )
            if torch.rand((), generator=generator).item() < self.differing_share:
                return self._differing_slice(place.case, generator)
        return super().first_slice(place, epoch)

    def _differing_slice(self, case: int, generator: torch.Generator) -> int:
        """The first slice of a block that holds, at any place, a slice drawn by its difference."""
        if case not in self._differences:
            means = [self.shards.whitened(i) for i in (case, self.partner[case])]  # [C, S, h, w]
            weight = (means[0] - means[1]).square().mean(dim=(0, 2, 3)).double().numpy()  # [S]
            self._differences[case] = np.cumsum(
                weight / weight.sum() if weight.any() else weight + 1 / len(weight)
            )
        chosen = int(np.searchsorted(self._differences[case], torch.rand((), generator=generator).item()))
        last = padded_slices(self.shards.cases[case].slices) - BLOCK_LENGTH
        first = chosen - int(torch.randint(0, BLOCK_LENGTH, (), generator=generator))
        if first < BLOCK_LENGTH:  # the previous block would mix air and body
            first = 0 if chosen < BLOCK_LENGTH else BLOCK_LENGTH
        return min(first, last)

    def batch(self, items: Sequence[int], epoch: int | None) -> BlockBatch:
        """Rows 2i and 2i + 1 are partners."""
        chosen = []
        for place in (self.locate(item, epoch) for item in items):
            first = self.first_slice(place, epoch)
            chosen += [(place.case, first), (self.partner[place.case], first)]
        return replace(self._rows(chosen, epoch), partner=torch.arange(len(chosen)) ^ 1)


def contrast_partners(cases: Sequence[CaseEntry]) -> dict[int, int]:
    """The second case of every contrast pair, by the first: two scans of a patient, on one grid."""
    patients: dict[str, list[int]] = {}
    for i, case in enumerate(cases):
        patients.setdefault(case.patient_id, []).append(i)
    twos = [own for own in patients.values() if len(own) == 2]
    return {
        a: b
        for a, b in twos
        if (cases[a].scan != cases[b].scan or not cases[a].scan)
        and cases[a].slices == cases[b].slices
        and np.allclose(cases[a].spacing, cases[b].spacing, rtol=1e-4)
    }


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
