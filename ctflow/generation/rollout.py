"""Whole volumes, block by block: each is generated from the slices before it, the report and its place."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.flow import ADAPTIVE_SOLVER, Churn, KnownRegion, Velocity, solve
from ctflow.generation.volumes import (
    Cancelled,
    CaseRollout,
    GrowingVolume,
    NoiseSource,
    RolloutCase,
    RolloutRound,
    StopRule,
)
from ctflow.models import Conditions, FMvT, TextCondition
from ctflow.seeding import case_noise
from ctflow.types import BLOCK_LENGTH


def rollout(
    model: FMvT,
    cases: Sequence[RolloutCase],
    start: Tensor,
    rule: StopRule,
    config: RolloutConfig,
    noise: NoiseSource | None = None,
    progress: Callable[[RolloutRound], None] | None = None,
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
            progress(round_)
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

    A case's noise is a function of (case id, block index, times that the block was drawn before), so that its
    volume depends on no other case.

    Args:
        model: The FMvT, in evaluation mode.
        cases: What to generate: from the report alone (full-body), continuing given slices (gt-head), or from
            the real slices before each block (next-block).
        start: The latent before the first slice: the whitened latent of an air slice ``[C, h, w]``, or a
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
    waiting = deque(GrowingVolume(case, row, start, config, rule, keep) for row, case in enumerate(cases))
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
    index, active = 0, list[GrowingVolume]()
    while active or waiting:
        while waiting and (not side_by_side or len(active) < side_by_side):
            active.append(waiting.popleft())
        noises = {case.row: case.noise(source, config.draws(case.starts)) for case in active}
        fresh = _recall(active, noises, memo, config, rule)
        for group in _batches(fresh, config):
            generate = partial(
                _generate, model, text=text, no_text=no_text, config=config, cancelled=cancelled
            )
            blocks = list(generate(group, noise=_joined(group, noises)))
            _draw_again(group, blocks, rule, generate, source, config)
            for case, block in zip(group, blocks, strict=True):
                if memo is not None and memo.keeps(case):
                    memo.put(_block_key(case, noises[case.row], config), block)
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


def _draw_again(
    group: list[GrowingVolume],
    blocks: list[Tensor],
    rule: StopRule,
    generate: Callable[..., Tensor],
    source: NoiseSource,
    config: RolloutConfig,
) -> None:
    """Replace the blocks in which a slice of the body follows an end slice, at most ``redraws`` times."""
    for attempt in range(1, rule.config.redraws + 1):
        again = [i for i, case in enumerate(group) if case.contradicts(blocks[i], rule)]
        if not again:
            return
        cases = [group[i] for i in again]
        noises = {case.row: case.noise(source, config.draws(case.starts), attempt) for case in cases}
        for i, block in zip(again, generate(cases, noise=_joined(cases, noises)), strict=True):
            blocks[i] = block
            group[i].redrawn += 1


def _batches(fresh: list[GrowingVolume], config: RolloutConfig) -> list[list[GrowingVolume]]:
    """Cases whose next blocks are solved together: those that take the same steps."""
    if config.solver == ADAPTIVE_SOLVER:
        return [[case] for case in fresh]
    if not config.starts_apart:
        return [fresh] if fresh else []
    groups = ([case for case in fresh if case.starts is starts] for starts in (True, False))
    return [group for group in groups if group]


def _joined(group: list[GrowingVolume], noises: dict[int, Tensor]) -> Tensor:
    """The noise of some cases' blocks ``[draws, B, C, T, h, w]``."""
    return torch.stack([noises[case.row] for case in group], dim=1)


def seeded_noise(seed: int) -> NoiseSource:
    """Noise as a function of (seed, case id, block index), drawn on the CPU."""
    return partial(case_noise, seed)


def _recall(
    active: list[GrowingVolume],
    noises: dict[int, Tensor],
    memo: BlockMemo | None,
    config: RolloutConfig,
    rule: StopRule,
) -> list[GrowingVolume]:
    """Continue the cases whose next block the memo holds; the others are still to be solved."""
    if memo is None:
        return active
    fresh = []
    for case in active:
        block = memo.get(_block_key(case, noises[case.row], config)) if memo.keeps(case) else None
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
    group: list[GrowingVolume],
    text: TextCondition,
    no_text: TextCondition | None,
    noise: Tensor,
    config: RolloutConfig,
    cancelled: Callable[[], bool] | None,
) -> Tensor:
    """One block ``[B, C, T, h, w]`` for each case from its noise ``[draws, B, C, T, h, w]``.

    Where ``config.starts_apart``, either all cases start or none does.
    """
    starts = group[0].starts
    z1 = noise[0] * config.start_temperature if starts else noise[0]
    churn = Churn(config.churn, noise[1:], config.churn_below) if config.churn else None
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

    early = config.early(starts)
    return solve(velocity, z1, config.steps, config.solver, known, config.time_shift, churn, early)


