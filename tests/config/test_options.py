"""No dead option: a shipped file or a test sets every key of every command."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ctflow.config.accuracy import AccuracyConfig
from ctflow.config.bench import BenchConfig
from ctflow.config.challenge import ChallengeConfig
from ctflow.config.commands import ConvertConfig, GenerateConfig
from ctflow.config.data import CheckConfig, EncodeConfig
from ctflow.config.demo import DemoConfig
from ctflow.config.evaluation import EvalConfig
from ctflow.config.pack import PackConfig
from ctflow.config.phantom import PhantomConfig
from ctflow.config.prep import IngestConfig
from ctflow.config.system import SystemConfig
from ctflow.config.training import TrainConfig

SCHEMAS = [
    TrainConfig, ChallengeConfig, ConvertConfig, GenerateConfig, IngestConfig, EncodeConfig, CheckConfig,
    PhantomConfig, PackConfig, BenchConfig, SystemConfig, DemoConfig, EvalConfig, AccuracyConfig,
]  # fmt: skip


def options(schema: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    """Every key of a schema as a path of names, and the class that holds it."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kinds = (hints[field.name], *get_args(hints[field.name]))
        kind = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
        if kind is None:
            yield (*path, field.name), schema
        else:
            yield from options(kind, (*path, field.name))


def keys_of(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that a YAML file sets."""
    for name, value in node.items():
        if isinstance(value, DictConfig):
            yield from keys_of(value, (*path, str(name)))
        else:
            yield (*path, str(name))


def keys_in_tests(root: Path) -> Iterator[tuple[str, ...]]:
    """What tests set: ``key=value`` and ``--flag`` texts, keyword arguments, keys of dictionaries."""
    for file in sorted((root / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from (tuple(key.split(".")) for key in re.findall(r"([a-z_0-9.]+)=", node.value))
                yield from ((flag,) for flag in re.findall(r"^--([a-z]+)$", node.value))
            elif isinstance(node, ast.keyword) and node.arg:
                yield (node.arg,)
            elif isinstance(node, ast.Dict):
                names = [k.value for k in node.keys if isinstance(k, ast.Constant)]
                yield from (tuple(name.split(".")) for name in names if isinstance(name, str))


def dead_options(schemas: list[type], root: Path) -> set[str]:
    """Keys that no shipped file and no test sets, as ``Class.key``; the last two names of a path count."""
    files = [p for folder in ("configs", "checkpoints") for p in sorted((root / folder).rglob("*.yaml"))]
    used = {keys[-2:] for file in files for keys in keys_of(OmegaConf.load(file))}
    used |= {keys[-2:] for keys in keys_in_tests(root)}
    return {
        f"{owner.__name__}.{path[-1]}"
        for schema in schemas
        for path, owner in options(schema)
        if path[-2:] not in used and path[-1:] not in used
    }


def test_every_option_is_set_somewhere(repo_root: Path) -> None:
    assert not dead_options(SCHEMAS, repo_root)


@dataclasses.dataclass
class Stranger:
    """Has an option that nothing sets."""

    seed: int = 0
    never_heard_of: int = 0


def test_an_option_that_nothing_sets_is_found(repo_root: Path) -> None:
    assert dead_options([Stranger], repo_root) == {"Stranger.never_heard_of"}
