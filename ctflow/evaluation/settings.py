"""The three settings (evaluation.md): which blocks are given, which are generated, which may be scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctflow.config.evaluation import SETTING_NAMES
from ctflow.errors import EvaluationError
from ctflow.types import BLOCK_LENGTH, HUVolume


@dataclass(frozen=True)
class Setting:
    """One way of evaluating.

    Attributes:
        name: As on the command line.
        published: Its name in the paper.
        given: Slices at the start of every volume that are real and must never be scored.
        spliced: Whether neighbouring blocks were generated independently, so that nothing longer than a
        block exists.
        stops: Whether volumes end where the end slices begin (else at the real volume's length).
        description: For the report.
    """

    name: str
    published: str
    given: int
    spliced: bool
    stops: bool
    description: str

    def may_score(self, starts: NDArray[np.integer], frames: int = 1) -> NDArray[np.bool_]:
        """Which samples hold no given slice and no splice.

        Args:
            starts: First slice of each sample ``[n]``.
            frames: Slices in a sample; 1: single slices.
        """
        fits = starts >= self.given
        if self.spliced:
            fits &= starts // BLOCK_LENGTH == (starts + frames - 1) // BLOCK_LENGTH
        return fits


SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting(
            "full-body",
            "Full-Body",
            given=0,
            spliced=False,
            stops=True,
            description="every block generated, each from the generated block before it",
        ),
        Setting(
            "gt-head",
            "GT-Head",
            given=BLOCK_LENGTH,
            spliced=False,
            stops=True,
            description="the real first block is given and not scored; the others as in full-body",
        ),
        Setting(
            "next-block",
            "Next-Block",
            given=0,
            spliced=True,
            stops=True,
            description="each block generated from the REAL block before it (teacher forcing), as many as "
            "the real volume has; end slices behind the last other slice end the volume",
        ),
    )
}
assert tuple(SETTINGS) == SETTING_NAMES
REAL = Setting(
    "real", "", 0, spliced=False, stops=False, description="real cases, for the reference and floors"
)


@dataclass(frozen=True)
class ScoredVolume:
    """A volume on its way into a score. Given slices are NaN from its birth, and every feature refuses NaN.

    Attributes:
        case_id: The case it was generated from.
        setting: The setting it was generated in.
        hu: Float32 ``[S, H, W]`` in HU; the setting's given slices are NaN, all others finite.
        spacing: Millimetres along (slices, rows, columns).
        requested: Slices that were asked for.
        stopped: Whether the stop rule ended it (else the limit or the real volume's length).
        overlap: Slices that each generated block repeats of the one before.
        end_slices: Scored slices whose latent is the end slice's; None for volumes of no rollout. What an
            A-VAE makes of that latent need not be white, so that HU alone do not tell.
        doubts: What looks wrong with a volume that was read from a file, e.g. ``orientation_doubt: …``.
    """

    case_id: str
    setting: Setting
    hu: NDArray[np.float32]
    spacing: tuple[float, float, float]
    requested: int
    stopped: bool = False
    overlap: int = 0
    end_slices: int | None = None
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.hu.ndim != 3:
            raise EvaluationError(
                f"case {self.case_id}: a volume of shape {self.hu.shape}", "[slices, rows, columns]"
            )
        if not np.isnan(self.hu[: self.setting.given]).all():
            raise EvaluationError(
                f"case {self.case_id}: given (real) slices on their way into a {self.setting.name} score",
                f"the first {self.setting.given} slices masked",
                "build scored volumes with ScoredVolume.of_rollout",
            )
        bad = ~np.isfinite(self.hu[self.setting.given :]).all(axis=(1, 2))
        if bad.any():
            first = int(np.flatnonzero(bad)[0]) + self.setting.given
            raise EvaluationError(f"case {self.case_id}: slice {first} holds NaN or infinite HU", "finite HU")

    @classmethod
    def of_rollout(
        cls,
        case_id: str,
        setting: Setting,
        hu: NDArray[np.float32],
        spacing: tuple[float, float, float],
        requested: int,
        stopped: bool = False,
        overlap: int = 0,
        end_slices: int | None = None,
    ) -> ScoredVolume:
        """A whole rollout ``[S, H, W]``, given slices included; they are masked here, in a copy."""
        masked = np.array(hu, dtype=np.float32)
        masked[: setting.given] = np.nan
        return cls(case_id, setting, masked, spacing, requested, stopped, overlap, end_slices)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Indices of the slices that are scored, from the inferior end."""
        return np.flatnonzero(self.setting.may_score(np.arange(len(self.hu))))

    def scored(self) -> HUVolume:
        """The scored slices as a volume of their own."""
        return HUVolume(self.hu[self.setting.given :], self.spacing)

    def window_starts(self, frames: int, stride: int) -> list[int]:
        """First slices of the clips that may be scored: no given slice, no splice inside.

        Args:
            frames: Slices in a clip.
            stride: Candidates start at multiples of it.
        """
        starts = np.arange(0, len(self.hu) - frames + 1, stride)
        return starts[self.setting.may_score(starts, frames)].tolist()
