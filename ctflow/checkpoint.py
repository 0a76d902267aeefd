"""Sharing folders: ``config.yaml`` and ``model.safetensors``, nothing that needs unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctflow.config import config_to_yaml, load_config
from ctflow.config.encoders import AVAEConfig
from ctflow.errors import WeightsError
from ctflow.models.avae import AVAE

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

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
