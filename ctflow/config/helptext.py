"""The text of ``--help`` for every key: its default, and its sentence in the schema's docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

WIDTH = 110
_INDENT = "    "


def explain_keys(schema: type) -> str:
    """One paragraph per key of a schema, nested schemas with their dotted keys."""
    defaults = OmegaConf.structured(schema)
    return "\n".join(_section(schema(), defaults, ""))


def attribute_docs(schema: type) -> dict[str, str]:
    """The sentences of a dataclass's ``Attributes:`` (Google style), its base classes included."""
    docs: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if dataclasses.is_dataclass(kind) and "Attributes:" in (text := inspect.getdoc(kind) or ""):
            docs |= _parsed(text.split("Attributes:\n", 1)[1], {f.name for f in dataclasses.fields(kind)})
    return docs


def _parsed(text: str, names: set[str]) -> dict[str, str]:
    docs: dict[str, list[str]] = {}
    current: list[str] = []
    for line in textwrap.dedent(text).splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start and start[1] in names:
            current = docs.setdefault(start[1], [])
            line = start[2]
        current.append(line.strip())
    return {name: " ".join(lines).strip().replace("``", "") for name, lines in docs.items()}


def _section(value: Any, defaults: DictConfig, prefix: str) -> list[str]:
    docs = attribute_docs(getattr(value, "EXPLAINED_BY", type(value))) | attribute_docs(type(value))
    lines: list[str] = []
    for field in dataclasses.fields(value):
        key, inner = prefix + field.name, getattr(value, field.name)
        text = docs.get(field.name, "")
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            lines += ["", *textwrap.wrap(f"{key}.*: {text}", WIDTH)]
            lines += _section(inner, defaults[field.name], f"{key}.")
            continue
        lines.append(f"  {key}={_shown(inner)}")
        lines += textwrap.wrap(text, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return lines


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text.removesuffix("\n...").removesuffix("...").strip()
