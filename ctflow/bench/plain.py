"""The published transformer as plainly as it can be written: what the FMvT's speed is measured against.

Written from the published facts alone, no fused kernel and no shortcut. ``tests/models`` holds these
functions to the recorded fixtures, then the package to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def linear(s: State, name: str, x: Tensor) -> Tensor:
    """``x Wᵀ + b`` over the last axis; without b where there is none."""
    y = x @ s[f"{name}.weight"].T
    return y + s[f"{name}.bias"] if f"{name}.bias" in s else y


def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm over the last axis without gain and shift."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """``x σ(x)``."""
    return x * torch.sigmoid(x)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Attention with its weights written out."""
    return torch.softmax(q @ k.transpose(-1, -2) * scale + bias, -1) @ v


def _self_attention(s: State, name: str, x: Tensor, heads: int) -> Tensor:
    n, tokens, width = x.shape
    qkv = linear(s, f"{name}.qkv", x).reshape(n, tokens, 3, heads, -1)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    out = softmax_attention(q, k, v, q.shape[-1] ** -0.5).contiguous()
    return linear(s, f"{name}.proj", out.reshape(n, tokens, width))  # the heads stay where they are


def _cross_attention(s: State, name: str, x: Tensor, texts: Sequence[Tensor], heads: int) -> Tensor:
    rows = []
    for tokens, text in zip(x, texts, strict=True):
        q = linear(s, f"{name}.q_linear", tokens).reshape(len(tokens), heads, -1).transpose(0, 1)
        kv = linear(s, f"{name}.kv_linear", text).reshape(len(text), 2, heads, -1).permute(1, 2, 0, 3)
        out = softmax_attention(q, kv[0], kv[1], q.shape[-1] ** -0.5)
        rows.append(linear(s, f"{name}.proj", out.transpose(0, 1).reshape(tokens.shape)))
    return torch.stack(rows)


def transformer(
    config: Mapping[str, Any],
    state: State,
    x: Tensor,
    t: Tensor | float,
    text: Tensor | None,
    previous: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Velocity by the published transformer.

    Args:
        config: As in its folder's ``config.json``.
        state: As in its folder's weights.
        x: Noisy block ``[B, C, T, h, w]``.
        t: Flow time, one or ``[B]``.
        text: Text vectors ``[B, L, D]``, or None.
        previous: Previous block ``[B, C, T, h, w]``.
        mask: ``[B, L]``, not 0 where a token counts.

    Returns:
        ``[B, C, T, h, w]``.
    """
    s = {key.removeprefix("model."): value for key, value in state.items()}
    batch, width, heads = len(x), config["hidden_size"], config["num_heads"]
    p, q, r = config["patch_size"]
    slices, rows, columns = x.shape[2] // p, x.shape[3] // q, x.shape[4] // r
    places = rows * columns
    weight, bias = s["x_embedder.proj.weight"], s["x_embedder.proj.bias"]
    h = F.conv3d(torch.cat([x, previous], 1), weight, bias, stride=(p, q, r)).flatten(2).transpose(1, 2)
    h = (h.reshape(batch, slices, places, width) + s["pos_embed"]).reshape(batch, -1, width)
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=x.device) / 128)
    times = torch.as_tensor(t, dtype=torch.float32, device=x.device)
    angles = times.expand(batch)[:, None] * frequencies
    time = torch.cat([angles.cos(), angles.sin()], 1)
    time = linear(s, "t_embedder.mlp.2", silu(linear(s, "t_embedder.mlp.0", time)))
    modulation = linear(s, "t_block.1", silu(time)).reshape(batch, 6, width)
    texts = None
    if text is not None:
        y = linear(s, "y_embedder.y_proj.fc2", tanh_gelu(linear(s, "y_embedder.y_proj.fc1", text)))
        texts = [y[b] if mask is None else y[b][mask[b] != 0] for b in range(batch)]
    for i in range(config["depth"]):
        block = f"blocks.{i}"
        parts = [m[:, None] for m in (s[f"{block}.scale_shift_table"] + modulation).unbind(1)]
        a = (norm(h) * (1 + parts[1]) + parts[0]).reshape(batch * slices, places, width)
        h = h + parts[2] * _self_attention(s, f"{block}.attn", a, heads).reshape(h.shape)
        a = h.reshape(batch, slices, places, width).transpose(1, 2).reshape(-1, slices, width)
        a = a + s["pos_embed_temporal"] if i == 0 else a
        a = _self_attention(s, f"{block}.attn_temp", a, heads).reshape(batch, places, slices, width)
        h = h + parts[2] * a.transpose(1, 2).reshape(h.shape)
        if texts is not None:
            h = h + _cross_attention(s, f"{block}.cross_attn", h, texts, heads)
        a = linear(s, f"{block}.mlp.fc1", norm(h) * (1 + parts[4]) + parts[3])
        h = h + parts[5] * linear(s, f"{block}.mlp.fc2", tanh_gelu(a))
    shift, scale = (s["final_layer.scale_shift_table"] + time[:, None]).unbind(1)
    h = linear(s, "final_layer.linear", norm(h) * (1 + scale[:, None]) + shift[:, None])
    h = h.reshape(batch, slices, rows, columns, p, q, r, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return h.reshape(batch, -1, *x.shape[2:])
