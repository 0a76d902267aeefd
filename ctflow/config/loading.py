"""YAML files and ``key=value`` overrides merged into a typed dataclass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ctflow.errors import ConfigError
from ctflow.shipped import SHIPPED_CONFIGS, shipped_path

SchemaT = TypeVar("SchemaT")
BASE_KEY = "base"


def load_config(
    schema: type[SchemaT], file: Path | str | None = None, overrides: Sequence[str] = ()
) -> SchemaT:
    """Defaults of ``schema``, then the file (and the files its ``base:`` names), then the overrides.

    Args:
        schema: A dataclass type; its ``__post_init__`` checks the values.
        file: A YAML file, maybe a shipped one (``configs/train/vae.yaml``); a top-level ``base: other.yaml``
            (relative to it) is merged first.
        overrides: ``key=value`` with dotted keys.

    Returns:
        An instance of ``schema``.

    Raises:
        ConfigError: An unknown key (the nearest valid one is named), a wrong type, an impossible value.
    """
    config = OmegaConf.structured(schema)
    layers: list[tuple[str, DictConfig]] = _file_layers(shipped_path(file)) if file else []
    for text in overrides:
        if "=" not in text.lstrip("="):
            raise ConfigError(
                f"argument {text!r}", "key=value", "see --help for the flags; all else is key=value"
            )
        layers.append((f"argument {text!r}", OmegaConf.from_dotlist([text])))
    for origin, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except ConfigKeyError as error:
            raise _unknown_key(origin, schema, error) from None
        except OmegaConfBaseException as error:
            key = error.full_key or error.key
            raise ConfigError(f"{origin}: {key}: {error.msg}".split("\n")[0]) from None
    try:
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"configuration of {schema.__name__}: {error}") from error


def config_to_yaml(config: Any) -> str:
    """The YAML text that ``load_config`` reads back to an equal dataclass."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _file_layers(file: Path) -> list[tuple[str, DictConfig]]:
    if not file.is_file():
        raise ConfigError(
            f"no configuration file at {file}", "a YAML file", f"the shipped ones are in {SHIPPED_CONFIGS}"
        )
    try:
        layer = OmegaConf.load(file)
    except Exception as error:  # YAML's own errors have no common base below Exception
        raise ConfigError(f"{file} is not readable as YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{file} holds a {type(layer).__name__}", "keys and values")
    base = layer.pop(BASE_KEY, None)
    below = _file_layers(file.parent / base) if base else []
    return [*below, (str(file), layer)]


def _unknown_key(origin: str, schema: type, error: ConfigKeyError) -> ConfigError:
    key = str(error.full_key or error.key)
    near = difflib.get_close_matches(key, _dotted_keys(schema), n=1, cutoff=0.0)
    hint = f"did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{origin}: unknown key {key!r}", f"a key of {schema.__name__}", hint)


def _dotted_keys(schema: type, prefix: str = "") -> list[str]:
    config = OmegaConf.structured(schema)
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name in node:
            keys.append(prefix + str(name))
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                walk(child, f"{prefix}{name}.")

    walk(config, prefix)
    assert dataclasses.is_dataclass(schema)
    return keys
