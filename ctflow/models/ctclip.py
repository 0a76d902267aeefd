"""CT-CLIP: a report and a chest CT in one latent space (arXiv:2403.17834)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig as HFBertConfig
from transformers import BertModel

from ctflow.config.encoders import CTCLIPConfig, VolumeGrid
from ctflow.errors import CTFlowError
from ctflow.models.ctclip_published import PublishedExtras
from ctflow.models.ctvit import CTViT
from ctflow.types import HUVolume
from ctflow.volume_grid import array_to_grid, to_grid

SHORTEST_SENTENCE = 3
"""Tokens, the stop among them."""
ADAPTER_HEADS, ADAPTER_LAYERS = 4, 2


class TextEncoding(NamedTuple):
    """Output of the text tower for B reports of L tokens.

    Attributes:
        tokens: ``[B, L, D]``, the last hidden states, adapted where the model has an adapter.
        pooled: ``[B, D]``, the first of them, not normalised.
        latent: ``[B, dim_latent]``, unit norm, in the space shared with volumes; an adapter never changes it.
    """

    tokens: Tensor
    pooled: Tensor
    latent: Tensor


class VolumeEncoding(NamedTuple):
    """Output of the volume tower for B volumes.

    Attributes:
        latent: ``[B, dim_latent]``, unit norm, in the space shared with reports.
        embedding: ``[B, h·w·D]``, the tokens averaged over the slabs and flattened.
        commitment: Scalar loss of the quantiser, 0 without one.
    """

    latent: Tensor
    embedding: Tensor
    commitment: Tensor


class TokenAdapter(nn.Module):
    """A narrow transformer over the hidden states of a frozen text tower; it adds its output to them.

    It begins as the identity.

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
                width,
                ADAPTER_HEADS,
                2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(ADAPTER_LAYERS)
        )
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, L, dim]`` and mask ``[B, L]``, 1 for tokens, to states of the same shape."""
        x = self.down(self.norm(tokens))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        return tokens + self.up(x)


class CTCLIP(nn.Module):
    """A text tower (BERT) and a volume tower (CTViT) with projections into one space.

    The published model and the tiny embedded pair are both this class.

    Args:
        config: See ``CTCLIPConfig``.
    """

    def __init__(self, config: CTCLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text = BertModel(HFBertConfig(**asdict(config.bert)), add_pooling_layer=False)
        self.volume = CTViT(config.ctvit)
        self.to_text_latent = nn.Linear(config.bert.hidden_size, config.dim_latent, bias=False)
        self.to_visual_latent = nn.Linear(config.dim_image, config.dim_latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        dim, width = config.bert.hidden_size, config.adapter_width
        self.adapter = TokenAdapter(dim, width) if width else None
        self.extras = PublishedExtras(config) if config.published_extras else None

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None
    ) -> TextEncoding:
        """Token ids and mask, both ``[B, L]``, to hidden states, pooled state and latent.

        ``positions`` ``[B, L]`` are 0, 1, 2, … where not given (training reads sentences elsewhere too).
        """
        limit = self.config.bert.max_position_embeddings
        if input_ids.shape[1] > limit:
            raise CTFlowError(f"reports of {input_ids.shape[1]} tokens", f"at most {limit}")
        mask = attention_mask
        if self.config.sentence_ends:
            mask = sentence_mask(input_ids, attention_mask, self.config.sentence_ends)[:, None]
        tokens = self.text(input_ids=input_ids, attention_mask=mask, position_ids=positions).last_hidden_state
        latent = F.normalize(self.to_text_latent(tokens[:, 0]), dim=-1)
        if self.adapter is not None:
            tokens = self.adapter(tokens, attention_mask)
        return TextEncoding(tokens, tokens[:, 0], latent)

    def encode_volume(self, volume: Tensor) -> VolumeEncoding:
        """A preprocessed volume ``[B, 1, slices, rows, columns]`` in [-1, 1] to everything training needs."""
        vit = self.config.ctvit
        sides = [vit.temporal_patch_size, vit.image_size, vit.image_size]
        fits = volume.ndim == 5 and volume.shape[1] == 1 and volume.shape[2] % sides[0] == 0
        if not fits or list(volume.shape[3:]) != sides[1:]:
            expected = f"[B, 1, a multiple of {sides[0]}, {sides[1]}, {sides[2]}]"
            action = "bring HU volumes to the grid with ctflow.models.ctclip.preprocess_volume"
            raise CTFlowError(f"a volume of shape {list(volume.shape)}", expected, action)
        output = self.volume(volume)
        embedding = output.tokens.mean(dim=1).flatten(1)  # [B, h·w·D]
        latent = F.normalize(self.to_visual_latent(embedding), dim=-1)
        return VolumeEncoding(latent, embedding, output.commitment)

    def encode_image(self, volume: Tensor) -> Tensor:
        """The latent ``[B, dim_latent]`` of ``encode_volume``."""
        return self.encode_volume(volume).latent

    def similarity(self, text_latent: Tensor, volume_latent: Tensor) -> Tensor:
        """exp(temperature) · cosine of B matching pairs, ``[B]``; both arguments ``[B, dim_latent]``."""
        return self.temperature.exp() * (text_latent * volume_latent).sum(dim=-1)

    def similarity_matrix(self, text_latent: Tensor, volume_latent: Tensor) -> Tensor:
        """exp(temperature) · cosine of every report with every volume, ``[reports, volumes]``."""
        return self.temperature.exp() * text_latent @ volume_latent.T

    def contrastive_loss(self, text_latent: Tensor, volume_latent: Tensor) -> Tensor:
        """Symmetric cross-entropy of B matching pairs (InfoNCE, arXiv:2103.00020)."""
        logits = self.similarity_matrix(text_latent, volume_latent)
        target = torch.arange(len(logits), device=logits.device)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def sentence_mask(ids: Tensor, mask: Tensor, ends: Sequence[int]) -> Tensor:
    """Which token attends to which: to the tokens of its sentence and to the first, which attends to all.

    A part of fewer than three tokens (the ``57`` of ``0.57``) belongs to the sentence before it.

    Args:
        ids: Token ids ``[B, L]``.
        mask: ``[B, L]``, 1 for tokens.
        ends: Ids of the tokens that end a sentence.

    Returns:
        Bool ``[B, L, L]``: ``[b, i, j]`` true where i attends to j.
    """
    ended = F.pad(torch.isin(ids, torch.tensor(list(ends), device=ids.device)), (1, 0))[:, :-1].long()
    part = ended.cumsum(dim=1)
    sizes = torch.zeros_like(ids).scatter_add_(1, part, torch.ones_like(ids))
    sentence = (ended * (sizes.gather(1, part) >= SHORTEST_SENTENCE)).cumsum(dim=1)
    together = sentence[:, :, None] == sentence[:, None, :]
    together[:, 0, :] = True
    together[:, :, 0] = True
    return together & mask[:, None, :].bool()


def volume_input(volume: HUVolume, grid: VolumeGrid) -> Tensor:
    """An oriented volume to the volume tower's input ``[1, 1, *grid.shape]``; see ``VolumeGrid.axes``."""
    return to_grid(volume, grid)[None, None] / grid.hu_limit


def preprocess_volume(
    hu: Tensor,
    spacing_mm: tuple[float, float, float],
    grid: VolumeGrid,
    clip: Literal["before", "after"] = "before",
) -> Tensor:
    """The same for an array whose axes are in the order of ``grid.shape`` already.

    Args:
        hu: Volume in HU, ``[slices, rows, columns]``.
        spacing_mm: Its spacing along those axes.
        grid: Shape, spacing and HU limit of the result.
        clip: See ``array_to_grid``.

    Returns:
        ``[1, 1, *grid.shape]`` float32 in [-1, 1], to be stacked along the first axis.
    """
    return array_to_grid(hu, spacing_mm, grid, clip)[None, None] / grid.hu_limit
