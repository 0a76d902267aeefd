"""Sharing folders of one network: ``config.yaml``, ``model.safetensors``, tokenizer files, a model card."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ctflow.checkpoint.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_exactly,
    read_config,
    read_json,
    read_safetensors,
    write_safetensors,
)
from ctflow.config import config_to_yaml
from ctflow.config.encoders import AVAEConfig, CTCLIPConfig
from ctflow.config.models import FMvTConfig
from ctflow.errors import WeightsError
from ctflow.models.avae import AVAE
from ctflow.models.ctclip import CTCLIP
from ctflow.models.fmvt import FMvT
from ctflow.models.text import TextEncoder, TextMode
from ctflow.models.tokenizer import ReportTokenizer

CARD_FILE = "README.md"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"


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


def load_avae(folder: Path | str) -> AVAE:
    """Read an A-VAE's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: A file is missing or damaged, or keys are missing, extra or misshapen (all are listed).
    """
    model = AVAE(read_config(folder, AVAEConfig))
    load_exactly(model.net, read_safetensors(Path(folder) / WEIGHTS_FILE), str(folder))
    return model.eval()


def save_fmvt(folder: Path | str, model: FMvT, card: str = "", half: bool = False) -> Path:
    """Write an FMvT as a sharing folder; arguments as in ``save_avae``."""
    return _write_folder(folder, model.config, model, card, half)


def load_fmvt(folder: Path | str) -> FMvT:
    """Read an FMvT's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: See ``load_avae``.
    """
    model = FMvT(read_config(folder, FMvTConfig))
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
    folder = _write_folder(folder, model.config, model, card, half)
    if tokenizer is not None:
        (folder / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    return folder


def load_ctclip(folder: Path | str) -> CTCLIP:
    """Read a CT-CLIP's sharing folder; float32, on the CPU, in evaluation mode.

    Raises:
        WeightsError: See ``load_avae``.
    """
    model = CTCLIP(read_config(folder, CTCLIPConfig))
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


def _write_folder(folder: Path | str, config: object, module: nn.Module, card: str, half: bool) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
    write_safetensors(folder / WEIGHTS_FILE, module.state_dict(), half)
    if card:
        (folder / CARD_FILE).write_text(card.rstrip() + "\n", encoding="utf-8")
    return folder
