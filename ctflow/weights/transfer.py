"""Published weights into checkpoint folders, and out again in the published layout."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctflow.checkpoint import (
    AVAE_FOLDER,
    CONFIG_FILE,
    FMVT_FOLDER,
    WEIGHTS_FILE,
    load_tokenizer,
    save_avae,
    save_ctclip,
    save_fmvt,
    write_system_config,
)
from ctflow.checkpoint.files import (
    TOKENIZER_FILE,
    load_exactly,
    read_config,
    read_json,
    write_safetensors,
)
from ctflow.checkpoint.loading import build, inner_module, read_weights, with_channels
from ctflow.checkpoint.sources import PART_FOLDERS, PUBLISHED_CONFIG, PUBLISHED_WEIGHTS, Kind, WeightSource
from ctflow.config.encoders import AVAEConfig
from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import WeightsError
from ctflow.files import file_sha256, replaced
from ctflow.models.avae import AVAE
from ctflow.models.avae_published import avae_config_to_diffusers, to_single_file
from ctflow.models.ctclip import CTCLIP
from ctflow.models.ctclip_published import ctclip_config_to_published, ctclip_state_to_published
from ctflow.models.fmvt import FMvT
from ctflow.models.fmvt_published import fmvt_config_to_published, fmvt_state_to_published

log = logging.getLogger(__name__)

LICENCES: dict[Kind, str] = {
    "fmvt": "CTFlow's repository states no licence; its transformer was trained on CT-RATE (CC BY-NC-SA 4.0, "
    "non-commercial research). Ask its authors before any use beyond research.",
    "avae": "FLUX.1 [schnell] is Apache-2.0, FLUX.1 [dev] under the FLUX.1 [dev] Non-Commercial License: "
    "which applies depends on where the source file came from.",
    "ctclip": "CT-CLIP is CC BY-NC-SA 4.0: non-commercial, share alike.",
}
PUBLISHED_ROLLOUT = RolloutConfig(
    steps=200,
    solver="euler",
    max_slices=256,
    stop=StopConfig(rule="first_slice", threshold=0.1, fraction=0.9),
)
"""The published sampling and end test: what an imported transformer starts from."""

KEPT_CONFIG = "published_config.json"
"""Name of that file in an imported part's folder."""

PROVENANCE_NOTE = "imported published weights; the model card of each part names its source file"


@dataclass
class ImportOptions:
    """Options of ``python -m ctflow.weights import``, given as ``key=value``.

    Attributes:
        tokenizer: Folder of CT-CLIP's tokenizer; empty: beside its weights.
        channels: Image channels of the imported A-VAE: 1, 3, or 0 for as stored.
        half: Store as float16.
    """

    tokenizer: str = ""
    channels: int = 0
    half: bool = False


def import_weights(kind: Kind, source: Path | str, dest: Path | str, options: ImportOptions) -> Path:
    """Bring a published part into a checkpoint folder.

    Args:
        kind: Which network.
        source: Published folder or file.
        dest: Checkpoint folder; the part becomes its sub-folder ``fmvt``, ``avae`` or ``clip`` (which may
            also be named itself). When the third part arrives, ``config.yaml`` is written and the folder can
            generate.
        options: See ``ImportOptions``.

    Returns:
        The part's folder.

    Raises:
        WeightsError: See ``read_weights``.
    """
    weights = read_weights(source, kind)
    if kind == "avae" and options.channels:
        weights = with_channels(weights, options.channels)
    model = build(weights.config)
    load_exactly(inner_module(model), weights.state, str(source))
    dest = checkpoint_folder(kind, dest)
    folder = dest / PART_FOLDERS[kind]
    card = _card(kind, weights.source.weights)
    if isinstance(model, FMvT):
        save_fmvt(folder, model, card, options.half)
    elif isinstance(model, AVAE):
        save_avae(folder, model, card, options.half)
    else:
        _save_with_tokenizer(folder, model, weights.source.weights.parent, card, options)
    _keep_published_config(folder, weights.source)
    complete_system(dest)
    return folder


def checkpoint_folder(kind: Kind, dest: Path | str) -> Path:
    """The checkpoint folder meant by ``dest``: itself, or its parent where it names the part."""
    dest = Path(dest)
    return dest.parent if dest.name == PART_FOLDERS[kind] else dest


