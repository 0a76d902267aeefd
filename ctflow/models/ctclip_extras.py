"""Parameters of the published CT-CLIP file on which none of its outputs depends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctflow.config.encoders import CTCLIPConfig

POSITION_IDS = "text_transformer.embeddings.position_ids"
"""0, 1, 2, …: stored by older versions of transformers, absent from newer ones."""


def published_extra_shapes(config: CTCLIPConfig) -> dict[str, list[int]]:
    """Published key → shape of every stored but unused floating-point tensor."""
    bert, vit = config.bert.hidden_size, config.ctvit
    frame, patch = vit.patch_size**2, vit.temporal_patch_size * vit.patch_size**2
    shapes: dict[str, list[int]] = {
        "text_transformer.pooler.dense.weight": [bert, bert],
        "text_transformer.pooler.dense.bias": [bert],
        "to_text_latent_extra.weight": [config.dim_latent, bert],
        "to_visual_latent_extra.weight": [config.dim_latent, config.dim_image],
    }
    first = "visual_transformer.to_patch_emb_first_frame"
    shapes |= {f"{first}.1.weight": [frame], f"{first}.1.bias": [frame]}
    shapes |= {f"{first}.2.weight": [vit.dim, frame], f"{first}.2.bias": [vit.dim]}
    shapes |= {f"{first}.3.weight": [vit.dim], f"{first}.3.bias": [vit.dim]}
    for name, depth in (("spatial", vit.spatial_depth), ("temporal", vit.temporal_depth)):
        for i in range(depth):
            attention = f"visual_transformer.enc_{name}_transformer.layers.{i}.1"
            shapes[f"{attention}.null_kv"] = [vit.heads, 0, vit.dim_head]
            shapes |= {f"{attention}.context_norm.{p}": [vit.dim] for p in ("gamma", "beta")}
    shapes["visual_transformer.vq._codebook.initted"] = [1]
    shapes["visual_transformer.vq._codebook.cluster_size"] = [1, vit.codebook_size]
    for name, width in (("to_pixels_first_frame", frame), ("to_pixels", patch)):
        shapes |= {f"visual_transformer.{name}.0.weight": [width, vit.dim]}
        shapes |= {f"visual_transformer.{name}.0.bias": [width]}
    return shapes


class PublishedExtras(nn.Module):
    """Holds those tensors as buffers, so that an export writes what was imported.

    Buffers, because nothing trains them; their names are the published keys with ``.`` written as ``:``.
    """

    def __init__(self, config: CTCLIPConfig) -> None:
        super().__init__()
        for key, shape in published_extra_shapes(config).items():
            self.register_buffer(key.replace(".", ":"), torch.zeros(shape))
        if config.published_position_ids:
            self.register_buffer(
                POSITION_IDS.replace(".", ":"), torch.arange(config.bert.max_position_embeddings)[None]
            )

    def published(self) -> dict[str, Tensor]:
        """Published key → tensor."""
        return {name.replace(":", "."): value for name, value in self.named_buffers()}
