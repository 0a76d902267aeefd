"""The FMvT's transformer block."""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig
from ctflow.models.fmvt_layers import SelfAttention, TanhGELU, modulate, normalise
from ctflow.models.fmvt_text import CrossAttention, PreparedText, TextTokens


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
