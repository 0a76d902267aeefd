"""Layers of the FMvT: embeddings, self-attention, modulation and the output layer."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention.

    The fused kernel's bfloat16 backward on a CPU takes three to five times as long as plain matrix products
    at an FMvT's short sequences (docs/model.md), so training there takes the products.

    Args:
        q: Queries ``[B, heads, N, d]``.
        k: Keys ``[B, heads, L, d]``.
        v: Values ``[B, heads, L, d]``.
        mask: Bool, broadcastable to ``[B, heads, N, L]``, True where attention is allowed.

    Returns:
        ``[B, heads, N, d]``.
    """
    if not (q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q.contiguous() @ k.contiguous().transpose(-2, -1) * q.shape[-1] ** -0.5  # [B, heads, N, L]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v.contiguous()


class SelfAttention(nn.Module):
    """Multi-head self-attention among the places of a slice, or among the slices of a place.

    Args:
        hidden_size: Width of a token.
        num_heads: Number of heads.
        axis: ``space`` or ``time``: what attends to each other.
        scrambled_heads: Reproduce the published reshape (see ``FMvTConfig``).
    """

    def __init__(self, hidden_size: int, num_heads: int, axis: str, scrambled_heads: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scrambled_heads = scrambled_heads
        self.group, self.sequence = {"space": ("(b t)", "s"), "time": ("(b s)", "t")}[axis]
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, S, hidden]`` to ``[B, T, S, hidden]``; below, G groups of N tokens."""
        group, sequence, batch = self.group, self.sequence, x.shape[0]
        split = f"b t s (three heads d) -> three {group} heads {sequence} d"
        q, k, v = rearrange(self.qkv(x), split, three=3, heads=self.num_heads)  # [G, heads, N, d] each
        out = attention(q, k, v)  # [G, heads, N, d]
        if self.scrambled_heads:
            merged = out.reshape(out.shape[0], out.shape[2], -1)  # [G, N, hidden]
            merged = rearrange(merged, f"{group} {sequence} c -> b t s c", b=batch)  # [B, T, S, hidden]
        else:
            merged = rearrange(
                out, f"{group} heads {sequence} d -> b t s (heads d)", b=batch
            )  # [B, T, S, hidden]
        return self.proj(merged)


class TextAtPlaces(nn.Module):
    """A report's summary times the token's place: what "on the right" means for a token, before any
    attention.

    One modulation for all places cannot express this product. The output starts at zero.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.report = nn.Linear(hidden_size, hidden_size)
        self.place = nn.Linear(hidden_size, hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, summary: Tensor, places: Tensor) -> Tensor:
        """``summary [B, hidden]`` and ``places [1, T, S, hidden]`` to ``[B, T, S, hidden]``."""
        return self.proj(self.report(summary)[:, None, None] * self.place(places))


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, without affine parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x [B, T, S, hidden]`` normalised, then scaled and shifted by ``[B, T or 1, 1, hidden]``."""
    return torch.addcmul(shift, normalise(x), 1 + scale)


class FinalLayer(nn.Module):
    """Tokens to patches of velocity."""

    def __init__(self, hidden_size: int, patch_values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_values)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, hidden_size))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, T, S, hidden]`` and ``time [B, T or 1, hidden]`` to ``[B, T, S, patch_values]``."""
        rows = (self.scale_shift_table + time[:, :, None])[:, :, :, None]  # [B, T or 1, 2, 1, hidden]
        shift, scale = rows.unbind(2)
        return self.linear(modulate(x, shift, scale))
