"""What a rollout is asked for, what it tells on the way, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

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
            (teacher forcing, next-block), as many as the real volume has, and nothing stops it earlier.
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
    """

    case_id: str
    latents: Tensor
    slices: int
    given_slices: int
    blocks: Tensor
    positions: list[int]
    white: Tensor
    stop: StopReason


class Cancelled(Exception):
    """A rollout was asked to end before its volumes were whole."""


@dataclass(frozen=True)
class RolloutRound:
    """What has become final in one round of blocks.

    Attributes:
        index: Number of the round, from 0.
        slices: Whitened latents ``[C, n, h, w]`` that follow those of earlier rounds, by case; given slices
            come with the first round. White slices are held back until it is known that they are not the end.
        finished: Volumes that ended in this round.
    """

    index: int
    slices: dict[str, Tensor]
    finished: list[CaseRollout]


@dataclass(frozen=True)
class BlockProgress:
    """What the progress callback is told after each round of blocks.

    Attributes:
        block: Index of the round, from 0.
        generated: Case ids that got a block in this round.
        finished: Number of cases that have ended.
        cases: Number of cases.
    """

    block: int
    generated: list[str]
    finished: int
    cases: int
