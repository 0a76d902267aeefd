"""The conditions of a block as one bundle, and the layers that embed them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig
from ctflow.models.fmvt_layers import NORM_EPS, PreparedText, TanhGELU, TextTokens

SINUSOID_DIM = 256


@dataclass(frozen=True)
class TextCondition:
    """A batch of reports, encoded once for all steps of the flow.

    Attributes:
        summary: ``[B, hidden]``, the mean text token.
        blocks: Each transformer block's projection of the text.
    """

    summary: Tensor
    blocks: tuple[PreparedText, ...]

    @property
    def batch(self) -> int:
        """Number of reports."""
        return self.summary.shape[0]

    def select(self, index: Tensor) -> TextCondition:
        """The reports at ``index`` (positions in the batch; repeats allowed)."""

        def take(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[index]

        blocks = tuple(PreparedText(*map(take, block)) for block in self.blocks)
        return TextCondition(self.summary[index], blocks)


@dataclass(frozen=True)
class Conditions:
    """The conditions of the FMvT for a batch of B blocks of T slices.

    Attributes:
        text: Reports ``[B, L, text_dim]``, an ``FMvT.encode_text`` result, or None: no text.
        previous: The 16 slices before each block ``[B, C, T, h, w]``, whitened; None: no previous block.
        text_mask: ``[B, L]``, non-zero where a token counts; only with a text tensor. A row without any token
            is "no text"; None: all tokens count.
        known: ``[B, T]`` bool, True where the noisy block holds a clean slice that is given (t = 0 there);
            None: none is given.
        position: ``[B]`` index of the block's first slice from the inferior end; NaN or None: unknown.
        length: ``[B]`` number of slices of the volume; NaN or None: unknown.
        spacing: ``[B, 3]`` millimetres between slices, rows and columns; NaN or None: unknown.
        previous_noise: ``[B]`` standard deviation of the noise in ``previous``; None: none.
        without_previous: ``[B]`` bool, True: as if without previous block; None: all have theirs.
    """

    text: Tensor | TextCondition | None = None
    previous: Tensor | None = None
    text_mask: Tensor | None = None
    known: Tensor | None = None
    position: Tensor | None = None
    length: Tensor | None = None
    spacing: Tensor | None = None
    previous_noise: Tensor | None = None
    without_previous: Tensor | None = None

    def dropped(
        self, text: Tensor | None = None, previous: Tensor | None = None, length: Tensor | None = None
    ) -> Conditions:
        """The same bundle with conditions taken away from some samples, as training does.

        Args:
            text: ``[B]`` bool, True: no text; needs a text tensor.
            previous: ``[B]`` bool, True: no previous block.
            length: ``[B]`` bool, True: unknown length.
        """
        changed: dict[str, Tensor] = {}
        if text is not None:
            assert isinstance(self.text, Tensor)
            mask = self.text_mask
            if mask is None:
                mask = torch.ones(self.text.shape[:2], dtype=torch.bool, device=self.text.device)
            changed["text_mask"] = mask.bool() & ~text[:, None]
        if previous is not None:
            changed["without_previous"] = previous
        if length is not None and self.length is not None:
            changed["length"] = self.length.float().masked_fill(length, torch.nan)
        return replace(self, **changed)

    def select(self, index: Tensor) -> Conditions:
        """The samples at ``index`` (positions in the batch; repeats allowed)."""

        def take(part: Tensor | TextCondition | None) -> Tensor | TextCondition | None:
            return (
                part.select(index)
                if isinstance(part, TextCondition)
                else part
                if part is None
                else part[index]
            )

        return Conditions(**{f.name: take(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]


def sinusoid(values: Tensor, dim: int = SINUSOID_DIM) -> Tensor:
    """Cosines, then sines, of ``values [B]`` at frequencies 1 to nearly 1/10000: ``[B, dim]`` float32."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedder(nn.Module):
    """The flow time in [0, 1] as a vector: sinusoid, then a two-layer MLP."""

    def __init__(self, hidden_size: int, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.mlp = nn.Sequential(
            nn.Linear(SINUSOID_DIM, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        """``[B]`` to ``[B, hidden]``."""
        return self.mlp(sinusoid(t * self.multiplier))


class NumberEmbedder(nn.Module):
    """A number of the order of 1 to 1000 (slices, mm) as a vector; a learned one where it is unknown."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(SINUSOID_DIM, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.unknown = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, values: Tensor) -> Tensor:
        """``[B]``, NaN where unknown, to ``[B, hidden]``."""
        known = ~values.isnan()
        return torch.where(known[:, None], self.mlp(sinusoid(values.nan_to_num())), self.unknown)


class CaptionEmbedder(nn.Module):
    """Text vectors to tokens of the transformer's width.

    ``y_embedding`` is the learned "no text". The published models carry an untrained buffer of one row per
    text token under this name and never read it: without text they leave out cross-attention.
    """

    y_embedding: Tensor

    def __init__(self, config: FMvTConfig) -> None:
        super().__init__()
        self.text_dim = config.text_dim
        self.normalise = config.normalise_text
        self.learned_null = config.learned_nulls
        self.y_proj = Mlp(config.text_dim, config.hidden_size, config.hidden_size, act_layer=TanhGELU)
        rows = 1 if config.learned_nulls else config.text_tokens
        null = torch.randn(rows, config.text_dim) / math.sqrt(config.text_dim)
        if config.learned_nulls:
            self.y_embedding = nn.Parameter(null)
        else:
            self.register_buffer("y_embedding", null)

    def forward(self, text: Tensor | None, mask: Tensor | None = None, batch: int = 1) -> TextTokens:
        """Read a batch of reports; arguments as in ``FMvT.encode_text``."""
        drop = None
        if text is None:
            text = self.y_embedding.new_zeros(batch, 1, self.text_dim)
            mask, drop = None, torch.ones(batch, dtype=torch.bool, device=text.device)
        if text.ndim != 3 or text.shape[2] != self.text_dim:
            raise ValueError(f"text must be [B, L, {self.text_dim}], found {list(text.shape)}")
        if mask is not None:
            if mask.shape != text.shape[:2]:
                raise ValueError(
                    f"text_mask must be [B, L] = {list(text.shape[:2])}, found {list(mask.shape)}"
                )
            mask = mask.to(device=text.device, dtype=torch.bool)
            drop = ~mask.any(dim=1)  # [B]
            mask = mask | drop[:, None]  # a softmax over nothing would be NaN
        present = None
        if drop is not None and self.learned_null:
            # Equal tokens attend as one, so the one learned vector fills every place.
            text = torch.where(drop[:, None, None], self.y_embedding, text)  # [B, L, text_dim]
        elif drop is not None:
            present = (~drop).to(text.dtype)[:, None, None]  # [B, 1, 1]
        if self.normalise:
            text = F.layer_norm(text, text.shape[-1:], eps=NORM_EPS)
        return TextTokens(self.y_proj(text), mask if text.shape[1] > 1 else None, present)  # [B, L, hidden]
