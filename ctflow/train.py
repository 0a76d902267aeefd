"""``python -m ctflow.train``: train the A-VAE, the embedded pair or the FMvT."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ctflow.config import parse_command, run_command
from ctflow.config.training import TrainConfig
from ctflow.errors import Stopped

log = logging.getLogger("ctflow")

DESCRIPTION = """Train one network: task=autoencoder (A-VAE), clip (embedded pair of text and volume encoder)
or flow (FMvT). The run lies in runs/<task>/<name>; the same name resumes it. Missing default shards are made
from phantoms."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, export.

    Returns:
        0; after a signal 143 (SIGTERM), 130 (SIGINT) or 75 (SIGUSR1: run it again to go on), the run saved.

    Raises:
        CTFlowError: See ``ctflow.training.runner.run_training``.
    """
    config = parse_command(TrainConfig, "ctflow train", DESCRIPTION, [], argv).config
    # These take seconds to import: after the arguments are checked.
    from ctflow.default_data import ensure_training_data
    from ctflow.training.runner import run_training

    try:
        run_training(config, ensure_training_data)
    except Stopped as stopped:
        log.warning("%s", stopped)
        return stopped.status
    return 0


if __name__ == "__main__":
    run_command(main)
