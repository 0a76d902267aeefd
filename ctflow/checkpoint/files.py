"""Reading and writing of tensors and configurations: whole files only, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Size, Tensor, nn

from ctflow.config import load_config
from ctflow.errors import WeightsError
from ctflow.files import describe_stranger, replaced

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"
AVAE_FOLDER, FMVT_FOLDER, CLIP_FOLDER = "avae", "fmvt", "clip"

ConfigT = TypeVar("ConfigT")


def read_config(folder: Path | str, schema: type[ConfigT]) -> ConfigT:
    """The ``config.yaml`` of a sharing folder.

    Raises:
        WeightsError: There is none.
        ConfigError: It has unknown keys or wrong types.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        expected = f"a sharing folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise WeightsError(
            f"no {CONFIG_FILE} in {folder}", expected, "published weights come in by ctflow.weights"
        )
    return load_config(schema, path)


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
        raise unreadable_weights(path, error) from None


def unreadable_weights(path: Path, error: Exception) -> WeightsError:
    """The fault of a weight file, in words of our own: those of a library may advise to run code in it."""
    what = describe_stranger(path)
    if not what and isinstance(error, SafetensorError):
        what = f"is cut or damaged ({error})"
    what = what or f"is cut, damaged, or holds more than tensors ({type(error).__name__})"
    return WeightsError(
        f"{path} is not readable: it {what}",
        "a whole file of tensors and nothing else",
        "fetch or copy it again",
    )


def write_safetensors(path: Path, state: Mapping[str, Tensor], half: bool = False) -> None:
    """Write tensors under a temporary name and rename, so that a killed write leaves no half file."""
    tensors = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        tensors[name] = value.half() if half and value.is_floating_point() else value.clone()
    with replaced(path) as temporary:
        temporary.write_bytes(b"")
        mode = temporary.stat().st_mode  # as the umask says; the library leaves files to the owner alone
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise WeightsError(f"{path} cannot be written: {error}", "room on the disk") from None
        temporary.chmod(mode)


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


def key_problems(expected: Mapping[str, Size], found: Mapping[str, Size]) -> list[str]:
    """One line per key that is missing, extra or of another shape."""
    lines = [f"  missing key {k} {list(s)}" for k, s in expected.items() if k not in found]
    lines += [f"  extra key {k} {list(s)}" for k, s in found.items() if k not in expected]
    for key, shape in expected.items():
        if key in found and tuple(found[key]) != tuple(shape):
            lines.append(f"  misshapen key {key}: {list(found[key])}, expected {list(shape)}")
    return lines
