"""Typed configs to plain dictionaries and back: Lightning checkpoints hold nothing but plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from ctflow.config.loading import typed

ConfigT = TypeVar("ConfigT")


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass config as nested dictionaries and lists."""
    return asdict(config)


def from_plain(schema: type[ConfigT], values: dict[str, Any] | ConfigT) -> ConfigT:
    """The typed config that ``to_plain`` was given; an instance of ``schema`` is returned as it is."""
    if isinstance(values, schema):
        return values
    return typed(schema, values, "configuration in a checkpoint")  # type: ignore[arg-type]
