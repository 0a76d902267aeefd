"""CT-CLIP's volume tower: factorised attention over a CT, then vector quantisation.

Built from the key listing of the published weights and from the papers it rests on: Phenaki's C-ViViT
(arXiv:2210.02399), cosine-normalised attention with learned scales, gated feed-forwards (arXiv:2002.05202),
continuous position bias (arXiv:2111.09883) and convolutional positions (arXiv:2102.10882).

Shapes: B volumes, T slabs of slices, h × w patches, D token width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ctflow.config.encoders import CTViTConfig

ATTENTION_SCALE = 8.0
"""Queries and keys have unit norm times learned scales; this replaces 1/sqrt(d)."""


class UnbiasedNorm(nn.Module):
    """Layer norm with a learned gain; the shift is a constant buffer, as the published weights store it."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; shape kept."""
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class ConvolutionalPosition(nn.Module):
    """Position from a depth-wise 3D convolution over the token grid, looking back only along the slabs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, kernel_size=3, groups=dim)

    def forward(self, grid: Tensor) -> Tensor:
        """``[B, T, h, w, D]`` to the same shape."""
        x = rearrange(grid, "b t h w d -> b d t h w")
        x = self.conv(F.pad(x, (1, 1, 1, 1, 2, 0)))
        return rearrange(x, "b d t h w -> b t h w d")


class CosineAttention(nn.Module):
    """Self-attention on unit-norm queries and keys; keys and values see the un-normalised input."""

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__()
        inner = config.dim_head * config.heads
        self.heads = config.heads
        self.norm = UnbiasedNorm(config.dim)
        self.to_q = nn.Linear(config.dim, inner, bias=False)
        self.to_kv = nn.Linear(config.dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.dim_head))
        self.k_scale = nn.Parameter(torch.ones(config.dim_head))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``[n, tokens, D]`` and a bias ``[heads, tokens, tokens]`` to ``[n, tokens, D]``."""
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (rearrange(y, "n i (a d) -> n a i d", a=self.heads) for y in (q, k, v))
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=ATTENTION_SCALE)
        return self.to_out(rearrange(out, "n a i d -> n i (a d)"))


class GatedFeedForward(nn.Module):
    """Layer norm, linear, GELU gate, linear; the inner width is 2/3 of four times the token's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = int(4 * (2 / 3) * dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to the same shape."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class Layer(nn.Module):
    """Position, attention, feed-forward, each added to its input."""

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__()
        self.position = ConvolutionalPosition(config.dim)
        self.attention = CosineAttention(config)
        self.feed_forward = GatedFeedForward(config.dim)


class SpatialTransformer(nn.Module):
    """Layers whose tokens attend within their slab."""

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.spatial_depth))
        self.norm_out = UnbiasedNorm(config.dim)

    def forward(self, grid: Tensor, bias: Tensor) -> Tensor:
        """``[B, T, h, w, D]`` and a bias ``[heads, h·w, h·w]`` to ``[B, T, h, w, D]``."""
        batch, slabs, height, width, _ = grid.shape
        for layer in self.layers:
            assert isinstance(layer, Layer)
            grid = grid + layer.position(grid)
            x = rearrange(grid, "b t h w d -> (b t) (h w) d")
            x = x + layer.attention(x, bias)
            x = x + layer.feed_forward(x)
            grid = x.view(batch, slabs, height, width, -1)
        return self.norm_out(grid)


class TemporalTransformer(nn.Module):
    """Layers whose tokens attend along the slabs at their place in the plane."""

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__()
        self.raw_reshape = config.raw_temporal_reshape
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.temporal_depth))
        self.norm_out = UnbiasedNorm(config.dim)

    def forward(self, grid: Tensor) -> Tensor:
        """``[B, T, h, w, D]`` to the same shape."""
        batch, slabs, height, width, _ = grid.shape
        x = rearrange(grid, "b t h w d -> (b h w) t d")
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if self.raw_reshape:  # axes are reinterpreted, not moved: the published weights know only this
                x = x + layer.position(x.reshape(batch, slabs, height, width, -1)).reshape(x.shape)
            else:
                grid = rearrange(x, "(b h w) t d -> b t h w d", h=height, w=width)
                x = x + rearrange(layer.position(grid), "b t h w d -> (b h w) t d")
            x = x + layer.attention(x, None)
            x = x + layer.feed_forward(x)
        x = self.norm_out(x)
        return rearrange(x, "(b h w) t d -> b t h w d", h=height, w=width)


class PlanePositionBias(nn.Module):
    """Attention bias from the logarithm of the distance between two places in the plane."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(2, dim), nn.Linear(dim, dim)])
        self.out = nn.Linear(dim, heads)

    def forward(self, height: int, width: int) -> Tensor:
        """Bias ``[heads, h·w, h·w]`` added to the logits."""
        axes = [torch.arange(n, device=self.out.weight.device) for n in (height, width)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 2)  # [h·w, 2]
        offset = (places[:, None] - places[None, :]).to(self.out.weight.dtype)  # [h·w, h·w, 2]
        x = torch.sign(offset) * torch.log(offset.abs() + 1)
        for linear in self.hidden:
            x = F.leaky_relu(linear(x), 0.1)
        return rearrange(self.out(x), "i j a -> a i j")


