"""Configuration of the FMvT and of the flow it is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ctflow.types import BLOCK_LENGTH

TIME_DISTRIBUTIONS = ("logit_normal", "uniform")


@dataclass
class FMvTConfig:
    """Architecture of the spatio-temporal flow-matching transformer.

    The fields from ``scrambled_heads`` to ``spacing_input`` are where the published weights differ from a
    fresh model; each default is the fresh choice, and ``models.fmvt_published`` sets the published one
    (``docs/model.md`` says why).

    Attributes:
        input_size: Latent block (slices, rows, columns) the model is made for; other sizes divisible by the
            patch work.
        latent_channels: Channels of a latent; the network reads twice as many (noisy block and previous
            block).
        patch_size: Latent elements (slices, rows, columns) per token.
        hidden_size: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Attention heads; must divide ``hidden_size``.
        mlp_ratio: Hidden width of the block's MLP over ``hidden_size``.
        text_dim: Width of the text encoder's vectors.
        text_tokens: Text tokens the model is meant for (1: one pooled vector per report).
        space_scale: Divisor of the row and column positions in the sin-cos embedding.
        time_scale: Divisor of the slice positions in the sin-cos embedding.
        scrambled_heads: Self-attention's ``[B, heads, N, d]`` is reshaped to ``[B, N, heads * d]`` without
            moving the
            heads back. A defect that the published weights were trained with.
        raw_temporal_branch: Temporal attention reads the un-normalised tokens and shares the spatial branch's
            gate;
            otherwise it has a normalisation, shift, scale and gate of its own.
        raw_cross_queries: Cross-attention's queries come from the un-normalised tokens.
        late_temporal_embedding: The temporal position embedding is added to the input of block 0's temporal
            attention alone;
            otherwise to the tokens themselves.
        temporal_embedding: Whether there is a temporal position embedding at all.
        time_multiplier: The flow time in [0, 1] is multiplied by it before its sinusoidal embedding.
        learned_nulls: "No text" and "no previous block" are learned; otherwise there is an untrained stand-in
            for the text
            and none for the previous block.
        normalise_text: Text vectors are brought to zero mean and unit variance before their MLP.
        text_modulation: The mean text token is added to the time embedding, besides cross-attention.
        position_input: The index of the block's first slice is an input.
        length_input: The volume's number of slices is an input.
        slice_times: Every slice of a block has a flow time of its own, and known slices are given clean, at t
            = 0 (Chen et al. 2024, Diffusion Forcing); otherwise a block has one time.
        preconditioned: The network predicts what a line through z cannot (Karras et al. 2022, section 5, for
            the straight path); otherwise the whole velocity.
        spectrum: The linear part of ``preconditioned`` knows the data's spectrum, which a training measures
            (``FlowTask.measured_blocks``), and the network reads the linear estimate of the data in place of
            the noisy block; otherwise it takes the data for white.
        text_at_places: The product of report and place is added to the tokens before the first block.
        previous_noise_input: The level of the noise in the previous block is an input.
        spacing_input: Distances between slices and pixels are inputs, and the block's place in millimetres.
        local_channels: Width of three 3×3×3 convolutions that correct the output at the latents' own
            resolution, across the edges of patches; 0: none.
        local_blocks: Residual blocks of two more convolutions among them, each of ``local_channels``.
        fine_size: Width of a token of the fine stage: transformer blocks over patches of half the rows and
            columns, which correct the output after the local head; a multiple of the width of a head.
        fine_depth: Number of its blocks; 0: no fine stage.
        start_directions: Principal directions of the blocks that begin a volume, measured by a training
            (``FlowTask.measured_blocks``), along which a small head corrects such a block; 0: no such head.
        activation_checkpointing: Recompute each block in the backward pass instead of storing it.
    """

    input_size: list[int] = field(default_factory=lambda: [BLOCK_LENGTH, 32, 32])
    latent_channels: int = 16
    patch_size: list[int] = field(default_factory=lambda: [2, 2, 2])
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    text_dim: int = 768
    text_tokens: int = 1
    space_scale: float = 1.0
    time_scale: float = 1.0
    scrambled_heads: bool = False
    raw_temporal_branch: bool = False
    raw_cross_queries: bool = False
    late_temporal_embedding: bool = False
    temporal_embedding: bool = True
    time_multiplier: float = 1000.0
    learned_nulls: bool = True
    normalise_text: bool = True
    text_modulation: bool = True
    position_input: bool = True
    length_input: bool = True
    slice_times: bool = True
    preconditioned: bool = True
    spectrum: bool = False
    text_at_places: bool = True
    previous_noise_input: bool = True
    spacing_input: bool = True
    local_channels: int = 0
    local_blocks: int = 0
    fine_size: int = 0
    fine_depth: int = 0
    start_directions: int = 0
    activation_checkpointing: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return math.prod(size // patch for size, patch in zip(self.input_size, self.patch_size, strict=True))

    def __post_init__(self) -> None:
        if len(self.input_size) != 3 or len(self.patch_size) != 3:
            raise ValueError(
                f"input_size and patch_size have 3 numbers, found {self.input_size} and {self.patch_size}"
            )
        if any(p < 1 or s < 1 or s % p for s, p in zip(self.input_size, self.patch_size, strict=True)):
            raise ValueError(f"input_size {self.input_size} is not divisible by patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size must be divisible by num_heads and by 4 (sin-cos embedding), "
                f"found hidden_size={self.hidden_size}, num_heads={self.num_heads}"
            )
        numbers = {
            name: getattr(self, name)
            for name in ("latent_channels", "depth", "num_heads", "mlp_ratio", "text_dim", "text_tokens",
                         "space_scale", "time_scale", "time_multiplier")
        }  # fmt: skip
        if bad := {name: value for name, value in numbers.items() if value <= 0}:
            raise ValueError(f"these must be positive: {bad}")
        if self.local_channels < 0 or self.local_blocks < 0:
            raise ValueError(
                f"local_channels and local_blocks are 0 or positive, found {self.local_channels} and "
                f"{self.local_blocks}"
            )
        if self.local_blocks and not self.local_channels:
            raise ValueError(f"local_blocks={self.local_blocks} need local_channels above 0, found 0")
        if self.fine_size < 0 or self.fine_depth < 0 or bool(self.fine_size) != bool(self.fine_depth):
            raise ValueError(
                "fine_size and fine_depth are both 0 or both positive, found "
                f"{self.fine_size} and {self.fine_depth}"
            )
        if self.fine_depth and (self.patch_size[1] % 2 or self.patch_size[2] % 2):
            raise ValueError(
                f"a fine stage halves the rows and columns of a patch: they are even, found {self.patch_size}"
            )
        if self.fine_size % (self.hidden_size // self.num_heads):
            raise ValueError(
                f"fine_size is a multiple of a head's width, {self.hidden_size // self.num_heads}, found "
                f"{self.fine_size}"
            )
        if self.start_directions < 0:
            raise ValueError(f"start_directions is 0 or more, found {self.start_directions}")
        if self.spectrum and not self.preconditioned:
            raise ValueError("spectrum=true is a kind of preconditioning: it needs preconditioned=true")


@dataclass
class FlowConfig:
    """How the FMvT is trained to match the flow.

    Attributes:
        path_offset: Width of the path at t = 0 (the published weights: 1e-5).
        time_distribution: ``logit_normal`` or ``uniform`` on [0, 1].
        time_shift: Odds of a drawn time are multiplied by it (Esser et al. 2024, section 5.3.2): the layout
            of a chest is decided above t = 0.95, where unshifted times hardly ever fall (docs/model.md). The
            grid that a solver takes is shifted by ``RolloutConfig.time_shift``.
        time_spread: Standard deviation of the logit of ``logit_normal`` times.
        noise_offset: Standard deviation of an extra noise that is constant over each channel of a block.
        condition_noise: Noise added to the previous block in training: its standard deviation, or, where the
            network is told the level (``FMvTConfig.previous_noise_input``), the greatest one.
        known_share: Probability that a training block begins with known slices (``FMvTConfig.slice_times``).
        most_known: Most slices that are known; their number is drawn evenly.
        text_dropout: Probability of training a sample without its text.
        previous_dropout: Probability of training a sample without its previous block.
        length_dropout: Probability of training a sample without its volume's length.
        pair_weight: Weight of the error in which the two samples of a contrast pair differ (``data.pairs``);
            1 weighs it as the rest.
        decoded_share: Share of the loss that counts errors by what the decoder makes of them, in [0, 1): the
            channels that hold the mean HU then weigh more than those that hold grain
            (``training.decoded``). 0: all channels weigh alike.
    """

    path_offset: float = 0.0
    time_distribution: str = "logit_normal"
    time_shift: float = 1.0
    time_spread: float = 1.0
    noise_offset: float = 0.05
    condition_noise: float = 0.05
    known_share: float = 0.0
    most_known: int = 8
    text_dropout: float = 0.1
    previous_dropout: float = 0.1
    length_dropout: float = 0.1
    pair_weight: float = 1.0
    decoded_share: float = 0.0

    def __post_init__(self) -> None:
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            raise ValueError(
                f"time_distribution is one of {TIME_DISTRIBUTIONS}, found {self.time_distribution!r}"
            )
        if not 0 <= self.path_offset < 1 or self.noise_offset < 0 or self.condition_noise < 0:
            raise ValueError(f"path_offset lies in [0, 1) and noise levels are not negative, found {self}")
        if self.time_shift <= 0 or self.time_spread <= 0 or self.pair_weight < 1:
            raise ValueError(
                f"time_shift and time_spread are positive and pair_weight is at least 1, found {self}"
            )
        if not 0 <= self.known_share <= 1 or not 1 <= self.most_known < BLOCK_LENGTH:
            raise ValueError(
                f"known_share lies in [0, 1] and most_known between 1 and {BLOCK_LENGTH - 1}, found "
                f"{self.known_share} and {self.most_known}"
            )
        dropouts = (self.text_dropout, self.previous_dropout, self.length_dropout)
        if not all(0 <= probability < 1 for probability in dropouts):
            raise ValueError(f"text_, previous_ and length_dropout lie in [0, 1), found {dropouts}")
        if not 0 <= self.decoded_share < 1:
            raise ValueError(f"decoded_share lies in [0, 1), found {self.decoded_share}")
