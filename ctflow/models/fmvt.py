"""The FMvT: predicts the velocity of a noisy block from the previous block, the report and the flow time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctflow.config.models import FMvTConfig
from ctflow.models.conditions import CaptionEmbedder, Conditions, NumberEmbedder, TextCondition, TimeEmbedder
from ctflow.models.fmvt_fine import FineStage
from ctflow.models.fmvt_layers import (
    CrossAttention,
    FinalLayer,
    FMvTBlock,
    LocalHead,
    PatchEmbedder,
    PreparedText,
    TextAtPlaces,
    TextTokens,
    applied,
    modulation_rows,
    spatial_embedding,
    temporal_embedding,
    unpatchify,
)
from ctflow.models.spectrum import LinearEstimate, Spectrum
from ctflow.models.start_head import StartHead

_SPACING_SCALE = 100.0
"""The logarithm of a spacing is embedded a hundredfold: 1 % of a millimetre is a step of one."""
_NOISE_SCALE = 1000.0


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
        # Noisy block, previous block, and where slices have times of their own: which of them are known.
        channels = 2 * config.latent_channels + int(config.slice_times)
        self.x_embedder = PatchEmbedder(channels, hidden, config.patch_size)
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
        self.noise_embedder = NumberEmbedder(hidden) if config.previous_noise_input else None
        self.spacing_embedders = (
            nn.ModuleList(NumberEmbedder(hidden) for _ in range(4)) if config.spacing_input else None
        )
        self.text_at_places = TextAtPlaces(hidden) if config.text_at_places else None
        self.local_head = (
            LocalHead(config.latent_channels, config.local_channels, hidden, config.local_blocks)
            if config.local_channels
            else None
        )
        self.fine = FineStage(config, channels + config.latent_channels) if config.fine_depth else None
        self.spectrum = Spectrum(config.latent_channels, config.input_size) if config.spectrum else None
        block = (config.latent_channels, *config.input_size)
        self.start_head = (
            StartHead(block, config.start_directions, hidden) if config.start_directions else None
        )
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
        for module in self.modules():
            if isinstance(module, PatchEmbedder):
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))
                assert module.proj.bias is not None
                nn.init.zeros_(module.proj.bias)
            if isinstance(module, (TimeEmbedder, NumberEmbedder)):
                for layer in (module.mlp[0], module.mlp[2]):
                    assert isinstance(layer, nn.Linear)
                    nn.init.normal_(layer.weight, std=0.02)
        outputs: list[nn.Linear | nn.Conv3d] = []
        for stage in (self, self.fine):
            if stage is not None:
                to_modulation = stage.t_block[1]
                assert isinstance(to_modulation, nn.Linear)
                outputs += [to_modulation, stage.final_layer.linear]
        outputs += [cross.proj for cross in self._cross_attentions()]
        if self.text_at_places is not None:
            outputs.append(self.text_at_places.proj)
        if self.local_head is not None:
            for part in (self.local_head, *self.local_head.blocks):
                outputs += [part.modulation, part.proj]
        if self.start_head is not None:
            outputs += [self.start_head.gates, self.start_head.proj]
        for layer in outputs:
            nn.init.zeros_(layer.weight)
            if isinstance(layer, nn.Conv3d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _cross_attentions(self) -> list[CrossAttention]:
        """The blocks' cross-attentions in their order; the fine stage's come last."""
        return [module for module in self.modules() if isinstance(module, CrossAttention)]

    def _read(self, read: TextTokens) -> tuple[TextTokens, ...]:
        """A batch of reports as each block reads it."""
        texts = (read,) * len(self.blocks)
        return texts if self.fine is None else texts + (self.fine.read(read),) * len(self.fine.blocks)

    def encode_text(self, text: Tensor | None, mask: Tensor | None = None, batch: int = 1) -> TextCondition:
        """Project a batch of reports for all blocks, once for all steps of the flow.

        Args:
            text: ``[B, L, text_dim]``, or None for "no text": a learned vector, or (published models) no
                cross-attention.
            mask: ``[B, L]``, non-zero where a token counts; None: all count. A row without any token is "no
                text".
            batch: Number of samples where ``text`` is None.

        Returns:
            The condition to pass to ``forward`` as ``Conditions.text``.

        Raises:
            ValueError: A shape that does not fit.
        """
        read = self.y_embedder(text, mask, batch)
        prepared = tuple(
            cross.prepare(own) for cross, own in zip(self._cross_attentions(), self._read(read), strict=True)
        )
        return TextCondition(read.summary(), prepared)

    def forward(self, z: Tensor, t: Tensor | float, conditions: Conditions) -> Tensor:
        """Velocity of a noisy block.

        Args:
            z: Noisy block ``[B, C, T, h, w]`` at time ``t``, whitened scale; known slices are clean.
            t: Flow time in [0, 1]; 1 is noise. One for all, ``[B]``, or (``slice_times``) ``[B, T]``.
            conditions: What the block is generated from.

        Returns:
            dz/dt ``[B, C, T, h, w]`` in float32 (or the parameters' precision); without meaning on known
            slices.

        Raises:
            ValueError: A shape that does not fit, or a condition that the model does not know.
        """
        config = self.config
        grid = self._check_block(z)
        times = self._times(t, z)  # [B, T or 1]
        if conditions.known is not None:
            if not config.slice_times:
                raise ValueError("this model (slice_times=False) knows no clean slices in a noisy block")
            times = times.masked_fill(conditions.known, 0.0)  # [B, T]
        estimate = self.spectrum(z, times) if self.spectrum is not None else None
        inputs = self._network_input(z, times, conditions, estimate)  # [B, 2C or 2C + 1, T, h, w]
        tokens = self.x_embedder(inputs)  # [B, t, s, hidden]
        spatial, temporal = self._embeddings(grid, z.device)
        tokens = tokens + spatial  # [B, t, s, hidden]
        late = temporal if config.late_temporal_embedding else None
        if temporal is not None and late is None:
            tokens = tokens + temporal[:, :, None]  # [B, t, s, hidden]

        summary, texts = self._text(conditions, z.shape[0])
        if self.text_at_places is not None:
            places = spatial if temporal is None else spatial + temporal[:, :, None]  # [1, t or 1, s, hidden]
            tokens = tokens + self.text_at_places(summary, places)  # [B, t, s, hidden]
        time = self._modulators(times, summary, conditions)  # [B, t or 1, hidden]
        modulation = self.t_block(time).unflatten(2, (-1, config.hidden_size))  # [B, t or 1, rows, hidden]
        for index, block in enumerate(self.blocks):
            own = late if index == 0 else None
            tokens = applied(block, tokens, modulation, texts[index], own)  # [B, t, s, hidden]
        patches = self.final_layer(tokens, time)  # [B, t, s, p*q*r*C]
        out = unpatchify(patches, grid[1], config.patch_size)  # [B, C, T, h, w]
        out = out.to(self.final_layer.linear.weight.dtype)
        if self.local_head is not None:
            out = out + self.local_head(inputs[:, : config.latent_channels], out, time)  # [B, C, T, h, w]
        if self.fine is not None:
            seen = torch.cat([inputs, out.to(inputs.dtype)], dim=1)  # [B, 3C or 3C + 1, T, h, w]
            out = out + self.fine(seen, tokens, time, texts[config.depth :], grid)  # [B, C, T, h, w]
        velocity = self._velocity(out, z, times, estimate) if config.preconditioned else out
        if self.start_head is None:
            return velocity
        starts = _number(conditions.position, summary, "position") == 0
        if conditions.known is not None:
            starts = starts & ~conditions.known.any(dim=1)
        data = z - times[:, None, :, None, None] * velocity  # [B, C, T, h, w]
        change = self.start_head(z, data, times.amax(dim=1), time)  # [B, C, T, h, w]
        return velocity + starts[:, None, None, None, None] * change

    def _times(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Flow times ``[B, T]``, or ``[B, 1]`` where a block has one time."""
        moment = torch.as_tensor(t, dtype=torch.float32, device=z.device)
        batch, slices = z.shape[0], z.shape[2]
        if moment.ndim == 2 and self.config.slice_times and moment.shape == (batch, slices):
            return moment
        if moment.ndim > 1 or (moment.ndim == 1 and moment.shape[0] not in (1, batch)):
            expected = f"a scalar, [B] = [{batch}]" + (
                f" or [B, T] = [{batch}, {slices}]" * self.config.slice_times
            )
            raise ValueError(f"t must be {expected}, found {list(moment.shape)}")
        moment = moment.expand(batch)[:, None]  # [B, 1]
        return moment.expand(batch, slices) if self.config.slice_times else moment

    def _network_input(
        self, z: Tensor, times: Tensor, conditions: Conditions, estimate: LinearEstimate | None
    ) -> Tensor:
        """Noisy block or its estimate, previous block, known slices: ``[B, 2C or 2C + 1, T, h, w]``."""
        if estimate is not None:
            parts = [estimate.data.to(z.dtype)]
        else:
            parts = [z * _deviation(times).reciprocal() if self.config.preconditioned else z]
        parts.append(self._previous_or_null(z, conditions.previous, conditions.without_previous))
        if self.config.slice_times:
            known = conditions.known
            flags = z.new_zeros(z.shape[0], z.shape[2]) if known is None else known.to(z.dtype)
            parts.append(flags[:, None, :, None, None].expand(-1, 1, -1, *z.shape[3:]))
        return torch.cat(parts, dim=1)

    def _velocity(self, out: Tensor, z: Tensor, times: Tensor, estimate: LinearEstimate | None) -> Tensor:
        """``L(z) + F/√(t² + (1 − t)²)``: what a linear function of z says, and the network's part.

        L(z) is the least-squares estimate of the velocity, for data of the measured spectrum, or else for
        data of unit variance, ``(2t − 1)/(t² + (1 − t)²) z``. So the network need not carry the noise through
        its tokens (Karras et al. 2022, section 5, for the straight path).
        """
        t, deviation = times[:, None, :, None, None], _deviation(times)
        linear = (2 * t - 1) / deviation.square() * z.to(out.dtype) if estimate is None else estimate.velocity
        return linear + out / deviation

    def _text(
        self, conditions: Conditions, batch: int
    ) -> tuple[Tensor, tuple[TextTokens | PreparedText, ...]]:
        """The mean token ``[B, hidden]``, and what each block reads.

        Where the text is not yet encoded the blocks project it themselves, so that all weights of a block are
        used inside it (sharded training gathers them there).
        """
        text, mask = conditions.text, conditions.text_mask
        texts: tuple[TextTokens | PreparedText, ...]
        if isinstance(text, TextCondition):
            if mask is not None:
                raise ValueError("text_mask belongs to encode_text where the text is encoded already")
            summary, texts = text.summary, text.blocks
        else:
            read = self.y_embedder(text, mask, batch)
            summary, texts = read.summary(), self._read(read)
        if summary.shape[0] != batch:
            raise ValueError(f"text has {summary.shape[0]} rows for a batch of {batch}")
        return summary, texts

    def _modulators(self, times: Tensor, summary: Tensor, conditions: Conditions) -> Tensor:
        """Everything that modulates the blocks, summed: ``[B, t or 1, hidden]``."""
        batch, patch = times.shape[0], self.config.patch_size[0]
        if times.shape[1] > 1:
            times = times.unflatten(1, (-1, patch)).amax(
                dim=2
            )  # [B, t]: a patch is as noisy as its noisiest slice
        time = self.t_embedder(times.flatten()).unflatten(0, (batch, -1))  # [B, t or 1, hidden]
        place = _number(conditions.position, summary, "position")
        total = _number(conditions.length, summary, "length")
        rest: list[Tensor] = []  # each [B, hidden]
        if self.text_modulation is not None:
            rest.append(self.text_modulation(summary))
        if self.position_embedder is not None:
            rest.append(self.position_embedder(place))
        if self.length_embedder is not None:
            rest.append(self.length_embedder(total))
        if self.remaining_embedder is not None:
            rest.append(self.remaining_embedder(total - place))
        if self.noise_embedder is not None:
            noise = conditions.previous_noise
            level = torch.zeros_like(place) if noise is None else _number(noise, summary, "previous_noise")
            rest.append(self.noise_embedder(_NOISE_SCALE * level))
        if self.spacing_embedders is not None:
            between = _spacing(conditions.spacing, summary)  # [B, 3]
            numbers = (
                *_SPACING_SCALE * between[:, :2].log().T,
                place * between[:, 0],
                (total - place) * between[:, 0],
            )
            rest += [embed(number) for embed, number in zip(self.spacing_embedders, numbers, strict=True)]
        return time + torch.stack(rest).sum(dim=0)[:, None] if rest else time

    def _grid(self, size: list[int] | torch.Size) -> tuple[int, int, int]:
        p, q, r = self.config.patch_size
        return size[0] // p, size[1] // q, size[2] // r

    def _check_block(self, z: Tensor) -> tuple[int, int, int]:
        channels, patch = self.config.latent_channels, self.config.patch_size
        if z.ndim != 5 or z.shape[1] != channels:
            raise ValueError(f"z must be [B, {channels}, T, h, w], found {list(z.shape)}")
        if any(side % p or not side for side, p in zip(z.shape[2:], patch, strict=True)):
            raise ValueError(
                f"the block's size {list(z.shape[2:])} is not divisible by the patch {list(patch)}"
            )
        return self._grid(z.shape[2:])

    def _previous_or_null(self, z: Tensor, previous: Tensor | None, drop: Tensor | None) -> Tensor:
        if previous is not None and previous.shape != z.shape:
            raise ValueError(
                f"previous must have the block's shape {list(z.shape)}, found {list(previous.shape)}"
            )
        if previous is not None and drop is None:
            return previous
        if self.null_previous is None:
            raise ValueError(
                "this model (learned_nulls=False) knows no null previous block: pass previous, do not drop it"
            )
        null = self.null_previous.to(z.dtype).expand(z.shape)
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


def _deviation(times: Tensor) -> Tensor:
    """Standard deviation of z for unit-variance data: ``[B, T]`` to ``[B, 1, T, 1, 1]``."""
    return (times.square() + (1 - times).square()).sqrt()[:, None, :, None, None]


def _number(values: Tensor | None, like: Tensor, name: str) -> Tensor:
    """``[B]`` float32 with NaN where unknown."""
    if values is None:
        return torch.full((like.shape[0],), torch.nan, device=like.device)
    if values.shape != like.shape[:1]:
        raise ValueError(f"{name} must be [B] = [{like.shape[0]}], found {list(values.shape)}")
    return values.to(device=like.device, dtype=torch.float32)


def _spacing(values: Tensor | None, like: Tensor) -> Tensor:
    """``[B, 3]`` float32 with NaN where unknown."""
    if values is None:
        return torch.full((like.shape[0], 3), torch.nan, device=like.device)
    if values.shape != (like.shape[0], 3):
        raise ValueError(f"spacing must be [B, 3] = [{like.shape[0]}, 3], found {list(values.shape)}")
    return values.to(device=like.device, dtype=torch.float32)
