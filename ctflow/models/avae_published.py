"""FLUX's autoencoder: the diffusers folder's and the single file's layout, to ours and back.

Facts of the formats only. This project stores diffusers' own key names, so that layout needs no renaming.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ctflow.config.encoders import AVAEConfig, flux_avae_config
from ctflow.errors import WeightsError
from ctflow.whitening import Whitening

CLASS_NAME = "AutoencoderKL"
SINGLE_FILE_MARK = "encoder.down.0.block.0.conv1.weight"
"""A key that only the single-file layout has."""

_TOPOLOGY: dict[str, Any] = {
    "_class_name": CLASS_NAME,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
    "act_fn": "silu",
}
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "_class_name": CLASS_NAME,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "act_fn": "silu",
}
"""Defaults of diffusers for entries that an older ``config.json`` lacks."""


def avae_config_from_diffusers(config: Mapping[str, Any]) -> AVAEConfig:
    """Our configuration of a diffusers ``config.json``; the intensity window is the published CTFlow's.

    Raises:
        WeightsError: The file describes an autoencoder of another topology.
    """
    wanted, defaults = _TOPOLOGY, _DIFFUSERS_DEFAULTS
    found = {key: config.get(key, defaults.get(key)) for key in wanted}
    differing = [f"{key}={found[key]!r}" for key, value in wanted.items() if found[key] != value]
    if config.get("in_channels") != config.get("out_channels"):
        differing.append(
            f"in_channels={config.get('in_channels')}, out_channels={config.get('out_channels')}"
        )
    if differing:
        expected = "FLUX's: an AutoencoderKL without quant convolutions, with attention in the middle"
        raise WeightsError(f"the autoencoder's config.json has {', '.join(differing)}", expected)
    base = flux_avae_config()
    try:
        shift, scale = config.get("shift_factor") or 0.0, config["scaling_factor"]
        return AVAEConfig(
            in_channels=config["in_channels"],
            latent_channels=config["latent_channels"],
            block_out_channels=list(config["block_out_channels"]),
            layers_per_block=config["layers_per_block"],
            norm_num_groups=config["norm_num_groups"],
            intensity=base.intensity,
            whitening=Whitening([float(shift)], [float(scale)]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the autoencoder's config.json cannot be used: {error!r}") from error


def avae_config_to_diffusers(config: AVAEConfig, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``config.json`` of an A-VAE; its intensity window has no place there.

    Args:
        config: The A-VAE's.
        kept: The ``config.json`` that it was made from, for the keys that say nothing about the weights;
            None: those are at FLUX's values.

    Raises:
        WeightsError: The whitening is per channel, which the layout cannot express as FLUX does.
    """
    if len(config.whitening.scale) != 1:
        found = f"an A-VAE whitened with {len(config.whitening.scale)} channels"
        raise WeightsError(found, "one shift and one scale", "share it as this project's own folder")
    levels = len(config.block_out_channels)
    return {
        "force_upcast": True,
        "latents_mean": None,
        "latents_std": None,
        "sample_size": 1024,
        **(kept or {}),
        **_TOPOLOGY,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "out_channels": config.in_channels,
        "scaling_factor": config.whitening.scale[0],
        "shift_factor": config.whitening.shift[0],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def avae_config_from_single_file(shapes: Mapping[str, list[int]]) -> AVAEConfig:
    """Our configuration of the single file, which holds none: read off the shapes.

    The number of groups of the norms leaves no trace in the shapes: FLUX's 32, or for narrower models the
    largest divisor of 32 that every width allows.

    Args:
        shapes: Key → shape of everything in the file.

    Raises:
        WeightsError: The keys are not those of the layout.
    """
    try:
        levels = 1 + max(int(m[1]) for k in shapes if (m := re.match(r"encoder\.down\.(\d+)\.", k)))
        widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
        layers = len([k for k in shapes if re.match(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", k)])
        base = flux_avae_config(in_channels=shapes["encoder.conv_in.weight"][1])
        latent_channels = shapes["decoder.conv_in.weight"][1]
    except (KeyError, IndexError, ValueError) as error:
        found = f"a file without {error}"
        raise WeightsError(found, "FLUX's single-file autoencoder (ae.safetensors)") from None
    return AVAEConfig(
        in_channels=base.in_channels,
        latent_channels=latent_channels,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=math.gcd(32, *widths),
        clamp_logvar=False,
        intensity=base.intensity,
        whitening=base.whitening,
    )


def single_file_name(key: str, levels: int) -> str:
    """The single-file name of one of our (diffusers') keys."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    key = key.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
    key = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", key)
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)

    def from_the_other_end(match: re.Match[str]) -> str:
        """The decoder's levels count from the finest here, from the coarsest in diffusers."""
        part = {"resnets": "block", "upsamplers.0": "upsample"}[match[2]]
        return f"up.{levels - 1 - int(match[1])}.{part}"

    return re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", from_the_other_end, key)


def to_single_file(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Our state dict to the single file's; attention's matrices become 1×1 convolutions."""
    named = {single_file_name(key, levels): value for key, value in state.items()}
    return {k: v[:, :, None, None] if _is_attention_matrix(k, v.ndim, 2) else v for k, v in named.items()}


def from_single_file(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], levels: int
) -> dict[str, Tensor]:
    """The single file's tensors under our names; the inverse of ``to_single_file``.

    Args:
        state: Holds every key that ``to_single_file(like, levels)`` has.
        like: Our state dict, for its names.
        levels: Levels of the autoencoder.
    """
    names = {key: single_file_name(key, levels) for key in like}
    found = {key: state[name] for key, name in names.items()}
    return {k: v[:, :, 0, 0] if _is_attention_matrix(names[k], v.ndim, 4) else v for k, v in found.items()}


def to_single_channel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a 3-channel autoencoder as a 1-channel one that does the same to grey images.

    The first convolution sums over its equal inputs; the last one averages its outputs.
    """
    changed = dict(state)
    changed["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].sum(dim=1, keepdim=True)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        changed[name] = state[name].mean(dim=0, keepdim=True)
    return changed


def _is_attention_matrix(name: str, ndim: int, wanted: int) -> bool:
    return ndim == wanted and re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", name) is not None
