"""Whole volumes, block by block: each is generated from the slices before it, the report and its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.flow import ADAPTIVE_SOLVER, KnownRegion, solve
from ctflow.generation.cases import (
    BlockProgress,
    Cancelled,
    CaseRollout,
    NoiseSource,
    RolloutCase,
    RolloutRound,
    StopReason,
)
from ctflow.generation.guidance import encode_reports, guided_velocity
from ctflow.generation.memo import BlockMemo, block_key
from ctflow.generation.stop import StopRule, trailing_run
from ctflow.models import Conditions, FMvT, TextCondition
from ctflow.seeding import case_noise
from ctflow.types import BLOCK_LENGTH


class _Running:
    """The growing volume of one case.

    With ``keep=False`` slices that have been told are forgotten but for those that the next block needs, so
    that memory does not grow with the volume.
    """

    def __init__(
        self, case: RolloutCase, row: int, start: Tensor, config: RolloutConfig, rule: StopRule, keep: bool
    ) -> None:
        self.case, self.row, self.keep = case, row, keep
        self.given = 0 if case.given is None else case.given.shape[1]
        # The start block stands before slice 0, so that slice s is at index s + BLOCK_LENGTH - forgotten.
        self.forgotten = 0
        self.volume = start if case.given is None else torch.cat([start, case.given.to(start)], dim=1)
        self.real = None if case.real is None else torch.cat([start, case.real.to(start)], dim=1)
        self.limit = config.max_slices if case.length is None else min(case.length, config.max_slices)
        if case.real is not None:
            self.limit = case.real.shape[1]
        self.white = rule.white_slices(self.volume[:, BLOCK_LENGTH:]).cpu()
        self.blocks: list[Tensor] = []
        self.positions: list[int] = []
        self.stop: StopReason | None = None
        self.end = 0  # slices at the end of the volume that are its end
        # A block after real slices repeats no generated slice.
        self.overlap = config.overlap if case.real is None else 0

    @property
    def slices(self) -> int:
        """Slices of the volume so far."""
        return self.forgotten + self.volume.shape[1] - BLOCK_LENGTH

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
        return len(self.positions) + -(-self.given // BLOCK_LENGTH)

    def before(self) -> Tensor:
        """The 16 slices before the next block ``[C, T, h, w]``."""
        if self.real is not None:
            return self.real[:, self.position : self.position + BLOCK_LENGTH]
        return self.between(self.position - BLOCK_LENGTH, self.position)

    def between(self, first: int, stop: int) -> Tensor:
        """Slices ``first … stop−1`` ``[C, n, h, w]``; those before slice 0 are the start block's."""
        offset = BLOCK_LENGTH - self.forgotten
        return self.volume[:, first + offset : stop + offset]

    def forget(self, told: int) -> None:
        """Let go of slices that were told and that no later block is generated from."""
        last = min(told, self.position - BLOCK_LENGTH)
        surplus = last + BLOCK_LENGTH - self.forgotten
        if not self.keep and surplus > 0:
            self.volume = self.volume[:, surplus:].clone()  # a view would keep what it was cut from
            self.forgotten += surplus

    def known(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Mask ``[1, T, 1, 1]`` and values ``[C, T, h, w]`` of the slices that the next block repeats."""
        mask = torch.zeros(1, BLOCK_LENGTH, 1, 1, dtype=torch.bool, device=block.device)
        mask[:, : self.held] = True
        value = torch.zeros_like(block)
        value[:, : self.held] = self.volume[:, self.volume.shape[1] - self.held :]
        return mask, value

    def noise(self, source: NoiseSource) -> Tensor:
        """Of the next block, ``[C, T, h, w]``."""
        before = self.before()
        return source(self.case.case_id, self.block_index, before.shape).to(before)

    def key(self, z1: Tensor, config: RolloutConfig) -> bytes:
        """Of the next block in a ``BlockMemo``."""
        case = self.case
        facts = f"{self.position} {case.length} {case.spacing} {config}"
        return block_key(facts, z1, self.before(), case.text, case.text_mask)

    def ready(self) -> int:
        """Slices that are final: white ones at the end may turn out to be the volume's end."""
        if self.stop is not None:
            return self.kept()
        return self.slices - trailing_run(self.white)

    def kept(self) -> int:
        """Slices of the finished volume."""
        whole = min(self.slices, max(self.limit, self.given))
        if self.real is not None:
            return whole
        return max(min(whole - trailing_run(self.white[:whole]), self.slices - self.end), self.given)

    def append(self, block: Tensor, rule: StopRule) -> None:
        """Add a solved block ``[C, T, h, w]`` and decide whether the volume ends."""
        self.positions.append(self.position)
        if self.keep:
            self.blocks.append(block)
        new = block[:, self.held :]
        flags = rule.white_slices(new).cpu()
        self.volume = torch.cat([self.volume, new], dim=1)
        self.white = torch.cat([self.white, flags])
        if self.real is not None:
            self.stop = StopReason.REAL_LENGTH if self.slices >= self.limit else None
            return
        if rule.is_end(flags) and self.slices - rule.end_run(flags) < self.limit:
            self.stop = StopReason.END_RECOGNISED
            self.end = rule.end_run(flags)
        elif self.slices >= self.limit:
            asked = self.limit == self.case.length
            self.stop = StopReason.LENGTH_REACHED if asked else StopReason.LIMIT_REACHED

    def result(self) -> CaseRollout:
        """The finished volume, trimmed."""
        assert self.stop is not None
        latents = self.between(0, self.kept()) if self.keep else self.volume[:, :0]
        white = self.white[: max(self.limit, self.given)]
        blocks = torch.stack(self.blocks) if self.blocks else self.volume.new_zeros(0, *self.before().shape)
        return CaseRollout(
            self.case.case_id,
            latents,
            self.kept(),
            self.given,
            blocks,
            self.positions,
            white,
            self.stop,
        )


def rollout(
    model: FMvT,
    cases: Sequence[RolloutCase],
    start: Tensor,
    rule: StopRule,
    config: RolloutConfig,
    noise: NoiseSource | None = None,
    progress: Callable[[BlockProgress], None] | None = None,
    memo: BlockMemo | None = None,
) -> list[CaseRollout]:
    """Generate volumes, all cases at once; arguments as for ``rollout_stream``.

    Returns:
        One result per case, in the order of ``cases``.
    """
    results: dict[str, CaseRollout] = {}
    for round_ in rollout_stream(model, cases, start, rule, config, noise, memo=memo):
        results |= {result.case_id: result for result in round_.finished}
        if progress is not None:
            progress(BlockProgress(round_.index, list(round_.slices), len(results), len(cases)))
    return [results[case.case_id] for case in cases]


@torch.no_grad()
def rollout_stream(
    model: FMvT,
    cases: Sequence[RolloutCase],
    start: Tensor,
    rule: StopRule,
    config: RolloutConfig,
    noise: NoiseSource | None = None,
    cancelled: Callable[[], bool] | None = None,
    memo: BlockMemo | None = None,
    side_by_side: int = 0,
    keep: bool = True,
) -> Iterator[RolloutRound]:
    """Generate volumes block by block; the next case takes the place of one that has ended.

    A case's noise is a function of (case id, block index), so that its volume depends on no other case.

    Args:
        model: The FMvT, in evaluation mode.
        cases: What to generate: from the report alone (full-body), continuing given slices (gt-head), or from
            the real slices before each block (next-block).
        start: What stands before the first slice: the whitened latent of an air slice ``[C, h, w]``, or a
            whole start block ``[C, T, h, w]``.
        rule: How the end is recognised.
        config: Solver, steps, overlap, guidance, limit.
        noise: Source of the noise; None: ``seeded_noise(0)``.
        cancelled: Asked before each evaluation of the network; True ends the rollout with ``Cancelled``.
        memo: Blocks of this model solved before, not to be solved again.
        side_by_side: Cases of a batch; 0: all of them.
        keep: Whether finished cases hold their latents and blocks; without them memory does not grow with a
            volume's length.

    Yields:
        After each round of blocks, what has become final.

    Raises:
        ValueError: Two cases share an id; a start that does not fit.
        Cancelled: ``cancelled`` said so.
    """
    ids = [case.case_id for case in cases]
    if len(set(ids)) != len(ids) or not cases:
        raise ValueError(f"a rollout needs cases with different ids, found {ids}")
    start = _start_block(start, model)
    waiting = deque(_Running(case, row, start, config, rule, keep) for row, case in enumerate(cases))
    for case in waiting:
        if case.real is None and case.slices >= case.limit:
            raise ValueError(
                f"case {case.case.case_id}: {case.given} slices are given, the limit is {case.limit}"
            )
    text, no_text = encode_reports(
        model, [c.text for c in cases], [c.text_mask for c in cases], guided=config.text_guidance != 1
    )
    source = seeded_noise(0) if noise is None else noise
    told = dict.fromkeys(ids, 0)
    index, active = 0, list[_Running]()
    while active or waiting:
        while waiting and (not side_by_side or len(active) < side_by_side):
            active.append(waiting.popleft())
        noises = {case.row: case.noise(source) for case in active}
        fresh = _recall(active, noises, memo, config, rule)
        for group in [[case] for case in fresh] if config.solver == ADAPTIVE_SOLVER else [fresh]:
            z1 = torch.stack([noises[case.row] for case in group]) if group else None
            blocks = () if z1 is None else _generate(model, group, text, no_text, z1, config, cancelled)
            for case, block in zip(group, blocks, strict=True):
                if memo is not None and case.block_index < memo.first and not case.held:
                    memo.put(case.key(noises[case.row], config), block)
                case.append(block, rule)
        slices = {}
        for case in active:
            name = case.case.case_id
            ready = max(case.ready(), told[name])
            slices[name] = case.between(told[name], ready)
            told[name] = ready
            case.forget(ready)
        finished = [case.result() for case in active if case.stop is not None]
        active = [case for case in active if case.stop is None]
        yield RolloutRound(index, slices, finished)
        index += 1


def seeded_noise(seed: int) -> NoiseSource:
    """Noise as a function of (seed, case id, block index), drawn on the CPU."""
    return partial(case_noise, seed)


def _recall(
    active: list[_Running],
    noises: dict[int, Tensor],
    memo: BlockMemo | None,
    config: RolloutConfig,
    rule: StopRule,
) -> list[_Running]:
    """Continue the cases whose next block the memo holds; the others are still to be solved."""
    if memo is None:
        return active
    fresh = []
    for case in active:
        shared = case.block_index < memo.first and not case.held
        block = memo.get(case.key(noises[case.row], config)) if shared else None
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
    z1: Tensor,
    config: RolloutConfig,
    cancelled: Callable[[], bool] | None,
) -> Tensor:
    """One block for each case from its noise: ``[B, C, T, h, w]``."""
    previous = torch.stack([case.before() for case in group])  # [B, C, T, h, w]
    device = previous.device
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
    guided = guided_velocity(model, conditions, None if no_text is None else no_text.select(rows), config)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        if cancelled is not None and cancelled():
            raise Cancelled
        return guided(z, t)

    return solve(velocity, z1, config.steps, config.solver, known, config.time_shift)
