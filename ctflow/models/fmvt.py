"""The FMvT: predicts the velocity of a noisy block from the previous block, the report and the flow time."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctflow.config.models import FMvTConfig
from ctflow.models.fmvt_block import FMvTBlock, modulation_rows
from ctflow.models.fmvt_layers import (
    FinalLayer,
    NumberEmbedder,
    PatchEmbedder,
    TimeEmbedder,
    spatial_embedding,
    temporal_embedding,
)
from ctflow.models.fmvt_text import CaptionEmbedder, CrossAttention, PreparedText, TextCondition, TextTokens


class FMvT(nn.Module):
    """Spatio-temporal flow-matching transformer (STDiT layout).

    Time convention: t = 1 is noise, t = 0 is data; the output is the velocity dz/dt (see
    ``ctflow.flow.LinearPath``).
    Shapes: B samples, C latent channels, T slices, h rows, w columns; tokens are ``[B, t, s, hidden]`` with
    t = T / p slice patches and s = (h / q) * (w / r) places for a patch of [p, q, r].

    Args:
        config: Architecture.
    """

    pos_embed: Tensor
    pos_embed_temporal: Tensor

    def __init__(self, config: FMvTConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        slices, rows, columns = self._grid(config.input_size)
        self.register_buffer("pos_embed", spatial_embedding(hidden, rows, columns, config.space_scale))
        self.register_buffer("pos_embed_temporal", temporal_embedding(hidden, slices, config.time_scale))
        self.x_embedder = PatchEmbedder(2 * config.latent_channels, hidden, config.patch_size)
        self.t_embedder = TimeEmbedder(hidden, config.time_multiplier)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, modulation_rows(config) * hidden))
        self.y_embedder = CaptionEmbedder(config)
        self.blocks = nn.ModuleList(FMvTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(hidden, config.latent_channels * math.prod(config.patch_size))
        if config.text_tokens == 1:
            # Every query gets the same answer, so that no gradient reaches the query projection.
            for cross in self._cross_attentions():
                cross.q_linear.requires_grad_(False)
        self.text_modulation = nn.Linear(hidden, hidden) if config.text_modulation else None
        self.position_embedder = NumberEmbedder(hidden) if config.position_input else None
        self.length_embedder = NumberEmbedder(hidden) if config.length_input else None
        both = config.position_input and config.length_input
        self.remaining_embedder = NumberEmbedder(hidden) if both else None
        self.null_previous = (
            nn.Parameter(torch.zeros(config.latent_channels, 1, 1, 1)) if config.learned_nulls else None
        )
        self._initialise()

    def _initialise(self) -> None:
        """Xavier matrices; gates, cross-attention and the output start at zero, as in DiT (section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        for module in self.modules():
            if isinstance(module, (TimeEmbedder, NumberEmbedder)):
                for layer in (module.mlp[0], module.mlp[2]):
                    assert isinstance(layer, nn.Linear)
                    nn.init.normal_(layer.weight, std=0.02)
        to_modulation = self.t_block[1]
        assert isinstance(to_modulation, nn.Linear)
        for layer in (to_modulation, self.final_layer.linear, *(c.proj for c in self._cross_attentions())):
            nn.init.zeros_(layer.weight)

    def _cross_attentions(self) -> list[CrossAttention]:
        """Those of the blocks, in order."""
        return [module for module in self.modules() if isinstance(module, CrossAttention)]

    def encode_text(
        self,
        text: Tensor | None,
        mask: Tensor | None = None,
        drop: Tensor | None = None,
        batch: int = 1,
    ) -> TextCondition:
        """Project a batch of reports for all blocks, once for all steps of the flow.

        Args:
            text: ``[B, L, text_dim]``, or None for "no text": a learned vector, or (published models) no
                cross-attention.
            mask: ``[B, L]``, non-zero where a token counts; None: all count. A row without any token is "no
                text".
            drop: ``[B]`` bool, True where the text is replaced by "no text".
            batch: Number of samples where ``text`` is None.

        Returns:
            The condition to pass to ``forward`` as ``text``.

        Raises:
            ValueError: A shape that does not fit.
        """
        read = self.y_embedder(text, mask, drop, batch)
        prepared = tuple(cross.prepare(read) for cross in self._cross_attentions())
        return TextCondition(read.summary(), prepared)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        text: Tensor | TextCondition | None,
        previous: Tensor | None,
        text_mask: Tensor | None = None,
        position: Tensor | None = None,
        length: Tensor | None = None,
        drop_text: Tensor | None = None,
        drop_previous: Tensor | None = None,
        drop_length: Tensor | None = None,
    ) -> Tensor:
        """Velocity of a noisy block.

        Args:
            x: Noisy block ``[B, C, T, h, w]`` at time ``t``, whitened scale.
            t: Flow time in [0, 1], ``[B]`` or one for all; 1 is noise.
            text: ``[B, L, text_dim]``, an ``encode_text`` result, or None for "no text".
            previous: The 16 slices before the block ``[B, C, T, h, w]``, whitened; None: "no previous block".
            text_mask: ``[B, L]``; only with a text tensor.
            position: ``[B]`` index of the block's first slice from the inferior end; NaN or None: unknown.
            length: ``[B]`` number of slices of the volume; NaN or None: unknown.
            drop_text: ``[B]`` bool, True: as if without text; only with a text tensor.
            drop_previous: ``[B]`` bool, True: as if without previous block.
            drop_length: ``[B]`` bool, True: as if of unknown length.

        Returns:
            dz/dt ``[B, C, T, h, w]`` in float32 (or the parameters' precision).

        Raises:
            ValueError: A shape that does not fit, or a null the model does not have.
        """
        config = self.config
        grid = self._check_block(x)
        both = torch.cat([x, self._previous_or_null(x, previous, drop_previous)], dim=1)  # [B, 2C, T, h, w]
        tokens = self.x_embedder(both)  # [B, t, s, hidden]
        spatial, temporal = self._embeddings(grid, x.device)
        tokens = tokens + spatial  # [B, t, s, hidden]
        if temporal is not None and not config.late_temporal_embedding:
            tokens = tokens + temporal[:, :, None]  # [B, t, s, hidden]
            temporal = None

        summary, texts = self._text(text, text_mask, drop_text, x.shape[0])
        total = _number(length, x, "length")  # [B]
        if drop_length is not None:
            total = total.masked_fill(drop_length, torch.nan)
        time = self._time(x, t, summary, _number(position, x, "position"), total)  # [B, hidden]
        modulation = self.t_block(time).view(x.shape[0], -1, config.hidden_size)  # [B, rows, hidden]
        for index, block in enumerate(self.blocks):
            arguments = (tokens, modulation, texts[index], temporal if index == 0 else None)
            if config.activation_checkpointing and self.training:
                tokens = checkpoint(block, *arguments, use_reentrant=False)  # [B, t, s, hidden]
            else:
                tokens = block(*arguments)  # [B, t, s, hidden]
        patches = self.final_layer(tokens, time)  # [B, t, s, p*q*r*C]
        return self._unpatchify(patches, grid)  # [B, C, T, h, w]

    def _text(
        self, text: Tensor | TextCondition | None, mask: Tensor | None, drop: Tensor | None, batch: int
    ) -> tuple[Tensor, tuple[TextTokens | PreparedText, ...]]:
        """The mean token ``[B, hidden]``, and what each block reads.

        Where the text is not yet encoded the blocks project it themselves, so that all weights of a block are
        used inside it (sharded training gathers them there).
        """
        if isinstance(text, TextCondition):
            if mask is not None or drop is not None:
                raise ValueError(
                    "text_mask and drop_text belong to encode_text where the text is encoded already"
                )
            summary, texts = text.summary, text.blocks
        else:
            read = self.y_embedder(text, mask, drop, batch)
            summary, texts = read.summary(), (read,) * len(self.blocks)
        if summary.shape[0] != batch:
            raise ValueError(f"text has {summary.shape[0]} rows for a batch of {batch}")
        return summary, texts

    def _time(
        self,
        x: Tensor,
        t: Tensor | float,
        summary: Tensor,
        place: Tensor,
        total: Tensor,
    ) -> Tensor:
        """Everything that modulates the blocks, summed: ``[B, hidden]``."""
        batch = x.shape[0]
        moment = torch.as_tensor(t, dtype=torch.float32, device=x.device)
        if moment.ndim > 1 or (moment.ndim == 1 and moment.shape[0] not in (1, batch)):
            raise ValueError(f"t must be a scalar or [B] = [{batch}], found {list(moment.shape)}")
        time = self.t_embedder(moment.expand(batch))  # [B, hidden]
        if self.text_modulation is not None:
            time = time + self.text_modulation(summary)
        if self.position_embedder is not None:
            time = time + self.position_embedder(place)
        if self.length_embedder is not None:
            time = time + self.length_embedder(total)
        if self.remaining_embedder is not None:
            time = time + self.remaining_embedder(total - place)
        return time

    def _grid(self, size: list[int] | torch.Size) -> tuple[int, int, int]:
        p, q, r = self.config.patch_size
        return size[0] // p, size[1] // q, size[2] // r

    def _check_block(self, x: Tensor) -> tuple[int, int, int]:
        channels, patch = self.config.latent_channels, self.config.patch_size
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"x must be [B, {channels}, T, h, w], found {list(x.shape)}")
        if any(side % p or not side for side, p in zip(x.shape[2:], patch, strict=True)):
            raise ValueError(
                f"the block's size {list(x.shape[2:])} is not divisible by the patch {list(patch)}"
            )
        return self._grid(x.shape[2:])

    def _previous_or_null(self, x: Tensor, previous: Tensor | None, drop: Tensor | None) -> Tensor:
        if previous is not None and previous.shape != x.shape:
            raise ValueError(
                f"previous must have the block's shape {list(x.shape)}, found {list(previous.shape)}"
            )
        if previous is not None and drop is None:
            return previous
        if self.null_previous is None:
            raise ValueError(
                "this model (learned_nulls=False) knows no null previous block: pass previous, do not drop it"
            )
        null = self.null_previous.to(x.dtype).expand(x.shape)
        if previous is None or drop is None:
            return null
        return torch.where(drop[:, None, None, None, None], null, previous)

    def _embeddings(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Position embeddings ``[1, s, hidden]``, ``[1, t, hidden]``: the buffers, or for another size."""
        config, (slices, rows, columns) = self.config, grid
        spatial, temporal = self.pos_embed, self.pos_embed_temporal
        _, own_rows, own_columns = self._grid(config.input_size)
        if (rows, columns) != (own_rows, own_columns):
            spatial = spatial_embedding(config.hidden_size, rows, columns, config.space_scale).to(spatial)
        if slices != temporal.shape[1]:
            temporal = temporal_embedding(config.hidden_size, slices, config.time_scale).to(temporal)
        return spatial, temporal if config.temporal_embedding else None

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        p, q, r = self.config.patch_size
        pattern = "b t (h w) (p q r c) -> b c (t p) (h q) (w r)"
        return rearrange(patches, pattern, h=grid[1], p=p, q=q, r=r).to(self.final_layer.linear.weight.dtype)


def _number(values: Tensor | None, x: Tensor, name: str) -> Tensor:
    """``[B]`` float32 with NaN where unknown."""
    if values is None:
        return torch.full((x.shape[0],), torch.nan, device=x.device)
    if values.shape != x.shape[:1]:
        raise ValueError(f"{name} must be [B] = [{x.shape[0]}], found {list(values.shape)}")
    return values.to(device=x.device, dtype=torch.float32)
