"""The published transformer's configuration and state dict, to ours and back.

Facts of the format only: a folder of ``config.json`` and ``diffusion_pytorch_model.safetensors`` whose class
is ``DiffuserSTDiT``; the same names as here behind the prefix ``model.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from torch import Tensor

from ctflow.config.models import FMvTConfig
from ctflow.errors import WeightsError

PREFIX = "model."
CLASS_NAME = "DiffuserSTDiT"

PUBLISHED_PROPERTIES: dict[str, Any] = {
    "scrambled_heads": True,
    "raw_temporal_branch": True,
    "raw_cross_queries": True,
    "late_temporal_embedding": True,
    "time_multiplier": 1.0,
    "learned_nulls": False,
    "normalise_text": False,
    "text_modulation": False,
    "position_input": False,
    "length_input": False,
    "temporal_embedding": True,
    "slice_times": False,
    "preconditioned": False,
    "text_at_places": False,
    "previous_noise_input": False,
    "spacing_input": False,
}
"""The published behaviour as properties of ``FMvTConfig``."""

_NAMES = {  # published name: ours
    "input_size": "input_size",
    "out_channels": "latent_channels",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "caption_channels": "text_dim",
    "model_max_length": "text_tokens",
    "space_scale": "space_scale",
    "time_scale": "time_scale",
}

_WITHOUT_EFFECT: dict[str, Any] = {
    "no_temporal_pos_emb": False,
    "class_dropout_prob": 0.0,
    "drop_path": 0.0,
    "enable_flashattn": False,
}
"""Published keys that change nothing at inference, at the values of the released models."""


def fmvt_config_from_published(config: Mapping[str, Any]) -> FMvTConfig:
    """Our configuration of a published ``config.json``.

    Keys that do not change inference are ignored: the EMA's (``decay``, ``min_decay``, …), dropout rates, the
    choice of attention kernel, and ``no_temporal_pos_emb``, which this family of transformers (STDiT) stores
    and never reads: the temporal embedding is added either way.

    Args:
        config: The parsed JSON.

    Returns:
        A configuration with the published properties.

    Raises:
        WeightsError: A key is missing, or a value is one that no published model has.
    """
    if missing := sorted(name for name in _NAMES if name not in config):
        raise WeightsError(
            f"the transformer's config.json lacks {', '.join(missing)}",
            f"the keys {', '.join(_NAMES)}",
            "take config.json from the published folder",
        )
    in_channels, out_channels = config.get("in_channels"), config["out_channels"]
    if in_channels != 2 * out_channels:
        raise WeightsError(
            f"the transformer's config.json has in_channels={in_channels}, out_channels={out_channels}",
            "in_channels = 2 * out_channels (noisy block and previous block)",
        )
    values = {ours: config[published] for published, ours in _NAMES.items()}
    for name in ("input_size", "patch_size"):
        values[name] = [int(side) for side in values[name]]
    try:
        return FMvTConfig(**values, **PUBLISHED_PROPERTIES)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"the transformer's config.json cannot be used: {error}") from error


def fmvt_config_to_published(config: FMvTConfig, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``config.json`` of a model with the published properties.

    Args:
        config: A configuration that ``fmvt_config_from_published`` could have made.
        kept: The ``config.json`` that it was made from, for the keys that do not change inference; None:
            those are at their published values.

    Raises:
        WeightsError: The model has a property that the published class cannot express.
    """
    ours = asdict(config)
    if differing := [name for name, value in PUBLISHED_PROPERTIES.items() if ours[name] != value]:
        raise WeightsError(
            "this model cannot be written in the published layout: "
            + ", ".join(f"{n}={ours[n]}" for n in differing),
            "a model imported from published weights, or fine-tuned from them",
            "share it as this project's own checkpoint folder",
        )
    return {
        "_class_name": CLASS_NAME,
        **_WITHOUT_EFFECT,
        **(kept or {}),
        **{published: ours[name] for published, name in _NAMES.items()},
        "in_channels": 2 * config.latent_channels,
    }


def fmvt_state_from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published key names to ``FMvT``'s: the prefix ``model.`` goes.

    Raises:
        WeightsError: Keys without the prefix.
    """
    if strangers := sorted(key for key in state if not key.startswith(PREFIX)):
        raise WeightsError(
            f"{len(strangers)} keys are not the published transformer's: {', '.join(strangers[:8])}",
            f"keys that begin with {PREFIX!r}",
        )
    return {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}


def fmvt_state_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``FMvT``'s key names to the published ones: the inverse of ``fmvt_state_from_published``."""
    return {PREFIX + key: tensor for key, tensor in state.items()}


def published_preset(size: str, latent_side: int = 32) -> FMvTConfig:
    """The published configuration S, B or L for square latents of the given side."""
    sizes = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
    if size not in sizes:
        raise ValueError(f"the published sizes are {', '.join(sizes)}, found {size!r}")
    hidden, depth, heads = sizes[size]
    base = FMvTConfig(**PUBLISHED_PROPERTIES)
    side = [base.input_size[0], latent_side, latent_side]
    return replace(base, hidden_size=hidden, depth=depth, num_heads=heads, input_size=side)


assert set(PUBLISHED_PROPERTIES) <= {field.name for field in fields(FMvTConfig)}