class Quantized(NamedTuple):
    """Output of the codebook for tokens.

    Attributes:
        tokens: ``[..., D]``, the nearest codes; gradients pass straight through to the input.
        indices: ``[...]``, which codes.
        commitment: Scalar, mean squared distance of the unit-norm input from its codes.
    """

    tokens: Tensor
    indices: Tensor
    commitment: Tensor


class CosineQuantizer(nn.Module):
    """Nearest code by cosine; in training, the codes follow their tokens by a moving average."""

    codes: Tensor

    def __init__(self, dim: int, size: int, decay: float = 0.8) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", F.normalize(torch.randn(size, dim), dim=-1))

    def forward(self, tokens: Tensor) -> Quantized:
        """Quantise ``[..., D]``; the result has unit norm."""
        unit = F.normalize(tokens.float(), dim=-1)
        indices = (unit @ self.codes.T).argmax(dim=-1)
        chosen = self.codes[indices]
        commitment = F.mse_loss(unit, chosen)
        if self.training:
            self._follow(unit.detach().flatten(0, -2), indices.flatten())
        return Quantized(unit + (chosen - unit).detach(), indices, commitment)

    @torch.no_grad()
    def _follow(self, unit: Tensor, indices: Tensor) -> None:
        total = torch.zeros_like(self.codes).index_add_(0, indices, unit)
        used = torch.bincount(indices, minlength=len(self.codes)) > 0
        moved = self.codes.lerp(F.normalize(total, dim=-1), 1.0 - self.decay)
        # a new tensor, since autograd still holds the codes that were chosen
        self.codes = F.normalize(torch.where(used[:, None], moved, self.codes), dim=-1)


class CTViTOutput(NamedTuple):
    """Tokens of a volume.

    Attributes:
        tokens: ``[B, T, h, w, D]``, quantised where the configuration says so.
        continuous: ``[B, T, h, w, D]`` before the quantiser.
        indices: ``[B, T, h, w]`` codes, or None without a quantiser.
        commitment: Scalar, 0 without a quantiser.
    """

    tokens: Tensor
    continuous: Tensor
    indices: Tensor | None
    commitment: Tensor


class CTViT(nn.Module):
    """Patches of a volume to tokens.

    Args:
        config: See ``CTViTConfig``.
    """

    def __init__(self, config: CTViTConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.temporal_patch_size * config.patch_size**2
        self.to_tokens = nn.Sequential(
            nn.LayerNorm(patch), nn.Linear(patch, config.dim), nn.LayerNorm(config.dim)
        )
        self.position_bias = PlanePositionBias(config.dim, config.heads)
        self.spatial = SpatialTransformer(config)
        self.temporal = TemporalTransformer(config)
        self.quantizer = CosineQuantizer(config.dim, config.codebook_size) if config.quantize else None

    def forward(self, volume: Tensor) -> CTViTOutput:
        """Encode ``[B, 1, slices, rows, columns]`` in [-1, 1]."""
        side = self.config.patch_size
        patches = rearrange(
            volume,
            "b c (t s) (h p) (w q) -> b t h w (c s p q)",
            s=self.config.temporal_patch_size,
            p=side,
            q=side,
        )
        grid = self.to_tokens(patches)  # [B, T, h, w, D]
        grid = self.spatial(grid, self.position_bias(*grid.shape[2:4]))
        grid = self.temporal(grid)
        if self.quantizer is None:
            return CTViTOutput(grid, grid, None, grid.new_zeros(()))
        quantized = self.quantizer(grid)
        return CTViTOutput(quantized.tokens, grid, quantized.indices, quantized.commitment)
