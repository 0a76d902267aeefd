"""``ctflow COMMAND …``: the console script. Each command is the same as ``python -m MODULE …``."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence

import ctflow

COMMANDS = {
    "generate": ("ctflow.generate", "reports to chest CT volumes"),
    "train": ("ctflow.train", "train the A-VAE, the text and image pair, or the FMvT"),
    "eval": ("ctflow.eval", "score a checkpoint, or any folder of volumes"),
    "prepare": ("data_prep.ct_rate", "scans (NIfTI, DICOM, NRRD, MetaImage) to slice shards"),
    "encode": ("data_prep.encode", "slice shards to latent shards"),
    "redraw": ("data_prep.redraw", "latent shards as a checkpoint draws them, for a decoder's training"),
    "merge": ("data_prep.merge", "several sets of latent shards in one"),
    "convert": ("data_prep.convert", "a scan or a generated volume to another format"),
    "check": ("data_prep.check", "verify a folder of shards and draw a contact sheet"),
    "phantom": ("data_prep.phantom", "make chest CT phantoms with reports"),
    "app": ("ctflow.app", "reports to chest CTs in the browser, on this machine"),
    "challenge": ("ctflow.challenge", "one CT per prompt, by the contract of the VLM3D challenge"),
    "weights": ("ctflow.weights", "import, export or inspect published weights"),
}
"""Command: the module that ``python -m`` runs, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command in this process, as ``python -m`` would.

    Args:
        argv: The command and its arguments; ``sys.argv[1:]`` where None.

    Returns:
        0 after ``--help`` and ``--version``, 2 where there is no such command. A command that runs ends the
        process with its own status.
    """
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if name == "--version":
        sys.stdout.write(f"ctflow {ctflow.__version__}\n")
        return 0
    if name not in COMMANDS:
        (near,) = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        sys.stderr.write(
            f"error: no command {name!r}\nExpected: one of {', '.join(COMMANDS)}\n"
            f"What to do: did you mean `ctflow {near}`?\n"
        )
        return 2
    sys.argv[1:] = rest
    # Lightning and spawned workers ask which module is __main__ to start it again: so it is the command's.
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ctflow COMMAND …",
            "",
            "A radiology report goes in, a whole chest CT in Hounsfield units comes out.",
            "",
            "commands:",
            *lines,
            "",
            "`ctflow COMMAND --help` lists a command's flags and keys; `ctflow --version` tells the version.",
            "",
        ]
    )
