"""Configuration of the block rollout."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.types import BLOCK_LENGTH

FIXED_SOLVERS = ("euler", "midpoint", "heun", "multistep")
SOLVERS = (*FIXED_SOLVERS, "dopri5")
STOP_RULES = ("every_slice", "first_slice")


@dataclass
class StopConfig:
    """How a volume's end is recognised in whitened latents.

    A slice is white where more than ``fraction`` of its values lie within the threshold of the white latent.
    The white slices at a volume's end are trimmed under either rule.

    Attributes:
        rule: ``every_slice``: all slices are examined, and the volume ends in a block whose last slices are
            white, at the block's first white slice. ``first_slice`` (published): it ends when a block's first
            slice is white; the others are not read.
        threshold: Distance from the white latent; None: from the A-VAE's own spread of white latents.
        spread_multiple: Threshold over that spread.
        least_threshold: Smallest threshold taken from the spread: a generated white slice is less exact than
            an encoded one (docs/model.md shows how far bodies stay away).
        most_threshold: Greatest threshold taken from the spread: an A-VAE may leave most of a white latent
            undecided, and bodies must stay away all the same.
        fraction: Part of a slice's values that must be within the threshold.
        redraws: Most times that ``every_slice`` draws a block again, with other noise, because a slice of the
            body follows a white one in it.
    """

    rule: str = "every_slice"
    threshold: float | None = None
    spread_multiple: float = 4.0
    least_threshold: float = 0.5
    most_threshold: float = 0.8
    fraction: float = 0.9
    redraws: int = 3

    def __post_init__(self) -> None:
        if self.rule not in STOP_RULES:
            raise ValueError(f"stop rule is one of {STOP_RULES}, found {self.rule!r}")
        thresholds = (self.threshold, self.spread_multiple, self.least_threshold, self.most_threshold)
        if any(value is not None and value <= 0 for value in thresholds) or not 0 < self.fraction < 1:
            raise ValueError(f"thresholds are positive and fraction lies in (0, 1), found {self}")
        if self.redraws < 0:
            raise ValueError(f"redraws is 0 or more, found {self.redraws}")

    def distance(self, white_spread: float) -> float:
        """The threshold for an A-VAE whose sampled white latents have this RMS spread."""
        if self.threshold is not None:
            return self.threshold
        return min(max(self.spread_multiple * white_spread, self.least_threshold), self.most_threshold)


@dataclass
class RolloutConfig:
    """How blocks are generated, one after the other.

    Attributes:
        steps: Solver steps per block (not read by dopri5).
        solver: ``euler``, ``midpoint``, ``heun``, ``multistep`` (of second order at one evaluation a step) or
            ``dopri5``.
        time_shift: Odds of the solver's equally spaced times are multiplied by it (not read by dopri5): above
            1 most steps lie near t = 1, where layout, sides and findings are decided.
        churn: Share of the way to t = 0 that each step goes further, before fresh noise brings it back, so
            that errors of the network do not add up to mottle; 0: none. With ``multistep`` such steps are
            Euler steps. Not for dopri5.
        churn_below: Only steps that end below this time are churned; above it layout and sides are decided.
        start_steps: Further steps near t = 1 for a block that no slice precedes: each halves the odds of the
            time, down to where the first step ends. The patient is chosen there, and one long step
            makes patients alike. Not read by dopri5, nor where a single step ends at 0.
        start_temperature: Standard deviation of the noise from which such a block starts; above 1 patients
            vary more.
        overlap: Slices at the end of the volume so far that each new block repeats: they are held along the
            flow, and the block adds the rest. Blocks that follow real slices (next-block) repeat none.
        fade: Slices of the overlap, its last ones, that a block draws anew instead, from the noise that they
            were drawn from: they pass from the earlier block's to the new one's, so that the step between
            blocks is spread over several slices.
        text_guidance: Scale of classifier-free guidance by the text; 1: none.
        guidance_from: The text guides at times from this one on to t = 1 (Kynkäänniemi et al. 2024); below,
            one evaluation a step is enough and details stay as they are.
        previous_guidance: Scale of classifier-free guidance by the previous block; 1: none.
        max_slices: Longest volume.
        stop: How the end is recognised.
    """

    steps: int = 50
    solver: str = "euler"
    time_shift: float = 1.0
    churn: float = 0.0
    churn_below: float = 1.0
    start_steps: int = 0
    start_temperature: float = 1.0
    overlap: int = 0
    fade: int = 0
    text_guidance: float = 1.0
    guidance_from: float = 0.0
    previous_guidance: float = 1.0
    max_slices: int = 256
    stop: StopConfig = field(default_factory=StopConfig)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is one of {SOLVERS}, found {self.solver!r}")
        if self.steps < 1 or self.max_slices < 1:
            raise ValueError(f"steps and max_slices are at least 1, found {self.steps} and {self.max_slices}")
        if not 0 <= self.overlap < BLOCK_LENGTH:
            raise ValueError(f"overlap lies between 0 and {BLOCK_LENGTH - 1} slices, found {self.overlap}")
        if not 0 <= self.fade < max(self.overlap, 1):
            raise ValueError(
                f"fade is less than overlap, so that a slice is held, found {self.fade} of {self.overlap}"
            )
        if self.time_shift <= 0 or not (0 <= self.guidance_from <= 1 and 0 <= self.churn_below <= 1):
            raise ValueError(
                "time_shift is positive, guidance_from and churn_below lie in [0, 1], found "
                f"{self.time_shift}, {self.guidance_from} and {self.churn_below}"
            )
        if self.start_steps < 0:
            raise ValueError(f"start_steps is 0 or more, found {self.start_steps}")
        if self.start_temperature <= 0:
            raise ValueError(f"start_temperature is positive, found {self.start_temperature}")
        if not 0 <= self.churn <= 1 or (self.churn and self.solver not in FIXED_SOLVERS):
            raise ValueError(
                f"churn lies in [0, 1] and needs one of {FIXED_SOLVERS} (churn=0 turns it off), found "
                f"{self.churn} with {self.solver}"
            )
        if self.text_guidance < 0 or self.previous_guidance < 0:
            raise ValueError(
                f"guidance scales are not negative, found {self.text_guidance} and {self.previous_guidance}"
            )

    @property
    def starts_apart(self) -> bool:
        """Whether a block that no slice precedes is sampled in another way than the others."""
        return bool(self.start_steps) or self.start_temperature != 1

    def early(self, starts: bool) -> int:
        """Further steps of a block, by whether no slice precedes it."""
        return self.start_steps if starts and self.steps > 1 else 0

    def draws(self, starts: bool) -> int:
        """Draws of noise for a block: its start, and what churn adds after every step but the last."""
        return self.steps + self.early(starts) if self.churn else 1
