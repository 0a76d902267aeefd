"""Sharing folders of one network and of a whole system (``avae/``, ``fmvt/``, ``clip/``, ``config.yaml``)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.checkpoint.card import with_metadata
from ctflow.checkpoint.files import (
    AVAE_FOLDER,
    CARD_FILE,
    CLIP_FOLDER,
    CONFIG_FILE,
    FMVT_FOLDER,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    read_config,
    write_safetensors,
)
from ctflow.checkpoint.loading import load_avae, load_fmvt, load_text_encoder
from ctflow.checkpoint.sources import locate
from ctflow.config import config_to_yaml
from ctflow.config.encoders import AVAEConfig, CTCLIPConfig
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import CTFlowError, WeightsError
from ctflow.files import file_sha256
from ctflow.models.avae import AVAE
from ctflow.models.ctclip import CTCLIP
from ctflow.models.fmvt import FMvT
from ctflow.models.text import TextEncoder
from ctflow.models.tokenizer import ReportTokenizer


def save_avae(folder: Path | str, model: AVAE, card: str = "", half: bool = False) -> Path:
    """Write an A-VAE as a sharing folder.

    Args:
        folder: Made if missing.
        model: The autoencoder; moved nowhere, stored from its current device.
        card: Markdown text of the model card.
        half: Store floating-point weights as float16.

    Returns:
        The folder.
    """
    return _write_folder(folder, model.config, model.net, card, half)


def save_fmvt(folder: Path | str, model: FMvT, card: str = "", half: bool = False) -> Path:
    """Write an FMvT as a sharing folder; arguments as in ``save_avae``."""
    return _write_folder(folder, model.config, model, card, half)


def save_ctclip(
    folder: Path | str,
    model: CTCLIP,
    tokenizer: ReportTokenizer | None = None,
    card: str = "",
    half: bool = False,
) -> Path:
    """Write a CT-CLIP and its tokenizer as a sharing folder; other arguments as in ``save_avae``."""
    folder = _write_folder(folder, model.config, model, card, half)
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    return folder


def _write_folder(folder: Path | str, config: object, module: nn.Module, card: str, half: bool) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    write_safetensors(folder / WEIGHTS_FILE, module.state_dict(), half)
    if card:
        (folder / CARD_FILE).write_text(card.rstrip() + "\n", encoding="utf-8")
    return folder


@dataclass
class System:
    """Everything a report needs to become a volume.

    Attributes:
        config: What belongs to none of the networks.
        avae: Decoder of the slices.
        fmvt: Generator of the blocks.
        text_encoder: Encoder of the reports.
    """

    config: SystemConfig
    avae: AVAE
    fmvt: FMvT
    text_encoder: TextEncoder


def save_system(folder: Path | str, system: System, card: str = "", half: bool = False) -> Path:
    """Write a full checkpoint folder; arguments as in ``save_avae``; the card gets metadata."""
    folder = Path(folder)
    save_avae(folder / AVAE_FOLDER, system.avae, half=half)
    save_fmvt(folder / FMVT_FOLDER, system.fmvt, half=half)
    save_ctclip(folder / CLIP_FOLDER, system.text_encoder.clip, system.text_encoder.tokenizer, half=half)
    return write_system_config(folder, system.config, card)


def write_system_config(folder: Path | str, config: SystemConfig, card: str = "") -> Path:
    """Make a folder that holds ``avae/``, ``fmvt/`` and ``clip/`` a full checkpoint folder.

    Raises:
        WeightsError: One of the three is missing, or they do not fit one another.
    """
    folder = Path(folder)
    _check_parts(folder)
    check_fit(
        config,
        read_config(folder / AVAE_FOLDER, AVAEConfig),
        read_config(folder / FMVT_FOLDER, FMvTConfig),
        read_config(folder / CLIP_FOLDER, CTCLIPConfig),
    )
    (folder / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    (folder / CARD_FILE).write_text(with_metadata(card, config).rstrip() + "\n", encoding="utf-8")
    return folder


def load_system(folder: Path | str) -> System:
    """Read a full checkpoint folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: A part is missing (see ``load_avae``), or the parts do not fit one another.
    """
    folder = Path(folder)
    _check_parts(folder)
    config = read_config(folder, SystemConfig)
    encoder = load_text_encoder(folder / CLIP_FOLDER, mode=config.text_mode)  # type: ignore[arg-type]
    system = System(config, load_avae(folder / AVAE_FOLDER), load_fmvt(folder / FMVT_FOLDER), encoder)
    check_fit(config, system.avae.config, system.fmvt.config, encoder.clip.config)
    return system


def mix(system: System, other: System, origin: str) -> None:
    """Set the FMvT's weights to the mean of two systems' weights.

    Args:
        system: Gets the mean.
        other: A system of the same networks, whose FMvT was trained otherwise or longer.
        origin: Names the other system in errors.

    Raises:
        CTFlowError: The FMvTs differ in shape, or know other latents or other texts.
    """
    own, theirs = system.fmvt.state_dict(), other.fmvt.state_dict()
    differing = [name for name in own if name not in theirs or own[name].shape != theirs[name].shape]
    if system.fmvt.config != other.fmvt.config or differing:
        found = f"the FMvT of {origin} has another architecture"
    elif system.avae.fingerprint() != other.avae.fingerprint():
        found = f"the FMvT of {origin} was trained on the latents of another A-VAE"
    elif not all(own[n].is_floating_point() or torch.equal(own[n], theirs[n]) for n in own):
        found = f"the start head of {origin} has other principal directions"
    elif not _equal(system.text_encoder.clip.state_dict(), other.text_encoder.clip.state_dict()):
        found = f"the FMvT of {origin} was trained on the texts of another text encoder"
    else:
        mean = {name: (own[name] + theirs[name]) / 2 for name in own if own[name].is_floating_point()}
        system.fmvt.load_state_dict(own | mean)
        return
    raise CTFlowError(found, "two trainings of one FMvT, on equal latents and texts", "leave mean_with out")


def mix_decoders(system: System, other: AVAE, share: float, origin: str) -> None:
    """Set the A-VAE's decoder to a mean of two decoders' weights.

    Args:
        system: Gets the mean.
        other: An A-VAE with the system's encoder and whitening, whose decoder was trained on.
        share: Of the other decoder, 0 to 1; 1 takes it as it is.
        origin: Names the other A-VAE in errors.

    Raises:
        CTFlowError: The encoders, their whitening or the decoders' shapes differ.
    """
    own, theirs = system.avae.state_dict(), other.state_dict()
    if (system.avae.fingerprint(), system.avae.config) != (other.fingerprint(), other.config):
        raise CTFlowError(
            f"{origin} has another architecture, encoder or whitening than the checkpoint's A-VAE",
            "an A-VAE whose decoder alone was trained on (autoencoder.train_encoder=false)",
            "the FMvT's latents are of the checkpoint's encoder: give an A-VAE that began as its own",
        )
    system.avae.load_state_dict({name: torch.lerp(own[name], theirs[name], share) for name in own})


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def folder_fingerprint(folder: Path | str) -> str:
    """SHA-256 over names and bytes of what a sharing or full folder loads, for provenance records.

    Model cards and whatever else lies in the folder do not count. A published layout, folder or file, has one
    too: over its weights, its configuration and the tokenizer beside them.

    Raises:
        WeightsError: Nothing is there that could be loaded.
    """
    folder, digest = Path(folder), hashlib.sha256()
    places = (folder, *(folder / part for part in (AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER)))
    names = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, VOCABULARY_FILE)
    paths = [place / name for place in places for name in names if (place / name).is_file()]
    if not any(path.name in (CONFIG_FILE, WEIGHTS_FILE) for path in paths):
        source = locate(folder)
        folder = source.weights.parent
        beside = [folder / name for name in (TOKENIZER_FILE, VOCABULARY_FILE)]
        paths = [p for p in (source.weights, source.config, *beside) if p is not None and p.is_file()]
    for path in sorted(paths):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def part_folder(folder: Path | str, part: str) -> Path:
    """A part of a full checkpoint folder; the folder itself if it is the part, or a published layout.

    Args:
        folder: What was given as the place of a part.
        part: ``AVAE_FOLDER``, ``FMVT_FOLDER`` or ``CLIP_FOLDER``.
    """
    inner = Path(folder) / part
    return inner if (inner / CONFIG_FILE).is_file() else Path(folder)


def _check_parts(folder: Path) -> None:
    parts = (AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER)
    missing = [part for part in parts if not (folder / part / WEIGHTS_FILE).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {', '.join(f'{part}/{WEIGHTS_FILE}' for part in missing)}",
            f"a checkpoint folder with {', '.join(parts)}, each with {CONFIG_FILE} and {WEIGHTS_FILE}",
            "import published parts with `python -m ctflow.weights import`, or export your own training run",
        )


def check_fit(system: SystemConfig, avae: AVAEConfig, fmvt: FMvTConfig, clip: CTCLIPConfig) -> None:
    """Make sure that the parts of a system were made for one another.

    Raises:
        WeightsError: Lists every mismatch.
    """
    problems = []
    if avae.latent_channels != fmvt.latent_channels:
        problems.append(
            f"the A-VAE has {avae.latent_channels} latent channels, the FMvT {fmvt.latent_channels}"
        )
    if system.image_size != avae.downscale * fmvt.input_size[1]:
        problems.append(
            f"image_size={system.image_size}, but the FMvT's latents of {fmvt.input_size[1]} "
            f"times the A-VAE's {avae.downscale} are {avae.downscale * fmvt.input_size[1]}"
        )
    if clip.bert.hidden_size != fmvt.text_dim:
        problems.append(f"the text encoder's width is {clip.bert.hidden_size}, the FMvT's {fmvt.text_dim}")
    if problems:
        raise WeightsError("the parts of the system do not fit: " + "; ".join(problems))
