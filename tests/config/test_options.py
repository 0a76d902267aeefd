"""No dead option: a shipped file or a test sets every key of every command."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

import ctflow.config
from ctflow.config.accuracy import AccuracyConfig
from ctflow.config.app import AppConfig
from ctflow.config.bench import BenchConfig
from ctflow.config.challenge import ChallengeConfig
from ctflow.config.commands import ConvertConfig, GenerateConfig
from ctflow.config.data import CheckConfig, EncodeConfig, MergeConfig, RedrawConfig
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
    AppConfig, MergeConfig, RedrawConfig,
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


@dataclasses.dataclass
class SetByTests:
    """What tests set.

    Attributes:
        keys: The last two names of each ``a.key=value``; one name where there are no more.
        flags: Names of ``--flag``, the short form of a key.
        fields: Class and field of ``Class(field=…)``.
        passed: Names that helpers of the tests, ``replace``, ``setattr`` and dictionaries pass on.
    """

    keys: set[tuple[str, ...]]
    flags: set[str]
    fields: set[tuple[str, str]]
    passed: set[str]

    def sets(self, owner: str, path: tuple[str, ...]) -> bool:
        """Whether a test sets the option."""
        name = path[-1]
        return (
            path[-2:] in self.keys
            or (owner, name) in self.fields
            or name in self.flags
            or name in self.passed
        )


def set_by_tests(root: Path) -> SetByTests:
    """Read from the sources of the tests; a field of equal name of another class does not count."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted((root / "tests").rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    helpers = {node.name for node in nodes if isinstance(node, ast.FunctionDef)} | {"replace"}
    found = SetByTests(set(), set(), set(), set())
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.keys |= {tuple(key.split("."))[-2:] for key in re.findall(r"([a-z_0-9.]+)=", node.value)}
            found.flags |= set(re.findall(r"^--([a-z]+)$", node.value))
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            named = {keyword.arg for keyword in node.keywords if keyword.arg}
            found.passed |= named if called in helpers else set()
            found.fields |= {(called, name) for name in named}
            if called == "setattr":
                found.passed |= {str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant)}
        elif isinstance(node, ast.Dict):
            names = [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]
            found.keys |= {tuple(name.split("."))[-2:] for name in names if "." in name}
            found.passed |= {name for name in names if "." not in name}
    return found


def dead_options(schemas: list[type], root: Path) -> set[str]:
    """Keys that no shipped file and no test sets, as ``Class.key``; the last two names of a path count."""
    files = [p for folder in ("configs", "checkpoints") for p in sorted((root / folder).rglob("*.yaml"))]
    shipped = {keys[-2:] for file in files for keys in keys_of(OmegaConf.load(file))}
    tests = set_by_tests(root)
    # A network's configuration is a file of its own beside its weights: there its keys have one name.
    return {
        f"{owner.__name__}.{path[-1]}"
        for schema in schemas
        for path, owner in options(schema)
        if path[-2:] not in shipped
        and not (path[-2:-1] == ("network",) and path[-1:] in shipped)
        and not tests.sets(owner.__name__, path)
    }


def configurations(schema: type) -> Iterator[type]:
    """A schema and all that it holds."""
    yield schema
    for hint in get_type_hints(schema).values():
        for kind in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                yield from configurations(kind)


def test_every_configuration_is_looked_at() -> None:
    names = [module.name for module in pkgutil.iter_modules(ctflow.config.__path__)]
    modules = [importlib.import_module(f"ctflow.config.{name}") for name in names]
    defined = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__name__.endswith("Config")
    }
    seen = {kind for schema in SCHEMAS for own in configurations(schema) for kind in own.__mro__}
    assert defined <= seen


def test_every_option_is_set_somewhere(repo_root: Path) -> None:
    assert not dead_options(SCHEMAS, repo_root)


@dataclasses.dataclass
class Stranger:
    """Has an option that nothing sets."""

    never_heard_of: int = 0
    start_new_session: bool = False  # tests pass it to another class


def test_an_option_that_nothing_sets_is_found(repo_root: Path) -> None:
    assert dead_options([Stranger], repo_root) == {"Stranger.never_heard_of", "Stranger.start_new_session"}
