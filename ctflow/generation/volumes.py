"""One volume on its way: what is asked for, how it grows, when it ends, what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.types import BLOCK_LENGTH

NoiseSource = Callable[[str, int, Sequence[int]], Tensor]
"""``noise(case_id, block_index, shape)``: the noise of one block ``[C, T, h, w]``."""


class StopReason(StrEnum):
    """Why a case's rollout ended."""

    END_RECOGNISED = "end recognised"
    LENGTH_REACHED = "requested length reached"
    LIMIT_REACHED = "limit of slices reached"
    REAL_LENGTH = "as long as the real volume"


@dataclass(frozen=True)
class RolloutCase:
    """One volume to generate.

    Attributes:
        case_id: Names the case's noise; unique within a rollout.
        text: The report's text vectors ``[L, D]``.
        text_mask: ``[L]``, True where a token counts; None: all count.
        length: Slices asked for; an input of the model where it takes one, and a limit. None: unknown.
        spacing: Millimetres between slices, rows and columns, an input of the model where it takes one. None:
            unknown.
        given: Real first slices ``[C, S, h, w]``, whitened, that the rollout continues (gt-head: 16).
        real: Real volume ``[C, S, h, w]``, whitened: every block is generated from the real slices before it
            (teacher forcing, next-block), as many as the real volume has, and nothing stops it earlier. White
            slices behind the last other one end the volume, as in every rollout.
    """

    case_id: str
    text: Tensor
    text_mask: Tensor | None = None
    length: int | None = None
    spacing: tuple[float, float, float] | None = None
    given: Tensor | None = None
    real: Tensor | None = None

    def __post_init__(self) -> None:
        if self.given is not None and self.real is not None:
            raise ValueError(f"case {self.case_id}: given and real exclude each other")
        for name, latents in (("given", self.given), ("real", self.real)):
            if latents is not None and (latents.ndim != 4 or not latents.shape[1]):
                raise ValueError(
                    f"case {self.case_id}: {name} must be [C, S, h, w], found {list(latents.shape)}"
                )
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"case {self.case_id}: spacing must be positive, found {self.spacing}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"case {self.case_id}: length must be at least 1 slice, found {self.length}")


@dataclass(frozen=True)
class CaseRollout:
    """One generated volume.

    Attributes:
        case_id: The case.
        latents: Whitened latents ``[C, S, h, w]``, given slices included, end slices trimmed; none of them
            where they were not kept.
        slices: Number of slices of the volume.
        given_slices: How many of the leading slices were given.
        blocks: Every generated block as solved ``[K, C, T, h, w]``, overlap included; none where they were
            not kept.
        positions: Index of each block's first slice ``[K]``.
        white: For each slice before trimming ``[S']``, whether it is white.
        stop: Why the rollout ended.
        redrawn: Times that a block was drawn again (``StopConfig.redraws``).
    """

    case_id: str
    latents: Tensor
    slices: int
    given_slices: int
    blocks: Tensor
    positions: list[int]
    white: Tensor
    stop: StopReason
    redrawn: int = 0


class Cancelled(Exception):
    """A rollout was asked to end before its volumes were whole."""


@dataclass(frozen=True)
class RolloutRound:
    """The slices that have become final in one round of blocks.

    Attributes:
        index: Number of the round, from 0.
        slices: Whitened latents ``[C, n, h, w]`` that follow those of earlier rounds, by case; given slices
            come with the first round. White slices are held back until it is known that they are not the end.
        finished: Volumes that ended in this round.
    """

    index: int
    slices: dict[str, Tensor]
    finished: list[CaseRollout]


def white_slices(latents: Tensor, white: Tensor, distance: float, fraction: float) -> Tensor:
    """Which slices are the latent of a white image.

    Args:
        latents: ``[..., C, S, h, w]``, whitened.
        white: ``[C, h, w]``, the whitened latent of a white image.
        distance: Greatest absolute difference of a value that counts as equal.
        fraction: A slice is white where more than this part of its values is equal.

    Returns:
        Bool ``[..., S]``.
    """
    near = (latents - white[:, None]).abs() < distance  # [..., C, S, h, w]
    return near.float().mean(dim=(-4, -2, -1)) > fraction  # [..., S]


def trailing_run(flags: Tensor) -> int:
    """Number of True values at the end of ``flags [S]``."""
    return int(flags.flip(0).int().cumprod(0).sum())


