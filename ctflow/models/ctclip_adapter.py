"""A small residual network over the hidden states of a frozen text tower."""

from __future__ import annotations

from torch import Tensor, nn

HEADS, LAYERS = 4, 2


class TokenAdapter(nn.Module):
    """Adds to every hidden state what a narrow transformer reads from all of them; begins as the identity.

    Args:
        dim: Width of the hidden states.
        width: Width of the transformer, a multiple of 4.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, HEADS, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, L, dim]`` and mask ``[B, L]``, 1 where a token stands, to states of the same shape."""
        x = self.down(self.norm(tokens))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        return tokens + self.up(x)
