"""Values by the schema: a key of type text takes its text unchanged, never as a number."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, StringNode
from omegaconf.base import Node
from omegaconf.nodes import BooleanNode, EnumNode, FloatNode, IntegerNode

from ctflow.errors import ConfigError

_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_FLOAT = "tag:yaml.org,2002:float"
_INTEGER = "tag:yaml.org,2002:int"
INTERPOLATION = "${"


def parse_value(text: str, node: Node | None) -> Any:
    """The value of ``key=text``.

    Args:
        text: Behind the ``=``.
        node: What the schema has at the key; None where it has no such key.

    Raises:
        ConfigError: The text is not YAML, and the key is not of type text.
    """
    if isinstance(node, StringNode):
        if text == "null" and node._metadata.optional:
            return None
        return text.replace(INTERPOLATION, "\\" + INTERPOLATION)  # unchanged: nothing is looked up
    try:
        tree = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text!r} is not readable: {one_line(error)}", expected(node), "put it in quotes of the shell"
        ) from None
    return None if tree is None else _constructed(tree, node)


def read_yaml(path: Path, schema: Any) -> Any:
    """The content of a configuration file; texts are unchanged where ``schema`` has text.

    Raises:
        ConfigError: The file is not YAML, or holds an interpolation: it may be a stranger's, and an
            interpolation reads the environment.
    """
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        content = {} if tree is None else _constructed(tree, schema)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {one_line(error)}", "a YAML file") from None
    refuse_interpolations(content, str(path))
    return content


def refuse_interpolations(values: Any, origin: str) -> None:
    """Make sure that no text among plain values asks for something to be looked up.

    Raises:
        ConfigError: One does, such as ``${oc.env:HOME}``.
    """
    for key, value in _leaves(values):
        if isinstance(value, str) and INTERPOLATION in value:
            raise ConfigError(
                f"{origin}: {key} holds the interpolation {value!r}",
                "plain values: nothing is looked up in the environment or elsewhere",
                "write the value itself",
            )


def refuse_infinite(config: Any, origin: str) -> None:
    """Make sure that every number is one.

    Raises:
        ConfigError: Infinite or NaN, such as 1e400.
    """
    for key, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{origin}: {key} is {value}", "a finite number")


def node_at(config: Any, key: str) -> Node | None:
    """The entry of a schema at a dotted key; the element's type for places in a list; None: nothing."""
    node: Node | None = config
    for name in key.split("."):
        node = _child(node, name)
        if node is None:
            return None
    return node


def expected(node: Node | None) -> str:
    """The values that a key takes, in words."""
    if isinstance(node, ListConfig):
        return "a list, e.g. [first,second]"
    names: dict[type, str] = {
        IntegerNode: "a whole number",
        FloatNode: "a number",
        BooleanNode: "true or false",
        StringNode: "a text",
        EnumNode: "one of its names",
        DictConfig: "keys below it, e.g. key.name=value",
    }
    words = next((text for kind, text in names.items() if isinstance(node, kind)), "")
    return f"{words} or null" if words and node is not None and node._metadata.optional else words


def one_line(error: Exception) -> str:
    """An error of a library without its line breaks."""
    return " ".join(str(error).split())


def whole_number(text: str) -> int:
    """A whole number as people and spreadsheets write it: ``3``, ``3.0``, ``3e2``.

    Raises:
        ValueError: It is none.
    """
    value = float(text)
    if not value.is_integer():  # infinite and NaN are none either
        raise ValueError(f"{text!r} is not a whole number")
    return int(text) if text.strip().lstrip("+-").isdecimal() else int(value)


def _child(node: Node | None, name: str) -> Node | None:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        return node._get_node(name) if name in node else None  # type: ignore[return-value]
    if isinstance(node, ListConfig) and node._metadata.element_type is str:
        return StringNode()
    return None


def _constructed(tree: yaml.Node, schema: Node | None) -> Any:
    _retag(tree, schema)
    loader = _Loader("")
    try:
        return loader.construct_document(tree)
    finally:
        loader.dispose()


def _retag(tree: yaml.Node, schema: Node | None) -> None:
    """Mark every plain scalar that the schema wants as text: ``007`` is then no number, ``on`` no truth; and
    write ``1.0`` and ``1e3`` as whole numbers where it wants one.
    """
    if isinstance(tree, yaml.ScalarNode):
        if isinstance(schema, IntegerNode) and tree.tag == _FLOAT:
            with contextlib.suppress(ValueError):
                tree.value, tree.tag = str(whole_number(tree.value)), _INTEGER
        if isinstance(schema, StringNode) and not (tree.tag == _NULL and schema._metadata.optional):
            tree.tag = _TEXT
    elif isinstance(tree, yaml.SequenceNode):
        for item in tree.value:
            _retag(item, _child(schema, "0"))
    elif isinstance(tree, yaml.MappingNode):
        for key, item in tree.value:
            _retag(item, _child(schema, str(key.value)))


class _Loader(yaml.SafeLoader):
    """Safe YAML: ``1e-3`` is a number, dates are texts, every key occurs once, no place refers to another."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As the library's, without references."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a reference (*name)", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the library's, every key once."""
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*"
        r"(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))$|^[-+]\.(?:inf|Inf|INF)$"
    ),
    list("-+0123456789."),
)


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}{key}.")
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _leaves(value, f"{prefix}{index}.")
    else:
        yield prefix.removesuffix("."), values
