"""``python -m data_prep.phantom --output DIR --volumes N --seed S [--size 128] [key=value …]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.phantom import PhantomConfig
from data_prep.phantom.writing import generate

log = logging.getLogger("ctflow.phantom")


def main(argv: Sequence[str] | None = None) -> int:
    """Make a set of phantoms; what is there already is not made again."""
    flags = [
        Flag("--output", "output", {"help": "folder for CT-RATE's tree"}),
        Flag("--volumes", "volumes", {"type": int, "help": "number of volumes"}),
        Flag("--seed", "seed", {"type": int, "help": "data set seed"}),
        Flag("--size", "size", {"type": int, "help": "rows and columns"}),
        Flag("--report", "report", {"help": "findings in words: every patient shows these alone"}),
    ]
    line = parse_command(
        PhantomConfig,
        "ctflow phantom",
        "Make chest CT phantoms in CT-RATE's layout.",
        flags,
        argv,
    )
    made = generate(line.config)
    log.info("%d of %d volumes made in %s", made, line.config.volumes, line.config.output)
    return 0


if __name__ == "__main__":
    run_command(main)