def end_run(flags: Tensor, rule: str) -> int:
    """Slices at the end of a block that belong to the volume's end.

    Nothing of a body follows an end slice, so that under ``every_slice`` the end of a block whose last slices
    are white begins at its first white slice, whatever a model drew between two white ones.

    Args:
        flags: Bool ``[S]``, the block's new slices.
        rule: As in ``is_end``; ``first_slice`` counts the white slices at the end alone, as published.
    """
    trailing = trailing_run(flags)
    if rule == "first_slice" or not trailing:
        return trailing
    return len(flags) - int(flags.int().argmax())


def is_end(flags: Tensor, rule: str) -> bool:
    """Whether a block with these white slices ends its volume.

    Args:
        flags: Bool ``[S]``, the block's new slices.
        rule: ``StopConfig.rule``: ``every_slice`` (the block's last slices are white) or ``first_slice``.
    """
    return bool(flags[0] if rule == "first_slice" else trailing_run(flags) > 0)


class StopRule:
    """A ``StopConfig`` applied to one A-VAE.

    Args:
        config: The rule.
        white: ``[C, h, w]``, whitened latent of a white slice.
        white_spread: RMS of the whitened deviation of sampled white latents from ``white``.
    """

    def __init__(self, config: StopConfig, white: Tensor, white_spread: float) -> None:
        self.config = config
        self.white = white
        self.distance = config.distance(white_spread)

    def white_slices(self, latents: Tensor) -> Tensor:
        """``[..., C, S, h, w]`` to bool ``[..., S]``."""
        return white_slices(latents, self.white, self.distance, self.config.fraction)

    def is_end(self, flags: Tensor) -> bool:
        """Whether a block whose new slices have these flags ends its volume."""
        return is_end(flags, self.config.rule)

    def end_run(self, flags: Tensor) -> int:
        """How many of a block's last slices belong to the volume's end."""
        return end_run(flags, self.config.rule)


