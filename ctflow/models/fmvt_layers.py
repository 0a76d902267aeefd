"""Layers of the FMvT: embeddings, the two attentions and the transformer block."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig

TanhGELU = partial(nn.GELU, approximate="tanh")
NORM_EPS = 1e-6
SINUSOID_DIM = 256


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Sines, then cosines, of ``positions`` at ``dim / 2`` frequencies from 1 to 1/10000.

    Args:
        dim: Even width of the embedding.
        positions: ``[N]``.

    Returns:
        ``[N, dim]`` in float64.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def spatial_embedding(dim: int, rows: int, columns: int, scale: float) -> Tensor:
    """``[1, rows * columns, dim]`` float32: the first half encodes the column, the second the row."""
    row = sincos_1d(dim // 2, torch.arange(rows) / scale)
    column = sincos_1d(dim // 2, torch.arange(columns) / scale)
    both = torch.cat([column.repeat(rows, 1), row.repeat_interleave(columns, 0)], dim=1)
    return both[None].float()


def temporal_embedding(dim: int, length: int, scale: float) -> Tensor:
    """``[1, length, dim]`` float32, over the slices of a block in steps of a patch."""
    return sincos_1d(dim, torch.arange(length) / scale)[None].float()


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
    """A count of slices as a vector, with a learned vector where it is unknown."""

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
    """Text vectors to tokens of the transformer's width, and the vector that stands for "no text".

    ``y_embedding`` is that vector where it is learned; the published models carry an untrained buffer of one
    row per text
    token under this name and never read it.
    """

    y_embedding: Tensor

    def __init__(self, config: FMvTConfig) -> None:
        super().__init__()
        self.normalise = config.normalise_text
        self.y_proj = Mlp(config.text_dim, config.hidden_size, config.hidden_size, act_layer=TanhGELU)
        rows = 1 if config.learned_nulls else config.text_tokens
        null = torch.randn(rows, config.text_dim) / math.sqrt(config.text_dim)
        if config.learned_nulls:
            self.y_embedding = nn.Parameter(null)
        else:
            self.register_buffer("y_embedding", null)

    def null_text(self, batch: int, tokens: int) -> Tensor:
        """The learned vector as ``[batch, tokens, text_dim]``; equal tokens attend as one."""
        return self.y_embedding.expand(batch, tokens, -1)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L, text_dim]`` to ``[B, L, hidden]``."""
        if self.normalise:
            text = F.layer_norm(text, text.shape[-1:], eps=NORM_EPS)
        return self.y_proj(text)


