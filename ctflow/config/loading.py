"""YAML files and ``key=value`` overrides merged into a typed dataclass."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ctflow.config.values import (
    expected,
    node_at,
    one_line,
    parse_value,
    read_yaml,
    refuse_infinite,
    refuse_interpolations,
)
from ctflow.errors import ConfigError
from ctflow.shipped import SHIPPED_CONFIGS, shipped_path

SchemaT = TypeVar("SchemaT")
BASE_KEY = "base"
Override = str | tuple[str, Any]
"""``key=value`` as typed, or a key and its value."""


def load_config(
    schema: type[SchemaT], file: Path | str | None = None, overrides: Sequence[Override] = ()
) -> SchemaT:
    """Defaults of ``schema``, then the file (and the files its ``base:`` names), then the overrides.

    Keys of type text take what is written: ``name=007`` is not a number. Nothing is looked up in the
    environment: a file may be a stranger's.

    Args:
        schema: A dataclass type; its ``__post_init__`` checks the values.
        file: A YAML file, maybe a shipped one (``configs/train/vae.yaml``); a top-level ``base: other.yaml``
            (relative to it) is merged first.
        overrides: ``key=value`` with dotted keys, or pairs of a key and its value.

    Returns:
        An instance of ``schema``.

    Raises:
        ConfigError: An unknown key (the nearest valid ones are named), a wrong type, an impossible value.
    """
    structure = config = OmegaConf.structured(schema)
    layers = _file_layers(shipped_path(file), structure) if file else []
    layers += [_override_layer(override, structure) for override in overrides]
    for origin, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except ConfigKeyError as error:
            raise _unknown_key(origin, schema, error) from None
        except OmegaConfBaseException as error:
            raise _wrong_type(origin, structure, layer, error) from None
    refuse_infinite(config, f"configuration of {schema.__name__}")
    try:
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"configuration of {schema.__name__}: {error}") from error


def typed(schema: type[SchemaT], values: dict[str, Any], origin: str) -> SchemaT:
    """Plain values as a dataclass; nothing in them is looked up.

    Raises:
        ConfigError: An interpolation, an unknown key, a wrong type, an impossible value.
    """
    refuse_interpolations(values, origin)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: {one_line(error)}", f"the keys of {schema.__name__}") from None


def config_to_yaml(config: Any) -> str:
    """The YAML text that ``load_config`` reads back to an equal dataclass."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _override_layer(override: Override, structure: Any) -> tuple[str, DictConfig]:
    if isinstance(override, tuple):
        key, value = override
        if isinstance(value, str):
            value = parse_value(value, node_at(structure, key))
        origin = key
    else:
        origin = f"argument {override!r}"
        if "=" not in override.lstrip("="):
            raise ConfigError(origin, "key=value", "see --help for the flags; all else is key=value")
        key, text = override.split("=", 1)
        node = node_at(structure, key)
        try:
            value = parse_value(text, node)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error.found}", error.expected, error.action) from None
    layer: Any = value
    for name in reversed(key.split(".")):
        layer = {name: layer}
    return origin, OmegaConf.create(layer)


def _file_layers(file: Path, structure: Any) -> list[tuple[str, DictConfig]]:
    if not file.is_file():
        raise ConfigError(f"no configuration file at {file}", "a YAML file", _where_it_may_be(file))
    layer = read_yaml(file, structure)
    if not isinstance(layer, dict):
        raise ConfigError(f"{file} holds a {type(layer).__name__}", "keys and values")
    base = layer.pop(BASE_KEY, None)
    refuse_interpolations(layer, str(file))
    below = _file_layers(file.parent / str(base), structure) if base else []
    return [*below, (str(file), OmegaConf.create(layer))]


def _where_it_may_be(file: Path) -> str:
    here = "" if file.is_absolute() else f"relative paths begin at the current folder, {Path.cwd()}; "
    return f"{here}the shipped ones are in {SHIPPED_CONFIGS}"


def _wrong_type(origin: str, structure: Any, layer: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    key = str(error.full_key or error.key or next(iter(layer)))
    value = OmegaConf.select(layer, key)
    node = node_at(structure, key)
    listed = isinstance(node, ListConfig) and isinstance(value, str)
    return ConfigError(
        f"{origin}: {key} is {value!r}", expected(node), f"give {key}=[{value}]" if listed else ""
    )


def _unknown_key(origin: str, schema: type, error: ConfigKeyError) -> ConfigError:
    key = str(error.full_key or error.key)
    keys = _dotted_keys(schema)
    near = nearest_keys(key, keys)
    place = key.rpartition(".")[0]
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == place]
    listed = f"; {place} has {', '.join(beside)}" if place and beside else ""
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"see --help for all keys{listed}"
    return ConfigError(f"{origin}: unknown key {key!r}", f"a key of {schema.__name__}", hint)


def nearest_keys(key: str, keys: Sequence[str]) -> list[str]:
    """Valid keys that an unknown one may mean, most likely first; none where nothing resembles it.

    The same last name elsewhere (``lr`` for ``flow.optimizer.lr``) goes before a similar spelling, and a
    similar last name in the same place before one elsewhere.
    """
    place, _, last = key.rpartition(".")
    same = [k for k in keys if k.rpartition(".")[2] == last]
    if same:
        return sorted(same, key=lambda k: -_likeness(k, key))[:3]
    beside = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == place}
    if names := difflib.get_close_matches(last, beside, n=1, cutoff=0.75):
        return [beside[names[0]]]
    similar = [k for k in keys if _likeness(k.rpartition(".")[2], last) >= 0.8]
    return sorted(similar, key=lambda k: -_likeness(k, key))[:3]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


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
