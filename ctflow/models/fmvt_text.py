"""The FMvT's side of the text: caption embedding, cross-attention, "no text", encoded reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig
from ctflow.models.fmvt_layers import NORM_EPS, TanhGELU, attention


class TextTokens(NamedTuple):
    """A batch of reports at the transformer's width.

    Attributes:
        tokens: ``[B, L, hidden]``.
        mask: ``[B, L]`` bool, True where a token counts; None: all count.
        present: ``[B, 1, 1]``, 0 for samples whose cross-attention is left out, else 1; None: all are
            present.
    """

    tokens: Tensor
    mask: Tensor | None = None
    present: Tensor | None = None

    def summary(self) -> Tensor:
        """The mean token of each report, ``[B, hidden]``."""
        if self.mask is None:
            return self.tokens.mean(dim=1)
        weight = self.mask.to(self.tokens.dtype)[:, :, None]  # [B, L, 1]
        return (self.tokens * weight).sum(dim=1) / weight.sum(dim=1)


class PreparedText(NamedTuple):
    """What one block's cross-attention needs of the text, the same at every step of the flow.

    Attributes:
        answer: ``[B, 1, hidden]``, the layer's whole output where the text is one token; else None.
        keys: ``[B, heads, L, d]``; None where ``answer`` is set.
        values: ``[B, heads, L, d]``; None where ``answer`` is set.
        mask: As in ``TextTokens``.
        present: As in ``TextTokens``.
    """

    answer: Tensor | None
    keys: Tensor | None = None
    values: Tensor | None = None
    mask: Tensor | None = None
    present: Tensor | None = None


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


class CrossAttention(nn.Module):
    """Attention from latent tokens to text tokens."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def prepare(self, text: TextTokens) -> PreparedText:
        """Project the text once for all steps of the flow.

        With one token the softmax is over a single score, so every query's answer is ``proj(v)`` exactly.
        """
        tokens, mask, present = text
        if tokens.shape[1] > 1:
            return PreparedText(None, *self.keys_values(tokens), mask, present)
        hidden = tokens.shape[2]
        value = F.linear(
            tokens, self.kv_linear.weight[hidden:], self.kv_linear.bias[hidden:]
        )  # [B, 1, hidden]
        answer = self.proj(value)  # [B, 1, hidden]
        return PreparedText(answer if present is None else answer * present)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, L, hidden]`` to keys and values, each ``[B, heads, L, d]``."""
        both = self.kv_linear(tokens).unflatten(2, (2, self.num_heads, -1))  # [B, L, 2, heads, d]
        keys, values = both.transpose(1, 3).unbind(2)
        return keys, values

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The general path: ``x [B, N, hidden]``, ``mask [B, L]`` (True: attend) to ``[B, N, hidden]``."""
        q = self.q_linear(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        allowed = None if mask is None else mask[:, None, None, :]  # [B, 1, 1, L]
        out = attention(q, keys, values, allowed)  # [B, heads, N, d]
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, text: PreparedText) -> Tensor:
        """``[B, N, hidden]`` to ``[B, N, hidden]``, or to ``[B, 1, hidden]``: one answer for all queries."""
        if text.answer is not None:
            return text.answer
        assert text.keys is not None and text.values is not None
        out = self.attend(x, text.keys, text.values, text.mask)  # [B, N, hidden]
        return out if text.present is None else out * text.present


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
            # Equal tokens attend as one, so the one learned vector stands in every place.
            text = torch.where(drop[:, None, None], self.y_embedding, text)  # [B, L, text_dim]
        elif drop is not None:
            present = (~drop).to(text.dtype)[:, None, None]  # [B, 1, 1]
        if self.normalise:
            text = F.layer_norm(text, text.shape[-1:], eps=NORM_EPS)
        return TextTokens(self.y_proj(text), mask if text.shape[1] > 1 else None, present)  # [B, L, hidden]
