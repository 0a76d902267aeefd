"""The published CT-CLIP's configuration and flat state dict, to ours and back (facts of the format only)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.config.encoders import BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid, published_ctclip_config
from ctflow.errors import WeightsError

POSITION_IDS = "text_transformer.embeddings.position_ids"
"""0, 1, 2, …: stored by older versions of transformers, absent from newer ones."""
CODES = "volume.quantizer.codes"
_EXTRAS = "extras."
_VIT = "visual_transformer."
_PREFIXES = {  # ours: published
    "text.": "text_transformer.",
    "volume.position_bias.hidden.0.": _VIT + "spatial_rel_pos_bias.net.0.0.",
    "volume.position_bias.hidden.1.": _VIT + "spatial_rel_pos_bias.net.1.0.",
    "volume.position_bias.out.": _VIT + "spatial_rel_pos_bias.net.2.",
    "volume.to_tokens.0.": _VIT + "to_patch_emb.1.",
    "volume.to_tokens.1.": _VIT + "to_patch_emb.2.",
    "volume.to_tokens.2.": _VIT + "to_patch_emb.3.",
    "volume.spatial.": _VIT + "enc_spatial_transformer.",
    "volume.temporal.": _VIT + "enc_temporal_transformer.",
    CODES: _VIT + "vq._codebook.embed",
}
_LAYER_PARTS = {  # ours: published, after "layers.<i>."
    "position.conv.": "0.dsconv.",
    "attention.": "1.",
    "feed_forward.norm.": "3.0.",
    "feed_forward.up.": "3.1.",
    "feed_forward.down.": "3.4.",
}


def ctclip_config_from_published(config: Mapping[str, Any] | None, keys: Iterable[str]) -> CTCLIPConfig:
    """Our configuration of a published CT-CLIP, its quirks on.

    Args:
        config: A parsed ``config.json`` with ``bert``, ``ctvit`` and ``dim_latent``; None for the published
            dimensions.
        keys: Keys of the state dict: they say whether position ids are stored.

    Raises:
        WeightsError: The configuration does not describe a CT-CLIP.
    """
    result = published_ctclip_config()
    result.published_position_ids = POSITION_IDS in set(keys)
    if config is None:
        return result
    try:
        bert = BertConfig(**_known(BertConfig, config["bert"]))
        ctvit = CTViTConfig(**_known(CTViTConfig, config["ctvit"]), raw_temporal_reshape=True)
        depth = result.grid.shape[0] - result.grid.shape[0] % ctvit.temporal_patch_size
        loaded = CTCLIPConfig(
            bert=bert,
            ctvit=ctvit,
            grid=VolumeGrid(result.grid.axes, [depth, ctvit.image_size, ctvit.image_size]),
            dim_latent=int(config["dim_latent"]),
            max_tokens=min(result.max_tokens, bert.max_position_embeddings),
            published_extras=True,
            published_position_ids=result.published_position_ids,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"CT-CLIP's config.json cannot be used: {error!r}") from error
    if config.get("dim_image", loaded.dim_image) != loaded.dim_image:
        found = f"CT-CLIP's config.json has dim_image={config['dim_image']}"
        raise WeightsError(found, f"{loaded.dim_image}, which its ctvit part gives")
    return loaded


def ctclip_config_to_published(config: CTCLIPConfig, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``config.json`` that ``ctclip_config_from_published`` reads.

    Args:
        config: The CT-CLIP's.
        kept: The ``config.json`` that it was made from, for keys that say nothing about the weights.

    Raises:
        WeightsError: The model has a property that the published class cannot express.
    """
    vit = config.ctvit
    if config.adapter_width or config.sentence_ends:
        raise WeightsError(
            f"this CT-CLIP has an adapter of width {config.adapter_width} and "
            f"sentence_ends={config.sentence_ends}",
            "a CT-CLIP that the published class can express, with neither",
            "export the CT-CLIP that an adapter was trained on: its weights are the same",
        )
    if not (config.published_extras and vit.quantize and vit.raw_temporal_reshape):
        raise WeightsError(
            f"this CT-CLIP has published_extras={config.published_extras}, quantize={vit.quantize}, "
            f"raw_temporal_reshape={vit.raw_temporal_reshape}",
            "a CT-CLIP imported from published weights",
            "share it as this project's own folder",
        )
    sizes = {
        key: value for key, value in asdict(vit).items() if key not in ("quantize", "raw_temporal_reshape")
    }
    dims = {
        "dim_text": config.bert.hidden_size,
        "dim_image": config.dim_image,
        "dim_latent": config.dim_latent,
    }
    before = dict(kept or {})
    bert = before.pop("bert", {}) | asdict(config.bert)
    return {**before, "bert": bert, "ctvit": before.get("ctvit", {}) | sizes, **dims}


def published_name(key: str) -> str:
    """The published name of one of our keys."""
    if key.startswith(_EXTRAS):
        return key.removeprefix(_EXTRAS).replace(":", ".")
    for ours, published in _PREFIXES.items():
        if key.startswith(ours):
            key = published + key.removeprefix(ours)
            break
    for ours, published in _LAYER_PARTS.items():
        before, found, after = key.partition("." + ours)
        if found and before.rpartition(".")[0].endswith("_transformer.layers"):
            return f"{before}.{published}{after}"
    return key


def ctclip_state_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict in the published layout; the codebook gets its leading axis."""
    return {published_name(k): v[None] if k == CODES else v for k, v in state.items()}


def ctclip_state_from_published(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names; the inverse of ``ctclip_state_to_published``.

    Args:
        state: Holds every key that ``ctclip_state_to_published(like)`` has.
        like: Our state dict, for its names.
    """
    found = {key: state[published_name(key)] for key in like}
    return {key: value[0] if key == CODES else value for key, value in found.items()}


def _known(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a dataclass has; a BERT config holds many more that change nothing here."""
    names = {field.name for field in fields(schema)} - {"quantize", "raw_temporal_reshape"}
    return {key: value for key, value in values.items() if key in names}


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