def complete_system(folder: Path | str) -> bool:
    """Write the ``config.yaml`` of a full checkpoint folder once its three parts are there.

    Returns:
        Whether they are.

    Raises:
        WeightsError: The parts do not fit one another.
    """
    folder = Path(folder)
    if not all((folder / part / WEIGHTS_FILE).is_file() for part in PART_FOLDERS.values()):
        return False
    avae = read_config(folder / AVAE_FOLDER, AVAEConfig)
    fmvt = read_config(folder / FMVT_FOLDER, FMvTConfig)
    config = SystemConfig(
        image_size=avae.downscale * fmvt.input_size[1],
        text_mode="pooled" if fmvt.text_tokens == 1 else "tokens",
        rollout=PUBLISHED_ROLLOUT if fmvt.scrambled_heads else RolloutConfig(),
        provenance={"origin": PROVENANCE_NOTE}
        | {f"{part}_sha256": file_sha256(folder / part / WEIGHTS_FILE) for part in PART_FOLDERS.values()},
    )
    if (folder / CONFIG_FILE).is_file():  # spacings and sampling may have been set by hand
        kept = read_config(folder, SystemConfig)
        kept.image_size, kept.provenance = config.image_size, config.provenance
        config = kept
    write_system_config(folder, config)
    return True


def export_weights(kind: Kind, source: Path | str, dest: Path | str) -> Path:
    """Write a part in its published layout again.

    Args:
        kind: Which network.
        source: Anything that ``read_weights`` reads.
        dest: A folder; or a ``.safetensors`` file for FLUX's single-file layout, a ``.pt`` for CT-CLIP alone.

    Returns:
        The weight file.

    Raises:
        WeightsError: See ``read_weights``; also where the published layout cannot express the model.
    """
    weights, dest = read_weights(source, kind), Path(dest)
    config, state = weights.config, {key: value.float() for key, value in weights.state.items()}
    kept = _kept_config(weights.source)
    if isinstance(config, FMvTConfig):
        return _write_published(dest, fmvt_config_to_published(config, kept), fmvt_state_to_published(state))
    if isinstance(config, AVAEConfig):
        if dest.suffix != ".safetensors":
            return _write_published(dest, avae_config_to_diffusers(config, kept), state)
        dest.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(dest, to_single_file(state, len(config.block_out_channels)))
        return dest
    published = ctclip_config_to_published(config, kept)
    return _export_ctclip(published, weights.state, weights.source.weights.parent, dest)


def _keep_published_config(folder: Path, source: WeightSource) -> None:
    """Copy a published ``config.json`` to the weights, for entries that our configuration does not have."""
    (folder / KEPT_CONFIG).unlink(missing_ok=True)
    if kept := _kept_config(source):
        (folder / KEPT_CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _kept_config(source: WeightSource) -> dict[str, Any]:
    """The published ``config.json`` that weights came with, itself or kept by an import; else empty."""
    if source.layout == "own":
        kept = source.weights.parent / KEPT_CONFIG
        return read_json(kept) if kept.is_file() else {}
    return read_json(source.config) if source.config is not None else {}


def _export_ctclip(
    published: dict[str, Any], state: dict[str, torch.Tensor], source: Path, dest: Path
) -> Path:
    file = dest if dest.suffix == ".pt" else dest / "ctclip.pt"
    widened = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    with replaced(file) as temporary:
        torch.save({k: v.clone() for k, v in ctclip_state_to_published(widened).items()}, temporary)
    if file.parent == dest:
        (dest / PUBLISHED_CONFIG).write_text(json.dumps(published, indent=1) + "\n", encoding="utf-8")
        if (source / TOKENIZER_FILE).is_file():
            (dest / TOKENIZER_FILE).write_bytes((source / TOKENIZER_FILE).read_bytes())
    return file


def _write_published(folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PUBLISHED_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / PUBLISHED_WEIGHTS, state)
    return folder / PUBLISHED_WEIGHTS


def _save_with_tokenizer(
    folder: Path, model: nn.Module, beside: Path, card: str, options: ImportOptions
) -> None:
    assert isinstance(model, CTCLIP)
    try:
        place = Path(options.tokenizer) if options.tokenizer else beside
        tokenizer = load_tokenizer(place, model.config.max_tokens)
    except WeightsError:
        if options.tokenizer:
            raise
        log.warning("no tokenizer beside the weights: import again with tokenizer=FOLDER to encode reports")
        tokenizer = None
    save_ctclip(folder, model, tokenizer, card, options.half)


def _card(kind: Kind, source: Path) -> str:
    names = {"fmvt": "CTFlow transformer", "avae": "FLUX autoencoder", "ctclip": "CT-CLIP"}
    return (
        f"# {names[kind]}, imported\n\n"
        f"- source file: `{source.name}`, sha256 `{file_sha256(source)}`\n"
        f"- licence: {LICENCES[kind]}\n"
        "- converted by `python -m ctflow.weights import`; docs/published-weights.md says what is verified.\n"
    )
