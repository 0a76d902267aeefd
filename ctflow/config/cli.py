"""The shape every command has: a few fixed flags, ``--config file.yaml``, and ``key=value`` for all else."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ctflow.config.loading import config_to_yaml, load_config
from ctflow.errors import CTFlowError
from ctflow.shipped import SHIPPED_CONFIGS

SchemaT = TypeVar("SchemaT")
log = logging.getLogger("ctflow")


@dataclass(frozen=True)
class Flag:
    """One fixed flag of a command.

    Attributes:
        name: With its dashes, e.g. ``--output``.
        key: Dotted key of the schema the value goes to; empty: only found in ``CommandLine.flags``.
        options: Keyword arguments of ``argparse.add_argument`` (``help``, ``choices``, ``action`` …).
    """

    name: str
    key: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandLine(Generic[SchemaT]):
    """A parsed command line: the merged typed config, and the flags that are no keys of it."""

    config: SchemaT
    flags: dict[str, Any]


def parse_command(
    schema: type[SchemaT],
    prog: str,
    description: str,
    flags: Sequence[Flag],
    argv: Sequence[str] | None = None,
) -> CommandLine[SchemaT]:
    """Read ``[flags] [--config FILE] [key=value …]`` into ``schema``.

    Args:
        schema: Dataclass type of the command's configuration.
        prog: Name in the usage line, e.g. ``ctflow generate``.
        description: First lines of ``--help``; the keys with their defaults follow it.
        flags: The command's fixed flags.
        argv: Arguments without the program's name; ``sys.argv[1:]`` where None.

    Returns:
        The merged configuration and the remaining flags.

    Raises:
        ConfigError: See ``load_config``.
    """
    epilog = "keys (give as key=value) and their defaults:\n\n" + config_to_yaml(schema)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help=f"YAML file of keys; shipped ones: {SHIPPED_CONFIGS}")
    for flag in flags:
        parser.add_argument(flag.name, **flag.options)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key below, e.g. seed=3")
    args = vars(parser.parse_intermixed_args(argv))
    config_file, overrides = args.pop("config"), list(args.pop("overrides"))
    rest: dict[str, Any] = {}
    for flag in flags:
        dest = flag.options.get("dest", flag.name.lstrip("-").replace("-", "_"))
        value = args[dest]
        if not flag.key:
            rest[dest] = value
        elif value is not None:
            overrides.append(f"{flag.key}={_quoted(value)}")
    return CommandLine(load_config(schema, config_file, overrides), rest)


def _quoted(value: Any) -> str:
    """A flag's value as YAML, so that text with colons or commas stays text."""
    if isinstance(value, (str, Path)):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's main function: logging on, user errors as text with exit status 2, no traceback."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        status = main()
    except CTFlowError as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2
    sys.exit(status or 0)
