"""The shape every command has: a few fixed flags, ``--config file.yaml``, and ``key=value`` for all else."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ctflow.config.helptext import explain_keys
from ctflow.config.loading import Override, load_config
from ctflow.config.values import whole_number
from ctflow.errors import CTFlowError, Stopped
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
    """A parsed command line: the merged typed config, and the flags that are not keys of it."""

    config: SchemaT
    flags: dict[str, Any]


def _whole_number(text: str) -> int:
    try:
        return whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


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
    epilog = "keys, given as key=value, with their defaults:\n" + explain_keys(schema)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help=f"YAML file of keys; shipped ones: {SHIPPED_CONFIGS}")
    for flag in flags:
        whole = {"type": _whole_number} if flag.options.get("type") is int else {}
        parser.add_argument(flag.name, **flag.options | whole)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key below, e.g. seed=3")
    args = vars(parser.parse_intermixed_args(argv))
    config_file = args.pop("config")
    overrides: list[Override] = list(args.pop("overrides"))
    rest: dict[str, Any] = {}
    for flag in flags:
        dest = flag.options.get("dest", flag.name.lstrip("-").replace("-", "_"))
        value = args[dest]
        if not flag.key:
            rest[dest] = value
        elif value is not None:
            overrides.append((flag.key, str(value) if isinstance(value, Path) else value))
    return CommandLine(load_config(schema, config_file, overrides), rest)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's main function with logging on and end with its status.

    What a user can mend is said in a line, without a traceback, with status 2: errors of this project, of
    the operating system (a full disk, a folder that cannot be written to), and too little memory. Ctrl-C ends
    with status 130.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        status = main()
    except BaseException as error:
        status, text = _ending(error)
        if not text:
            raise
        sys.stderr.write(text + "\n")
    sys.exit(status or 0)


def _ending(error: BaseException) -> tuple[int, str]:
    """Status and line for an error that a user can mend; an empty line for all others."""
    if isinstance(error, Stopped):
        return error.status, str(error)
    # Lightning turns Ctrl-C into an exit of its own.
    interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    if interrupted or isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):
        return 141, "the reader of the output is gone"
    if isinstance(error, CTFlowError):
        return 2, f"error: {_without_worker(str(error))}"
    if isinstance(error, OSError):
        named = error.filename2 or error.filename  # of a renamed file, the name that it was to get
        place = f": {named}" if named else ""
        return 2, f"error: {error.strerror or ' '.join(str(error).split())}{place}"
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or any(sign in first for sign in _NO_MEMORY):
        return 2, f"error: out of memory: {first}\nWhat to do: smaller batches or volumes"
    if isinstance(error, RuntimeError) and "DataLoader worker" in first and "killed" in first:
        advice = "What to do: fewer data.num_workers, or more memory for them"
        return 2, f"error: a process that reads data was killed ({first})\n{advice}"
    return 1, ""


_NO_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


def _without_worker(text: str) -> str:
    """An error's own words, without the traceback of the loader process it was raised in."""
    if "Original Traceback (most recent call last)" not in text:
        return text
    return re.split(r"^[\w.]+Error: ", text, flags=re.MULTILINE)[-1].strip()
