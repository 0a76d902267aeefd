"""``python -m ctflow.eval``: score a checkpoint, or a folder of volumes, and write the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.evaluation import ANALYSIS_NAMES, CHALLENGES, SETTING_NAMES, EvalConfig

log = logging.getLogger("ctflow")

DESCRIPTION = """Score a checkpoint in the three settings with floors, intervals and monitors; or, with
--volumes and --reference, the NIfTI volumes of any system. Results go to runs/eval/<time>/: report.html,
table.md, CSV, JSON. Several processes: torchrun --nproc-per-node N -m ctflow.eval …"""

FLAGS = [
    Flag("--checkpoint", "checkpoint", {"help": "folder, run:NAME or latest; default: the embedded one"}),
    Flag("--setting", "setting", {"choices": [*SETTING_NAMES, "all"], "help": "what is given and generated"}),
    Flag("--volumes", "external.volumes", {"help": "folder of NIfTI volumes in HU to score instead"}),
    Flag("--reference", "external.reference", {"help": "folder of real NIfTI volumes in HU"}),
    Flag("--reports", "external.reports", {"help": "CSV of reports for --volumes"}),
    Flag("--analysis", "analysis.name", {"choices": ANALYSIS_NAMES, "help": "instead of the table"}),
    Flag("--readings", "analysis.readings", {"help": "the filled CSV of a reading pack"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write a folder of results; 0 when done.

    Raises:
        CTFlowError: Input that cannot be evaluated; the message says what to do.
    """
    config = parse_command(EvalConfig, "ctflow eval", DESCRIPTION, FLAGS, argv).config
    # These take seconds to import: after the arguments are checked.
    from ctflow.default_data import ensure_cases
    from ctflow.evaluation.run import run
    from ctflow.processes import joined_ranks

    output = Path(config.output) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    checkpoint = _checkpoint_of(config)
    with joined_ranks() as ranks:
        # Contrast pairs are generated from texts of their own and need no real cases.
        if checkpoint is not None and not config.external.volumes and config.analysis.name != "contrast":
            if ranks.first:
                ensure_cases(config, checkpoint)
            ranks.wait()
        run(config, output, ranks, checkpoint)
    return 0


def _checkpoint_of(config: EvalConfig) -> Path | None:
    """The checkpoint folder, or None where no network of ours is needed."""
    from ctflow.pipeline import resolve_checkpoint

    external = config.external
    if config.protocol in CHALLENGES:
        return None
    if external.volumes and (not external.reports or config.backbones.clip):
        return None
    return resolve_checkpoint(config.checkpoint or None)


if __name__ == "__main__":
    run_command(main)
