"""Networks from this project's sharing folders and from published layouts, by one path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctflow.checkpoint.files import TOKENIZER_FILE, VOCABULARY_FILE, key_problems, load_exactly, read_json
from ctflow.checkpoint.sources import Kind, WeightSource, locate, read_state
from ctflow.config import load_config
from ctflow.config.encoders import AVAEConfig, CTCLIPConfig
from ctflow.config.models import FMvTConfig
from ctflow.errors import WeightsError
from ctflow.models.avae import AVAE
from ctflow.models.avae_published import (
    avae_config_from_diffusers,
    avae_config_from_single_file,
    from_single_file,
    to_single_channel,
    to_single_file,
)
from ctflow.models.ctclip import CTCLIP
from ctflow.models.ctclip_published import (
    ctclip_config_from_published,
    ctclip_state_from_published,
    ctclip_state_to_published,
)
from ctflow.models.fmvt import FMvT
from ctflow.models.fmvt_published import (
    fmvt_config_from_published,
    fmvt_state_from_published,
    fmvt_state_to_published,
)
from ctflow.models.text import TextEncoder, TextMode
from ctflow.models.tokenizer import ReportTokenizer

_TOLD = 20
"""Keys named in an error about values."""
NetworkConfig = FMvTConfig | AVAEConfig | CTCLIPConfig


@dataclass(frozen=True)
class Weights:
    """A weight file, read and checked.

    Attributes:
        source: Where it was found.
        config: Configuration of its network, published properties set.
        state: Tensors under the names of this project's modules.
    """

    source: WeightSource
    config: NetworkConfig
    state: dict[str, Tensor]


def read_weights(path: Path | str, kind: Kind | None = None, shapes_only: bool = False) -> Weights:
    """Find, read and check weights.

    Args:
        path: See ``locate``.
        kind: The network that is wanted; None: whatever is there.
        shapes_only: Check without reading values (``state`` is then on the ``meta`` device).

    Raises:
        WeightsError: Not found, not recognised, damaged, or missing, extra or misshapen keys (all listed), or
            values that are whole numbers or not finite.
    """
    source = locate(path, kind)
    stored = read_state(source.weights, shapes_only)
    config = _config(source, stored)
    with torch.device("meta"):
        like = inner_module(build(config)).state_dict()
    expected = _as_stored(source, config, like)
    problems = key_problems(_shapes(expected), _shapes(stored))
    if problems:
        found = f"{source.weights} does not fit its configuration ({len(problems)} keys):\n" + "\n".join(
            problems
        )
        raise WeightsError(
            found, "exactly the keys of its layout", "fetch the file again, with its own config"
        )
    if problems := _value_problems(expected, stored):
        raise WeightsError(
            f"{source.weights} holds values that no network works with:\n" + "\n".join(problems[:_TOLD]),
            "finite fractions",
            "fetch or export the file again",
        )
    return Weights(source, config, _as_ours(source, config, stored, like))


def _value_problems(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """Keys that hold whole numbers instead of fractions, or values that are not finite."""
    lines = []
    for key, tensor in sorted(stored.items()):
        if not expected[key].is_floating_point():
            continue
        if not tensor.is_floating_point():
            lines.append(f"  {key}: {tensor.dtype}, rounded or quantised")
        elif not tensor.is_meta and not torch.isfinite(tensor.float()).all():
            lines.append(f"  {key}: not finite")
    return lines


def build(config: NetworkConfig) -> FMvT | AVAE | CTCLIP:
    """A fresh network of a configuration."""
    if isinstance(config, FMvTConfig):
        return FMvT(config)
    return AVAE(config) if isinstance(config, AVAEConfig) else CTCLIP(config)


def inner_module(model: nn.Module) -> nn.Module:
    """The module whose state dict is stored: of an A-VAE, diffusers' autoencoder."""
    return model.net if isinstance(model, AVAE) else model


def load_fmvt(path: Path | str) -> FMvT:
    """Load a transformer: a published CTFlow folder, a sharing folder, or a full checkpoint folder.

    Returns:
        In float32, on the CPU, in evaluation mode; ``forward(z, t, conditions)``.

    Raises:
        WeightsError: See ``read_weights``.
    """
    return _load(read_weights(path, "fmvt"))  # type: ignore[return-value]


def load_avae(path: Path | str, channels: int | None = None) -> AVAE:
    """Load an A-VAE: FLUX's diffusers folder or single file, a sharing folder, or a full checkpoint folder.

    Args:
        path: The file or folder.
        channels: 1 makes a 3-channel autoencoder a 1-channel one that treats grey images the same (to
            fine-tune it on CT slices); None keeps what is stored.

    Raises:
        WeightsError: See ``read_weights``.
    """
    weights = read_weights(path, "avae")
    return _load(weights if channels is None else with_channels(weights, channels))  # type: ignore[return-value]


def load_ctclip(path: Path | str) -> CTCLIP:
    """Load a CT-CLIP: a published ``.pt`` or its folder, a sharing folder, or a full checkpoint folder.

    Without a ``config.json`` the file must have the published dimensions.

    Raises:
        WeightsError: See ``read_weights``.
    """
    return _load(read_weights(path, "ctclip"))  # type: ignore[return-value]