def guided_velocity(
    model: FMvT, conditions: Conditions, no_text: TextCondition | None, config: RolloutConfig
) -> Velocity:
    """Velocity field with classifier-free guidance (Ho & Salimans 2022), one scale for each condition.

    ``v + (text_guidance - 1) (v - v_without_text) + (previous_guidance - 1) (v - v_without_previous)``, where
    v has both conditions. A scale of 1 costs nothing; each other one costs one more evaluation of the
    network, the text's only at times from ``guidance_from`` on.

    Args:
        model: The FMvT, in evaluation mode.
        conditions: What the blocks are generated from; the text is encoded.
        no_text: "No text" for as many samples; None where text guidance is off.
        config: The scales; one for the previous block needs a model that knows a null previous block.

    Returns:
        ``velocity(z, t)`` for ``ctflow.flow.solve``.
    """
    unguided = replace(conditions, text=no_text)
    alone = replace(conditions, previous=None)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        full = model(z, t, conditions)
        out = full
        if no_text is not None and float(t) >= config.guidance_from:
            out = out + (config.text_guidance - 1) * (full - model(z, t, unguided))
        if config.previous_guidance != 1:
            out = out + (config.previous_guidance - 1) * (full - model(z, t, alone))
        return out

    return velocity


def evaluations(config: RolloutConfig) -> int:
    """Evaluations of the network for a block that follows others, those of guidance included.

    ``start_steps`` come on top for a volume's first block. 0: dopri5 chooses.
    """
    if config.solver == ADAPTIVE_SOLVER:
        return 0
    count = 0

    def counted(z: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1 + (config.text_guidance != 1 and float(t) >= config.guidance_from)
        count += config.previous_guidance != 1
        return z

    churn = Churn(config.churn, torch.zeros(config.steps - 1, 1)) if config.churn else None
    solve(counted, torch.zeros(1), config.steps, config.solver, shift=config.time_shift, churn=churn)
    return count


def encode_reports(
    model: FMvT, texts: Sequence[Tensor], masks: Sequence[Tensor | None], guided: bool
) -> tuple[TextCondition, TextCondition | None]:
    """Encode the reports of a rollout once, and "no text" beside them where text guidance is on.

    Args:
        model: The FMvT.
        texts: ``[L, D]`` each; shorter ones are padded.
        masks: ``[L]`` each, or None where all tokens count.
        guided: Whether "no text" is needed.

    Returns:
        Two conditions of as many rows as there are texts; the second is None unless ``guided``.
    """
    device = model.pos_embed.device
    longest = max(text.shape[0] for text in texts)
    text = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[0])) for t in texts])
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, one_text, one_mask in zip(mask, texts, masks, strict=True):
        row[: one_text.shape[0]] = True if one_mask is None else one_mask.bool().cpu()
    text, mask = text.to(device), mask.to(device)
    whole = model.encode_text(text, None if bool(mask.all()) else mask)
    if not guided:
        return whole, None
    return whole, model.encode_text(None, batch=len(texts))


class BlockMemo:
    """The newest solved blocks of one model, by everything a block depends on.

    Args:
        capacity: Blocks kept; the oldest go first.
        first: Only the first so many blocks of a volume are kept: later ones of two rollouts differ.
    """

    def __init__(self, capacity: int, first: int) -> None:
        self.capacity, self.first = capacity, first
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def keeps(self, case: GrowingVolume) -> bool:
        """Whether the next block of a case is one that rollouts share."""
        return case.block_index < self.first and not case.held

    def get(self, key: bytes) -> Tensor | None:
        """The block ``[C, T, h, w]``, or None."""
        return self._blocks.get(key)

    def put(self, key: bytes, block: Tensor) -> None:
        """Keep a block."""
        self._blocks[key] = block
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)


def _block_key(case: GrowingVolume, z1: Tensor, config: RolloutConfig) -> bytes:
    """Digest of everything that a case's next block depends on, tensors bit by bit."""
    digest = hashlib.sha256(f"{case.position} {case.case.length} {case.case.spacing} {config}".encode())
    for tensor in (z1, case.before(), case.case.text, case.case.text_mask):
        if tensor is None:
            digest.update(b"none")
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{list(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
