"""Sharing folders: ``config.yaml``, ``model.safetensors``, a model card; nothing that needs unpickling.

A whole system is a folder of such folders (``avae/``, ``fmvt/``, ``clip/``) and a ``config.yaml``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctflow.config import config_to_yaml, load_config
from ctflow.config.encoders import AVAEConfig, CTCLIPConfig
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import WeightsError
from ctflow.models.avae import AVAE
from ctflow.models.ctclip import CTCLIP
from ctflow.models.fmvt import FMvT
from ctflow.models.text import TextEncoder, TextMode
from ctflow.models.tokenizer import ReportTokenizer

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"
AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER = "avae", "fmvt", "clip"

ConfigT = TypeVar("ConfigT")


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
    return _save(folder, model.config, model.net, card, half)


def load_avae(folder: Path | str) -> AVAE:
    """Read an A-VAE's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: A file is missing or damaged, or keys are missing, extra or misshapen (all are listed).
    """
    model = AVAE(_read_config(folder, AVAEConfig))
    load_exactly(model.net, read_safetensors(Path(folder) / WEIGHTS_FILE), str(folder))
    return model.eval()


def save_fmvt(folder: Path | str, model: FMvT, card: str = "", half: bool = False) -> Path:
    """Write an FMvT as a sharing folder; arguments as in ``save_avae``."""
    return _save(folder, model.config, model, card, half)


def load_fmvt(folder: Path | str) -> FMvT:
    """Read an FMvT's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: See ``load_avae``.
    """
    model = FMvT(_read_config(folder, FMvTConfig))
    load_exactly(model, read_safetensors(Path(folder) / WEIGHTS_FILE), str(folder))
    return model.eval()


def save_ctclip(
    folder: Path | str,
    model: CTCLIP,
    tokenizer: ReportTokenizer | None = None,
    card: str = "",
    half: bool = False,
) -> Path:
    """Write a CT-CLIP and its tokenizer as a sharing folder; other arguments as in ``save_avae``."""
    folder = _save(folder, model.config, model, card, half)
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    return folder


def load_ctclip(folder: Path | str) -> CTCLIP:
    """Read a CT-CLIP's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: See ``load_avae``.
    """
    model = CTCLIP(_read_config(folder, CTCLIPConfig))
    load_exactly(model, read_safetensors(Path(folder) / WEIGHTS_FILE), str(folder))
    return model.eval()


def load_tokenizer(folder: Path | str, max_tokens: int) -> ReportTokenizer:
    """Read ``tokenizer.json``, or else a published BERT's ``vocab.txt``; nothing is ever fetched.

    Args:
        folder: Holds one of the two files. Beside ``vocab.txt``, ``do_lower_case`` of a
            ``tokenizer_config.json`` is honoured.
        max_tokens: See ``ReportTokenizer``.

    Raises:
        WeightsError: Neither file is there, or it is no BERT tokenizer.
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


def load_text_encoder(folder: Path | str, mode: TextMode = "tokens") -> TextEncoder:
    """Read a CT-CLIP sharing folder as the frozen encoder of reports.

    Raises:
        WeightsError: See ``load_avae``; also where the folder holds no tokenizer.
    """
    clip = load_ctclip(folder)
    return TextEncoder(clip, load_tokenizer(folder, clip.config.max_tokens), mode)


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
    """Write a full checkpoint folder; arguments as in ``save_avae``."""
    folder = Path(folder)
    save_avae(folder / AVAE_FOLDER, system.avae, half=half)
    save_fmvt(folder / FMVT_FOLDER, system.fmvt, half=half)
    save_ctclip(folder / CLIP_FOLDER, system.text_encoder.clip, system.text_encoder.tokenizer, half=half)
    return write_system_config(folder, system.config, card)


