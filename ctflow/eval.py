"""``python -m ctflow.eval``: score a checkpoint, or a folder of volumes, and write the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ctflow.checkpoint import folder_fingerprint, load_system
from ctflow.config import Flag, parse_command, run_command
from ctflow.config.evaluation import SETTINGS, EvalConfig
from ctflow.evaluation.evaluation import device_of, evaluate
from ctflow.evaluation.ranks import joined_ranks
from ctflow.evaluation.system import EvalSystem
from ctflow.evaluation.writers import table_markdown, write_all

log = logging.getLogger(__name__)

FLAGS = (
    Flag(
        "--checkpoint", "checkpoint", {"help": "folder of a whole system; default: newest run, else embedded"}
    ),
    Flag(
        "--setting", "setting", {"choices": [*SETTINGS, "all"], "help": "what is given and what is generated"}
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write ``runs/eval/<time>/``; 0 when done.

    Raises:
        CTFlowError: Input that cannot be evaluated; the message says what to do.
    """
    command = parse_command(
        EvalConfig,
        "python -m ctflow.eval",
        "Score a checkpoint in the three settings, with floors, intervals and monitors.",
        FLAGS,
        argv,
    )
    config = command.config
    folder = Path(config.checkpoint)
    with joined_ranks() as ranks:
        fingerprint = folder_fingerprint(folder)
        system = EvalSystem.of(load_system(folder), str(folder), fingerprint, device_of(config.device))
        result = evaluate(config, system, ranks)
        if ranks.first:
            output = Path(config.output) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            write_all(result, output)
            log.info("%s\n%s", config.checkpoint, table_markdown(result.rows))
            log.info("written to %s", output)
    return 0


if __name__ == "__main__":
    run_command(main)
