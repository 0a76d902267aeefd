"""Whole volumes, block by block: each is generated from the slices before it, the report and its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.flow import ADAPTIVE_SOLVER, KnownRegion, solve
from ctflow.generation.cases import BlockProgress, CaseRollout, NoiseSource, RolloutCase, StopReason
from ctflow.generation.guidance import encode_reports, guided_velocity
from ctflow.generation.memo import LAST_SHARED, BlockMemo, block_key
from ctflow.generation.stop import StopRule, trailing_run
from ctflow.models import Conditions, FMvT, TextCondition
from ctflow.seeding import case_noise
from ctflow.types import BLOCK_LENGTH


class _Running:
    """The growing volume of one case."""

    def __init__(self, case: RolloutCase, row: int, start: Tensor, config: RolloutConfig) -> None:
        self.case, self.row = case, row
        self.given = 0 if case.given is None else case.given.shape[1]
        # The start block stands before slice 0, so that slice s is at index s + BLOCK_LENGTH.
        self.volume = start if case.given is None else torch.cat([start, case.given.to(start)], dim=1)
        self.real = None if case.real is None else torch.cat([start, case.real.to(start)], dim=1)
        self.limit = config.max_slices if case.length is None else min(case.length, config.max_slices)
        if case.real is not None:
            self.limit = case.real.shape[1]
        self.blocks: list[Tensor] = []
        self.positions: list[int] = []
        self.stop: StopReason | None = None
        self.end = 0  # slices at the end of the volume that are its end
        # What follows real slices repeats none of the slices generated before it.
        self.overlap = config.overlap if case.real is None else 0

    @property
    def slices(self) -> int:
        return self.volume.shape[1] - BLOCK_LENGTH

    @property
    def held(self) -> int:
        """Slices that the next block repeats."""
        return min(self.overlap, self.slices)

    @property
    def position(self) -> int:
        """Index of the next block's first slice."""
        return self.slices - self.held

    @property
    def block_index(self) -> int:
        """Index of the next block within the volume; given slices count as blocks."""
        return len(self.blocks) + -(-self.given // BLOCK_LENGTH)

    def before(self) -> Tensor:
        """The 16 slices before the next block ``[C, T, h, w]``."""
        source = self.volume if self.real is None else self.real
        return source[:, self.position : self.position + BLOCK_LENGTH]

    def known(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Mask ``[1, T, 1, 1]`` and values ``[C, T, h, w]`` of the slices that the next block repeats."""
        mask = torch.zeros(1, BLOCK_LENGTH, 1, 1, dtype=torch.bool, device=block.device)
        mask[:, : self.held] = True
        value = torch.zeros_like(block)
        value[:, : self.held] = self.volume[:, self.volume.shape[1] - self.held :]
        return mask, value

    def key(self, seed: int, config: RolloutConfig) -> bytes | None:
        """Of the next block in a ``BlockMemo``; None for a block that no other rollout begins with."""
        if self.block_index > LAST_SHARED or self.held:
            return None
        case = self.case
        facts = f"{case.case_id} {seed} {self.block_index} {self.position} {case.length} {config}"
        return block_key(facts, self.before(), case.text, case.text_mask)

    def append(self, block: Tensor, rule: StopRule) -> None:
        """Add a solved block ``[C, T, h, w]`` and decide whether the volume ends."""
        self.positions.append(self.position)
        self.blocks.append(block)
        new = block[:, self.held :]
        self.volume = torch.cat([self.volume, new], dim=1)
        if self.real is not None:
            self.stop = StopReason.REAL_LENGTH if self.slices >= self.limit else None
            return
        flags = rule.white_slices(new)
        if rule.is_end(flags) and self.slices - rule.end_run(flags) < self.limit:
            self.stop = StopReason.END_RECOGNISED
            self.end = rule.end_run(flags)
        elif self.slices >= self.limit:
            asked = self.limit == self.case.length
            self.stop = StopReason.LENGTH_REACHED if asked else StopReason.LIMIT_REACHED

    def result(self, rule: StopRule) -> CaseRollout:
        assert self.stop is not None
        latents = self.volume[:, BLOCK_LENGTH:][:, : max(self.limit, self.given)]
        white = rule.white_slices(latents)
        keep = latents.shape[1]
        if self.real is None:
            keep = max(min(keep - trailing_run(white), self.slices - self.end), self.given)
        blocks = torch.stack(self.blocks) if self.blocks else self.volume.new_zeros(0, *self.before().shape)
        return CaseRollout(
            self.case.case_id, latents[:, :keep], self.given, blocks, self.positions, white, self.stop
        )


@torch.no_grad()
def rollout(
    model: FMvT,
    cases: Sequence[RolloutCase],
    start: Tensor,
    rule: StopRule,
    config: RolloutConfig,
    seed: int = 0,
    noise: NoiseSource | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
    memo: BlockMemo | None = None,
) -> list[CaseRollout]:
    """Generate volumes, all cases at once; a case that has ended leaves the batch.

    A case's noise is a function of (seed, case id, block index), so that its volume depends on no other case.

    Args:
        model: The FMvT, in evaluation mode.
        cases: What to generate: from the report alone (full-body), continuing given slices (gt-head), or from
            the real slices before each block (next-block).
        start: What stands before the first slice: the whitened latent of an air slice ``[C, h, w]``, or a
            whole start block ``[C, T, h, w]``.
        rule: How the end is recognised.
        config: Solver, steps, overlap, guidance, limit.
        seed: Of the noise; not read where ``noise`` is given.
        noise: Another source of noise.
        progress: Called after each round of blocks.
        memo: Blocks of this model solved before, not to be solved again; unread where ``noise`` is given.

    Returns:
        One result per case, in the order of ``cases``.

    Raises:
        ValueError: Two cases share an id; a start that does not fit.
    """
    ids = [case.case_id for case in cases]
    if len(set(ids)) != len(ids) or not cases:
        raise ValueError(f"a rollout needs cases with different ids, found {ids}")
    start = _start_block(start, model)
    running = [_Running(case, row, start, config) for row, case in enumerate(cases)]
    for case in running:
        if case.real is None and case.slices >= case.limit:
            raise ValueError(
                f"case {case.case.case_id}: {case.given} slices are given, the limit is {case.limit}"
            )
    text, no_text = encode_reports(
        model, [c.text for c in cases], [c.text_mask for c in cases], guided=config.text_guidance != 1
    )
    source = partial(case_noise, seed) if noise is None else noise
    memo = BlockMemo(0) if memo is None or noise is not None else memo
    index = 0
    while active := [case for case in running if case.stop is None]:
        fresh = _recall(active, memo, seed, config, rule)
        for group in [[case] for case in fresh] if config.solver == ADAPTIVE_SOLVER else [fresh]:
            keys = [case.key(seed, config) if memo.capacity else None for case in group]
            blocks = _generate(model, group, text, no_text, source, config) if group else ()
            for case, key, block in zip(group, keys, blocks, strict=True):
                case.append(block, rule)
                if key is not None:
                    memo.put(key, block)
        if progress is not None:
            finished = sum(case.stop is not None for case in running)
            progress(BlockProgress(index, [c.case.case_id for c in active], finished, len(cases)))
        index += 1
    return [case.result(rule) for case in running]


def _recall(
    active: list[_Running], memo: BlockMemo, seed: int, config: RolloutConfig, rule: StopRule
) -> list[_Running]:
    """Continue the cases whose next block the memo holds; the others are still to be solved."""
    if not memo.capacity:
        return active
    fresh = []
    for case in active:
        key = case.key(seed, config)
        block = None if key is None else memo.get(key)
        if block is None:
            fresh.append(case)
        else:
            case.append(block, rule)
    return fresh


def _start_block(start: Tensor, model: FMvT) -> Tensor:
    channels = model.config.latent_channels
    if start.ndim == 3:
        start = start[:, None].expand(-1, BLOCK_LENGTH, -1, -1)
    if start.ndim != 4 or start.shape[:2] != (channels, BLOCK_LENGTH):
        expected = f"[{channels}, h, w] or [{channels}, {BLOCK_LENGTH}, h, w]"
        raise ValueError(f"start must be {expected}, found {list(start.shape)}")
    return start.to(device=model.pos_embed.device, dtype=torch.float32)


def _generate(
    model: FMvT,
    group: list[_Running],
    text: TextCondition,
    no_text: TextCondition | None,
    noise: NoiseSource,
    config: RolloutConfig,
) -> Tensor:
    """One block for each case: ``[B, C, T, h, w]``."""
    previous = torch.stack([case.before() for case in group])  # [B, C, T, h, w]
    device = previous.device
    z1 = torch.stack(
        [noise(case.case.case_id, case.block_index, previous.shape[1:]).to(previous) for case in group]
    )
    rows = torch.tensor([case.row for case in group], device=device)
    lengths = [torch.nan if case.case.length is None else float(case.case.length) for case in group]
    spacings = [(torch.nan,) * 3 if case.case.spacing is None else case.case.spacing for case in group]
    known, clean = None, model.config.slice_times
    if any(case.held for case in group):
        masks, values = zip(*(case.known(z) for case, z in zip(group, z1, strict=True)), strict=True)
        known = KnownRegion(torch.stack(masks), torch.stack(values), clean)
    conditions = Conditions(
        text=text.select(rows),
        previous=previous,
        known=known.mask[:, 0, :, 0, 0] if known is not None and clean else None,
        position=torch.tensor([float(case.position) for case in group], device=device),
        length=torch.tensor(lengths, device=device),
        spacing=torch.tensor(spacings, device=device),
    )
    velocity = guided_velocity(model, conditions, None if no_text is None else no_text.select(rows), config)
    return solve(velocity, z1, config.steps, config.solver, known, config.time_shift)