class PatchEmbedder(nn.Module):
    """Non-overlapping patches to tokens: a strided 3D convolution, computed as one matrix product."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: list[int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        size = (patch_size[0], patch_size[1], patch_size[2])
        self.proj = nn.Conv3d(in_channels, hidden_size, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` to ``[B, t, s, hidden]`` with t slice patches and s in-plane patches."""
        p, q, r = self.patch_size
        patches = rearrange(x, "b c (t p) (h q) (w r) -> b t (h w) (c p q r)", p=p, q=q, r=r)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class SelfAttention(nn.Module):
    """Multi-head self-attention over ``N`` tokens.

    Args:
        hidden_size: Width of a token.
        num_heads: Number of heads.
        scrambled_heads: Reproduce the published reshape (see ``FMvTConfig``).
    """

    def __init__(self, hidden_size: int, num_heads: int, scrambled_heads: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scrambled_heads = scrambled_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, hidden]`` to ``[B, N, hidden]``."""
        q, k, v = rearrange(
            self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.num_heads
        )
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, d]
        merged = (
            out.reshape(x.shape) if self.scrambled_heads else rearrange(out, "b heads n d -> b n (heads d)")
        )
        return self.proj(merged)


class PreparedText(NamedTuple):
    """What one block's cross-attention needs of the text, the same at every step of the flow.

    Attributes:
        answer: ``[B, 1, hidden]``, the layer's whole output where the text is one token; else None.
        keys: ``[B, heads, L, d]``; None where ``answer`` is set.
        values: ``[B, heads, L, d]``; None where ``answer`` is set.
        mask: ``[B, L]`` bool, True where a token counts; None: all count.
        present: ``[B, 1, 1]``, 0 for samples whose cross-attention is left out, else 1; None: all are
            present.
    """

    answer: Tensor | None
    keys: Tensor | None = None
    values: Tensor | None = None
    mask: Tensor | None = None
    present: Tensor | None = None


class CrossAttention(nn.Module):
    """Attention from latent tokens to text tokens."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def prepare(
        self, text: Tensor, mask: Tensor | None = None, present: Tensor | None = None
    ) -> PreparedText:
        """Project ``text [B, L, hidden]`` once; ``mask`` and ``present`` as in ``PreparedText``.

        With one token the softmax is over a single score, so every query's answer is ``proj(v)`` exactly.
        """
        if text.shape[1] == 1:
            hidden = text.shape[2]
            value = F.linear(
                text, self.kv_linear.weight[hidden:], self.kv_linear.bias[hidden:]
            )  # [B, 1, hidden]
            answer = self.proj(value)  # [B, 1, hidden]
            return PreparedText(answer if present is None else answer * present)
        keys, values = self.keys_values(text)
        return PreparedText(None, keys, values, mask, present)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, L, hidden]`` to keys and values, each ``[B, heads, L, d]``."""
        pattern = "b l (two heads d) -> two b heads l d"
        keys, values = rearrange(self.kv_linear(text), pattern, two=2, heads=self.num_heads)
        return keys, values

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The general path: ``x [B, N, hidden]``, ``mask [B, L]`` (True: attend) to ``[B, N, hidden]``."""
        q = rearrange(self.q_linear(x), "b n (heads d) -> b heads n d", heads=self.num_heads)
        allowed = None if mask is None else mask[:, None, None, :]  # [B, 1, 1, L]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)  # [B, heads, N, d]
        return self.proj(rearrange(out, "b heads n d -> b n (heads d)"))

    def forward(self, x: Tensor, text: PreparedText) -> Tensor:
        """``[B, N, hidden]`` to ``[B, N, hidden]``, or ``[B, 1, hidden]``, one answer for all queries."""
        if text.answer is not None:
            return text.answer
        assert text.keys is not None and text.values is not None
        out = self.attend(x, text.keys, text.values, text.mask)  # [B, N, hidden]
        return out if text.present is None else out * text.present


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, without affine parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x [B, T, S, hidden]`` normalised, then scaled and shifted by ``[B, 1, 1, hidden]``."""
    return torch.addcmul(shift, normalise(x), 1 + scale)


class FMvTBlock(nn.Module):
    """Spatial, temporal and cross-attention and an MLP, under adaLN-single (PixArt-α, section 2.3)."""

    def __init__(self, config: FMvTConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.raw_temporal_branch = config.raw_temporal_branch
        self.raw_cross_queries = config.raw_cross_queries
        self.attn = SelfAttention(hidden, config.num_heads, config.scrambled_heads)
        self.cross_attn = CrossAttention(hidden, config.num_heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), act_layer=TanhGELU)
        self.scale_shift_table = nn.Parameter(torch.zeros(modulation_rows(config), hidden))
        self.attn_temp = SelfAttention(hidden, config.num_heads, config.scrambled_heads)

    def forward(
        self, x: Tensor, modulation: Tensor, text: PreparedText, late_embedding: Tensor | None
    ) -> Tensor:
        """One block.

        Args:
            x: Tokens ``[B, T, S, hidden]``.
            modulation: ``[B, rows, hidden]``, shared by all blocks.
            text: This block's projected text.
            late_embedding: ``[1, T, hidden]`` added to the temporal branch's input, or None.

        Returns:
            Tokens ``[B, T, S, hidden]``.
        """
        batch, slices, places, _ = x.shape
        rows = (self.scale_shift_table + modulation)[:, :, None, None]  # [B, rows, 1, 1, hidden]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *own = rows.unbind(1)  # each [B, 1, 1, hidden]

        h = rearrange(modulate(x, shift, scale), "b t s c -> (b t) s c")
        x = x + gate * rearrange(self.attn(h), "(b t) s c -> b t s c", b=batch)  # [B, T, S, hidden]

        if self.raw_temporal_branch:
            h = x
        else:
            shift_time, scale_time, gate = own
            h = modulate(x, shift_time, scale_time)
        h = rearrange(h, "b t s c -> (b s) t c")
        if late_embedding is not None:
            h = h + late_embedding
        x = x + gate * rearrange(self.attn_temp(h), "(b s) t c -> b t s c", b=batch)  # [B, T, S, hidden]

        h = x if self.raw_cross_queries or text.answer is not None else normalise(x)
        answer = self.cross_attn(rearrange(h, "b t s c -> b (t s) c"), text)  # [B, T*S or 1, hidden]
        x = x + (answer[:, None] if text.answer is not None else answer.view(batch, slices, places, -1))

        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))  # [B, T, S, hidden]


class FinalLayer(nn.Module):
    """Tokens to patches of velocity."""

    def __init__(self, hidden_size: int, patch_values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_values)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden_size))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, T, S, hidden]`` and ``time [B, hidden]`` to ``[B, T, S, patch_values]``."""
        rows = (self.scale_shift_table + time[:, None])[:, :, None, None]  # [B, 2, 1, 1, hidden]
        shift, scale = rows.unbind(1)
        return self.linear(modulate(x, shift, scale))


def modulation_rows(config: FMvTConfig) -> int:
    """Shift, scale and gate for each modulated branch."""
    return 6 if config.raw_temporal_branch else 9
