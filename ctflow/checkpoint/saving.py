"""Writing the sharing folder of one network: configuration, weights, tokenizer, model card."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ctflow.checkpoint.files import CARD_FILE, CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, write_safetensors
from ctflow.config import config_to_yaml
from ctflow.models.avae import AVAE
from ctflow.models.ctclip import CTCLIP
from ctflow.models.fmvt import FMvT
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