class GrowingVolume:
    """The volume of one case, block by block.

    With ``keep=False`` slices that have been told are forgotten but for those that the next block needs, so
    that memory does not grow with the volume.

    Args:
        case: What is asked for.
        row: Index of the case within its rollout.
        start: Start block ``[C, T, h, w]``.
        config: Limit and overlap.
        rule: How the end is recognised.
        keep: Whether the result holds latents and blocks.
    """

    def __init__(
        self, case: RolloutCase, row: int, start: Tensor, config: RolloutConfig, rule: StopRule, keep: bool
    ) -> None:
        self.case, self.row, self.keep = case, row, keep
        self.given = 0 if case.given is None else case.given.shape[1]
        # The start block is before slice 0, so that slice s is at index s + BLOCK_LENGTH - forgotten.
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
        self.redrawn = 0
        self.end = 0  # slices at the end of the volume that are its end
        # A block after real slices repeats no generated slice.
        self.overlap = config.overlap if case.real is None else 0
        self.fade = config.fade
        self.drawn: Tensor | None = None  # the next block's noise, if it was asked for
        self.shared: Tensor | None = None  # that of the last block's last slices

    @property
    def slices(self) -> int:
        """Slices of the volume so far."""
        return self.forgotten + self.volume.shape[1] - BLOCK_LENGTH

    @property
    def repeated(self) -> int:
        """Slices of the volume so far that the next block covers too."""
        return min(self.overlap, self.slices)

    @property
    def faded(self) -> int:
        """Slices among them, the last ones, that the next block draws anew; given slices stay as they are."""
        return min(self.fade, max(self.repeated - 1, 0), self.slices - self.given)

    @property
    def held(self) -> int:
        """Slices among them, the first ones, that the next block is held at."""
        return self.repeated - self.faded

    @property
    def position(self) -> int:
        """Index of the next block's first slice."""
        return self.slices - self.repeated

    @property
    def starts(self) -> bool:
        """Whether no slice precedes the next block."""
        return self.position == 0

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
        """Free slices that were given out and that no later block is generated from."""
        last = min(told, self.position - BLOCK_LENGTH)
        surplus = last + BLOCK_LENGTH - self.forgotten
        if not self.keep and surplus > 0:
            self.volume = self.volume[:, surplus:].clone()  # a view would keep what it was cut from
            self.forgotten += surplus

    def known(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Mask ``[1, T, 1, 1]`` and values ``[C, T, h, w]`` of the slices that the next block is held at."""
        mask = torch.zeros(1, BLOCK_LENGTH, 1, 1, dtype=torch.bool, device=block.device)
        mask[:, : self.held] = True
        value = torch.zeros_like(block)
        value[:, : self.held] = self.between(self.position, self.position + self.held)
        return mask, value

    def noise(self, source: NoiseSource, draws: int = 1, attempt: int = 0) -> Tensor:
        """Of the next block, ``[draws, C, T, h, w]``: its start and what churn adds, new for each attempt.

        Slices that are drawn a second time, to be mixed, have the noise of the first time: both versions
        then differ less. A first block may have more draws; the last ones belong to the same times.
        """
        before = self.before()
        count = (attempt + 1) * draws  # another attempt takes what the source gives behind the earlier ones'
        shape = before.shape if count == 1 else (count, *before.shape)
        noise = source(self.case.case_id, self.block_index, shape).to(before)
        noise = noise.view(count, *before.shape)[-draws:]
        if self.faded and self.shared is not None:
            noise = noise.clone()
            again, earlier = noise[:, :, self.held : self.repeated], self.shared[:, :, -self.faded :]
            again[0] = earlier[0]
            churned = min(draws, len(earlier)) - 1
            again[draws - churned :] = earlier[len(earlier) - churned :]
        if attempt == 0:
            self.drawn = noise
        return noise

    def contradicts(self, block: Tensor, rule: StopRule) -> bool:
        """Whether a solved block ``[C, T, h, w]`` would leave a white slice before one of the body.

        At a volume's end a model may hesitate from slice to slice between end and body.
        """
        flags = rule.white_slices(block[:, self.repeated :]).cpu()
        if rule.config.rule != "every_slice" or (self.real is None and rule.is_end(flags)):
            return False
        flags = flags[: self.limit - self.slices]
        return bool((flags[:-1] & ~flags[1:]).any())

    def ready(self) -> int:
        """Slices that are final: white ones may turn out to be the volume's end, faded ones still change."""
        if self.stop is not None:
            return self.kept()
        return self.slices - max(trailing_run(self.white), self.faded)

    def kept(self) -> int:
        """Slices of the finished volume."""
        whole = min(self.slices, max(self.limit, self.given))
        return max(min(whole - trailing_run(self.white[:whole]), self.slices - self.end), self.given)

    def append(self, block: Tensor, rule: StopRule) -> None:
        """Add a solved block ``[C, T, h, w]`` and decide whether the volume ends."""
        self.positions.append(self.position)
        if self.fade and self.drawn is not None:
            # Of the first attempt's even if the block is another's: a memo's block does not tell which it is.
            self.shared = self.drawn[:, :, BLOCK_LENGTH - self.fade :].clone()
        if self.keep:
            self.blocks.append(block)
        new = block[:, self.repeated :]
        flags = rule.white_slices(new).cpu()
        self.volume = torch.cat([self._faded_into(block, rule), new], dim=1)
        self.white = torch.cat([self.white, flags])
        if self.real is not None:
            if self.slices >= self.limit:
                ends = trailing_run(self.white[: self.limit])
                self.stop = StopReason.END_RECOGNISED if ends else StopReason.REAL_LENGTH
            return
        if rule.is_end(flags) and self.slices - rule.end_run(flags) < self.limit:
            self.stop = StopReason.END_RECOGNISED
            self.end = rule.end_run(flags)
        elif self.slices >= self.limit:
            asked = self.limit == self.case.length
            self.stop = StopReason.LENGTH_REACHED if asked else StopReason.LIMIT_REACHED

    def _faded_into(self, block: Tensor, rule: StopRule) -> Tensor:
        """The volume so far, its last slices mixed with the block's, whose share grows as half a cosine.

        A white slice is mixed with no other: half an end is neither end nor body.
        """
        if not self.faded:
            return self.volume
        kept, old = self.volume[:, : -self.faded], self.volume[:, -self.faded :]
        new = block[:, self.held : self.repeated]
        share = torch.arange(1, self.faded + 1, device=block.device) / (self.faded + 1)
        share = (1 - torch.cos(math.pi * share)) / 2  # the least change where the mixture begins and ends
        white = rule.white_slices(old) | rule.white_slices(new)
        share = torch.where(white, 0.0, share)[:, None, None]
        return torch.cat([kept, old + share * (new - old)], dim=1)

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
            self.redrawn,
        )
