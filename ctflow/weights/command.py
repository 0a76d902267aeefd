"""``python -m ctflow.weights import|inspect|export``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ctflow.checkpoint import CONFIG_FILE
from ctflow.checkpoint.sources import Kind
from ctflow.config import config_to_yaml, load_config
from ctflow.weights.inspection import inspect
from ctflow.weights.transfer import ImportOptions, checkpoint_folder, export_weights, import_weights

log = logging.getLogger(__name__)

KINDS: dict[str, Kind] = {"ctflow": "fmvt", "flux": "avae", "ctclip": "ctclip"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; ``sys.argv[1:]`` where None.

    Returns:
        0; 1 where ``inspect`` finds weights that would not load.

    Raises:
        WeightsError: Weights that are missing, damaged or of another layout.
        ConfigError: An unknown option.
    """
    args = _parser().parse_args(argv)
    if args.action == "inspect":
        text, loads = inspect(args.path)
        sys.stdout.write(text + "\n")
        return 0 if loads else 1
    kind = KINDS[args.kind]
    if args.action == "export":
        log.info("wrote %s", export_weights(kind, args.source, args.dest))
        return 0
    options = load_config(ImportOptions, None, args.options)
    log.info("wrote %s", import_weights(kind, args.source, args.dest, options))
    folder = checkpoint_folder(kind, args.dest)
    if (folder / CONFIG_FILE).is_file():
        log.info("%s is complete: python -m ctflow.generate --checkpoint %s --report …", folder, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctflow weights", description="Published weights in, out, or looked at."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    bring = actions.add_parser(
        "import",
        help="published weights into a checkpoint folder",
        epilog="options (key=value) and their defaults:\n\n" + config_to_yaml(ImportOptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    write = actions.add_parser("export", help="a checkpoint's part in its published layout")
    for action in (bring, write):
        action.add_argument("kind", choices=KINDS, help="which network")
        action.add_argument("source", type=Path, help="file or folder to read")
        action.add_argument("dest", type=Path, help="folder (or file, for a single-file layout) to write")
    bring.add_argument("options", nargs="*", metavar="key=value")
    look = actions.add_parser("inspect", help="what is in a file or folder, and would it load?")
    look.add_argument("path", type=Path)
    return parser