def load_tokenizer(folder: Path | str, max_tokens: int) -> ReportTokenizer:
    """Read ``tokenizer.json``, or else a published BERT's ``vocab.txt``; nothing is ever fetched.

    Args:
        folder: Holds one of the two files. Beside ``vocab.txt``, ``do_lower_case`` of a
            ``tokenizer_config.json`` is honoured.
        max_tokens: See ``ReportTokenizer``.

    Raises:
        WeightsError: Neither file is there, or it is not a BERT tokenizer.
    """
    folder = Path(folder)
    whole, vocabulary, settings = (
        folder / name for name in (TOKENIZER_FILE, VOCABULARY_FILE, "tokenizer_config.json")
    )
    if whole.is_file():
        return ReportTokenizer.from_json(whole.read_text(encoding="utf-8"), max_tokens)
    if vocabulary.is_file():
        lowercase = True
        if settings.is_file():
            lowercase = bool(read_json(settings).get("do_lower_case", True))
        tokens = vocabulary.read_text(encoding="utf-8").splitlines()
        return ReportTokenizer.from_vocabulary(tokens, max_tokens, lowercase)
    action = "put the tokenizer files of the text encoder there (for CT-CLIP see docs/published-weights.md)"
    raise WeightsError(f"no tokenizer in {folder}", f"{TOKENIZER_FILE} or {VOCABULARY_FILE}", action)


def load_text_encoder(
    path: Path | str, tokenizer: Path | str | None = None, mode: TextMode = "tokens"
) -> TextEncoder:
    """Load a CT-CLIP and its tokenizer as the frozen encoder of reports.

    Args:
        path: See ``load_ctclip``.
        tokenizer: Folder of ``tokenizer.json`` or ``vocab.txt``; None: beside the weights.
        mode: See ``TextEncoder``.

    Raises:
        WeightsError: See ``read_weights``; also without a tokenizer. Nothing is ever fetched.
    """
    weights = read_weights(path, "ctclip")
    clip = _load(weights)
    assert isinstance(clip, CTCLIP)
    folder = weights.source.weights.parent if tokenizer is None else Path(tokenizer)
    return TextEncoder(clip, load_tokenizer(folder, clip.config.max_tokens), mode)


def with_channels(weights: Weights, channels: int) -> Weights:
    """The same autoencoder for another number of image channels: 3 → 1, or as it is.

    Raises:
        WeightsError: 1 → 3, or any other number.
    """
    config = weights.config
    assert isinstance(config, AVAEConfig)
    if channels == config.in_channels:
        return weights
    if (config.in_channels, channels) != (3, 1):
        found = f"an autoencoder of {config.in_channels} channels, {channels} wanted"
        raise WeightsError(found, "3 channels made 1, or the number as stored")
    return Weights(weights.source, replace(config, in_channels=1), to_single_channel(weights.state))


def _load(weights: Weights) -> nn.Module:
    model = build(weights.config)
    load_exactly(inner_module(model), weights.state, str(weights.source.weights))
    return model.eval()


def _config(source: WeightSource, stored: Mapping[str, Tensor]) -> NetworkConfig:
    if source.layout == "own":
        schemas: dict[Kind, Any] = {"fmvt": FMvTConfig, "avae": AVAEConfig, "ctclip": CTCLIPConfig}
        return load_config(schemas[source.kind], source.config)
    published = read_json(source.config) if source.config else None
    if source.kind == "ctclip":
        return ctclip_config_from_published(published, stored)
    if source.layout == "single-file":
        return _single_file_config(stored, published)
    assert published is not None
    read = fmvt_config_from_published if source.kind == "fmvt" else avae_config_from_diffusers
    return read(published)


def _single_file_config(stored: Mapping[str, Tensor], beside: Mapping[str, Any] | None) -> AVAEConfig:
    """Read the single file's shapes; a diffusers ``config.json`` in its folder gives the rest."""
    config = avae_config_from_single_file({key: list(value.shape) for key, value in stored.items()})
    if beside is None:
        return config
    told = avae_config_from_diffusers(beside)
    return replace(config, norm_num_groups=told.norm_num_groups, whitening=told.whitening)


def _as_stored(source: WeightSource, config: NetworkConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if source.layout == "single-file":
        assert isinstance(config, AVAEConfig)
        return to_single_file(state, len(config.block_out_channels))
    if source.layout == "published" and source.kind == "fmvt":
        return fmvt_state_to_published(state)
    if source.layout == "published" and source.kind == "ctclip":
        return ctclip_state_to_published(state)
    return dict(state)


def _as_ours(
    source: WeightSource, config: NetworkConfig, stored: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    if source.layout == "single-file":
        assert isinstance(config, AVAEConfig)
        return from_single_file(stored, like, len(config.block_out_channels))
    if source.layout == "published" and source.kind == "fmvt":
        return fmvt_state_from_published(stored)
    if source.layout == "published" and source.kind == "ctclip":
        return ctclip_state_from_published(stored, like)
    return dict(stored)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
