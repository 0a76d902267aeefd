"""The FMvT's fine stage: a second transformer over smaller patches corrects the first one's output."""

from __future__ import annotations

import math
from dataclasses import replace

from einops import rearrange
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig
from ctflow.models.fmvt_layers import (
    FinalLayer,
    FMvTBlock,
    PatchEmbedder,
    PreparedText,
    TextTokens,
    applied,
    modulation_rows,
    unpatchify,
)


def fine_config(config: FMvTConfig) -> FMvTConfig:
    """The fine stage's architecture: half the rows and columns of a patch, heads as wide as the others."""
    slices, rows, columns = config.patch_size
    return replace(
        config,
        patch_size=[slices, rows // 2, columns // 2],
        hidden_size=config.fine_size,
        num_heads=config.fine_size * config.num_heads // config.hidden_size,
        depth=config.fine_depth,
        fine_size=0,
        fine_depth=0,
    )


class FineStage(nn.Module):
    """Transformer blocks over a quarter of each patch (Crowson et al. 2024, Hourglass Diffusion Transformer).

    What is smaller than a patch of the first transformer does not fit through its tokens. Here each of them
    becomes four, which read their own part of the noisy block and of the output so far beside it. Positions
    come with the first transformer's tokens. The output starts at zero: a trained network can be given this
    stage.

    Shapes: B samples, T slice patches, S places of the first transformer, 4 S places here; h rows and w
    columns of latents.

    Args:
        config: Architecture of the whole network.
        channels: Channels of what it reads: the first transformer's input and the output so far.
    """

    def __init__(self, config: FMvTConfig, channels: int) -> None:
        super().__init__()
        own = fine_config(config)
        width = own.hidden_size
        self.patch_size = own.patch_size
        self.x_embedder = PatchEmbedder(channels, width, own.patch_size)
        self.from_coarse = nn.Linear(config.hidden_size, 4 * width)
        self.from_text = nn.Linear(config.hidden_size, width)
        self.from_time = nn.Linear(config.hidden_size, width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, modulation_rows(config) * width))
        self.blocks = nn.ModuleList(FMvTBlock(own) for _ in range(own.depth))
        self.final_layer = FinalLayer(width, config.latent_channels * math.prod(own.patch_size))

    def read(self, text: TextTokens) -> TextTokens:
        """The reports at this stage's width, as its blocks read them."""
        return text._replace(tokens=self.from_text(text.tokens))

    def forward(
        self,
        inputs: Tensor,
        coarse: Tensor,
        time: Tensor,
        texts: tuple[TextTokens | PreparedText, ...],
        grid: tuple[int, int, int],
    ) -> Tensor:
        """The correction.

        Args:
            inputs: What the first transformer reads, and the output so far ``[B, channels, T·p, h, w]``.
            coarse: The first transformer's tokens after the last block ``[B, T, S, hidden]``.
            time: Its modulators ``[B, T or 1, hidden]``.
            texts: The text, or each block's projection of it.
            grid: Slices, rows and columns of its patches; S = rows · columns.

        Returns:
            ``[B, C, T·p, h, w]``, to be added to the output so far.
        """
        rows = grid[1]
        finer = rearrange(
            self.from_coarse(coarse), "b t (h w) (i j c) -> b t (h i w j) c", h=rows, i=2, j=2
        )  # [B, T, 4 S, width]
        tokens = self.x_embedder(inputs) + finer  # [B, T, 4 S, width]
        time = self.from_time(time)  # [B, T or 1, width]
        modulation = self.t_block(time).unflatten(2, (-1, time.shape[2]))  # [B, T or 1, rows, width]
        for block, text in zip(self.blocks, texts, strict=True):
            tokens = applied(block, tokens, modulation, text)  # [B, T, 4 S, width]
        patches = self.final_layer(tokens, time)  # [B, T, 4 S, p*q*r*C]
        return unpatchify(patches, 2 * rows, self.patch_size)  # [B, C, T·p, h, w]
