"""Layers of the FMvT: places, patches, attention within a block and to the text, the transformer block."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctflow.config.models import FMvTConfig

TanhGELU = partial(nn.GELU, approximate="tanh")
NORM_EPS = 1e-6


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


def unpatchify(patches: Tensor, rows: int, patch_size: list[int]) -> Tensor:
    """Patches ``[B, t, s, p*q*r*C]`` in ``rows`` rows to latents ``[B, C, t*p, h, w]``."""
    p, q, r = patch_size
    pattern = "b t (h w) (p q r c) -> b c (t p) (h q) (w r)"
    return rearrange(patches, pattern, h=rows, p=p, q=q, r=r)


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


def modulation_rows(config: FMvTConfig) -> int:
    """Shift, scale and gate for each modulated branch."""
    return 6 if config.raw_temporal_branch else 9


class FMvTBlock(nn.Module):
    """Spatial, temporal and cross-attention and an MLP, under adaLN-single (PixArt-α, section 2.3)."""

    def __init__(self, config: FMvTConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.raw_temporal_branch = config.raw_temporal_branch
        self.raw_cross_queries = config.raw_cross_queries
        self.recompute = config.activation_checkpointing
        self.attn = SelfAttention(hidden, config.num_heads, "space", config.scrambled_heads)
        self.cross_attn = CrossAttention(hidden, config.num_heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), act_layer=TanhGELU)
        self.scale_shift_table = nn.Parameter(torch.zeros(modulation_rows(config), hidden))
        self.attn_temp = SelfAttention(hidden, config.num_heads, "time", config.scrambled_heads)

    def forward(
        self, x: Tensor, modulation: Tensor, text: PreparedText, late_embedding: Tensor | None
    ) -> Tensor:
        """One block.

        Args:
            x: Tokens ``[B, T, S, hidden]``.
            modulation: ``[B, T or 1, rows, hidden]``, shared by all blocks.
            text: The text, or this block's projection of it.
            late_embedding: ``[1, T, hidden]`` added to the temporal branch's input, or None.

        Returns:
            Tokens ``[B, T, S, hidden]``.
        """
        if isinstance(text, TextTokens):
            text = self.cross_attn.prepare(text)
        rows = (self.scale_shift_table + modulation)[:, :, :, None]  # [B, T or 1, rows, 1, hidden]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *own = rows.unbind(2)  # [B, T or 1, 1, hidden]

        x = torch.addcmul(x, gate, self.attn(modulate(x, shift, scale)))  # [B, T, S, hidden]

        if self.raw_temporal_branch:
            h = x
        else:
            shift_time, scale_time, gate = own
            h = modulate(x, shift_time, scale_time)
        if late_embedding is not None:
            h = h + late_embedding[:, :, None]
        x = torch.addcmul(x, gate, self.attn_temp(h))  # [B, T, S, hidden]

        h = x if self.raw_cross_queries or text.answer is not None else normalise(x)
        answer = self.cross_attn(h.flatten(1, 2), text)  # [B, T*S or 1, hidden]
        x = x + (answer[:, None] if text.answer is not None else answer.unflatten(1, x.shape[1:3]))

        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))  # [B, T, S, hidden]


def applied(
    block: nn.Module,
    x: Tensor,
    modulation: Tensor,
    text: TextTokens | PreparedText,
    late_embedding: Tensor | None = None,
) -> Tensor:
    """A block's tokens; with ``activation_checkpointing`` a training's backward computes them again."""
    arguments = (x, modulation, text, late_embedding)
    if block.recompute and block.training:
        return checkpoint(block, *arguments, use_reentrant=False)
    return block(*arguments)


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


class LocalHead(nn.Module):
    """Convolutions at the latents' own resolution that correct the transformer's output.

    A token writes its patch alone, so that neighbouring patches and slices agree no better than their tokens
    do, and a token narrower than its patch cannot hold all of it. Here each latent sees its neighbours and
    its own noisy value. The output starts at zero, and blocks start as the identity: a trained network can be
    given this head, and a head can be given blocks or more channels (``widened``).

    Args:
        channels: Channels of a latent.
        width: Channels between the convolutions.
        hidden_size: Width of the time embedding.
        blocks: Residual blocks before the last two convolutions.
    """

    def __init__(self, channels: int, width: int, hidden_size: int, blocks: int = 0) -> None:
        super().__init__()
        self.enter = nn.Conv3d(2 * channels, width, kernel_size=3, padding=1)
        self.modulation = nn.Linear(hidden_size, 2 * width)
        self.middle = nn.Conv3d(width, width, kernel_size=3, padding=1)
        self.proj = nn.Conv3d(width, channels, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(LocalBlock(width, hidden_size, 1 + index % 2) for index in range(blocks))

    def forward(self, z: Tensor, out: Tensor, time: Tensor) -> Tensor:
        """The correction.

        Args:
            z: Noisy block as the network reads it ``[B, C, T, h, w]``.
            out: The transformer's output ``[B, C, T, h, w]``.
            time: ``[B, t or 1, hidden]``, t patches of slices.

        Returns:
            ``[B, C, T, h, w]``, to be added to ``out``.
        """
        time = F.silu(time)
        x = self.enter(torch.cat([z, out.to(z.dtype)], dim=1))  # [B, width, T, h, w]
        x = F.silu(_modulated_volume(x, self.modulation(time)))
        for block in self.blocks:
            x = block(x, time)
        return self.proj(F.silu(self.middle(x)))

    @torch.no_grad()
    def widened(self, width: int) -> LocalHead:
        """A wider head of the same function.

        The old channels hear nothing of the new ones at first; these start as in any new head, and their way
        to the output starts at zero (Net2Net's widening without its copies: Chen et al. 2016, section 2.2).

        Args:
            width: Channels between the convolutions, at least this head's.

        Returns:
            A new head on the same device.

        Raises:
            ValueError: ``width`` is smaller than this head's.
        """
        old = self.enter.out_channels
        if width < old:
            raise ValueError(f"a head of {old} channels cannot become one of {width}")
        channels, hidden_size = self.proj.out_channels, self.modulation.in_features
        wide = LocalHead(channels, width, hidden_size, len(self.blocks)).to(self.enter.weight)
        mine = self.state_dict()
        for name, new in wide.state_dict().items():
            value = mine[name]
            if "modulation" in name:  # shifts, then scales: each half grows by itself
                new, value = new.unflatten(0, (2, width)), value.unflatten(0, (2, old))
                new[:, :old] = value
                continue
            if new.ndim > 1 and new.shape[1] > value.shape[1]:
                new[: len(value), value.shape[1] :] = 0
            new[(slice(len(value)), *[slice(0, n) for n in value.shape[1:]])] = value
            if name.startswith("blocks.") and ".proj." in name:
                new[old:] = 0  # blocks start as the identity for the new channels
        return wide


class LocalBlock(nn.Module):
    """A residual block of two 3×3×3 convolutions, modulated by the time; it starts as the identity.

    Args:
        width: Channels.
        hidden_size: Width of the time embedding.
        dilation: Of the first convolution.
    """

    def __init__(self, width: int, hidden_size: int, dilation: int) -> None:
        super().__init__()
        self.enter = nn.Conv3d(width, width, kernel_size=3, padding=dilation, dilation=dilation)
        self.modulation = nn.Linear(hidden_size, 2 * width)
        self.proj = nn.Conv3d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x [B, width, T, h, w]`` and the block's addition; ``time`` as of ``LocalHead``, after SiLU."""
        return x + self.proj(F.silu(_modulated_volume(self.enter(x), self.modulation(time))))


def _modulated_volume(x: Tensor, rows: Tensor) -> Tensor:
    """``x [B, width, T, h, w]``, scaled and shifted by ``rows [B, t or 1, 2 width]``, t patches of slices."""
    rows = rows.transpose(1, 2)  # [B, 2 width, t or 1]
    if rows.shape[2] > 1:
        rows = rows.repeat_interleave(x.shape[2] // rows.shape[2], dim=2)  # [B, 2 width, T]
    shift, scale = rows[..., None, None].chunk(2, dim=1)  # [B, width, T or 1, 1, 1]
    return torch.addcmul(shift, x, 1 + scale)