def write_system_config(folder: Path | str, config: SystemConfig, card: str = "") -> Path:
    """Make a folder that holds ``avae/``, ``fmvt/`` and ``clip/`` a full checkpoint folder.

    Raises:
        WeightsError: One of the three is missing.
    """
    folder = Path(folder)
    _check_parts(folder)
    (folder / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    if card:
        (folder / CARD_FILE).write_text(card.rstrip() + "\n", encoding="utf-8")
    return folder


def load_system(folder: Path | str) -> System:
    """Read a full checkpoint folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: A part is missing (see ``load_avae``), or the parts do not fit one another.
    """
    folder = Path(folder)
    _check_parts(folder)
    config = _read_config(folder, SystemConfig)
    encoder = load_text_encoder(folder / CLIP_FOLDER, config.text_mode)  # type: ignore[arg-type]
    system = System(config, load_avae(folder / AVAE_FOLDER), load_fmvt(folder / FMVT_FOLDER), encoder)
    _check_fit(folder, system)
    return system


def folder_fingerprint(folder: Path | str) -> str:
    """SHA-256 over names and bytes of all files of a sharing or full folder, for provenance records."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != CARD_FILE):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_parts(folder: Path) -> None:
    parts = (AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER)
    missing = [part for part in parts if not (folder / part / WEIGHTS_FILE).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {', '.join(f'{part}/{WEIGHTS_FILE}' for part in missing)}",
            f"a checkpoint folder with {', '.join(parts)}, each with {CONFIG_FILE} and {WEIGHTS_FILE}",
            "import published parts with `python -m ctflow.weights import`, or export your own training run",
        )


def _check_fit(folder: Path, system: System) -> None:
    avae, fmvt, config = system.avae.config, system.fmvt.config, system.config
    problems = []
    if avae.latent_channels != fmvt.latent_channels:
        problems.append(
            f"the A-VAE has {avae.latent_channels} latent channels, the FMvT {fmvt.latent_channels}"
        )
    if config.image_size != avae.downscale * fmvt.input_size[1]:
        problems.append(
            f"image_size={config.image_size}, but the FMvT's latents of {fmvt.input_size[1]} "
            f"times the A-VAE's {avae.downscale} are {avae.downscale * fmvt.input_size[1]}"
        )
    if system.text_encoder.dim != fmvt.text_dim:
        problems.append(f"the text encoder's width is {system.text_encoder.dim}, the FMvT's {fmvt.text_dim}")
    if problems:
        raise WeightsError(f"the parts of {folder} do not fit: " + "; ".join(problems))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        WeightsError: The file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} is not readable as JSON: {error}", "a JSON file") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}", "a JSON object")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(
            f"no weight file at {path}", f"a sharing folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not readable: {error}", "a whole safetensors file", "copy it again"
        ) from None


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy ``state`` into ``module``, float16 widened to the module's dtype.

    Args:
        module: Receives the values.
        state: One tensor for every parameter and buffer of ``module``.
        origin: Named in errors.

    Raises:
        WeightsError: Lists every missing, extra and misshapen key.
    """
    expected = module.state_dict()
    problems = key_problems({k: v.shape for k, v in expected.items()}, {k: v.shape for k, v in state.items()})
    if problems:
        raise WeightsError(f"{origin} does not fit its configuration:\n" + "\n".join(problems))
    module.load_state_dict(dict(state), strict=True)


def key_problems(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> list[str]:
    """One line per key that is missing, extra or of another shape."""
    lines = [f"  missing key {k} {list(s)}" for k, s in expected.items() if k not in found]
    lines += [f"  extra key {k} {list(s)}" for k, s in found.items() if k not in expected]
    for key, shape in expected.items():
        if key in found and tuple(found[key]) != tuple(shape):
            lines.append(f"  misshapen key {key}: {list(found[key])}, expected {list(shape)}")
    return lines


def _save(folder: Path | str, config: object, module: nn.Module, card: str, half: bool) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    write_safetensors(folder / WEIGHTS_FILE, module.state_dict(), half)
    if card:
        (folder / CARD_FILE).write_text(card.rstrip() + "\n", encoding="utf-8")
    return folder


def write_safetensors(path: Path, state: Mapping[str, Tensor], half: bool = False) -> None:
    """Write tensors under a temporary name and rename, so that a killed write leaves no half file."""
    tensors = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        tensors[name] = value.half() if half and value.is_floating_point() else value.clone()
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def _read_config(folder: Path | str, schema: type[ConfigT]) -> ConfigT:
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        expected = f"a sharing folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise WeightsError(
            f"no {CONFIG_FILE} in {folder}", expected, "published weights come in by ctflow.weights"
        )
    return load_config(schema, path)
