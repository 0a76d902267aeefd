"""``python -m ctflow.pack``: a run's checkpoint folder, made small and ready to share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ctflow.config import parse_command, run_command
from ctflow.config.pack import PackConfig
from ctflow.errors import CTFlowError

log = logging.getLogger("ctflow")

DESCRIPTION = (
    """Write a whole checkpoint folder again: float16 weights, a model card, recommended sampling."""
)


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a checkpoint folder.

    Raises:
        CTFlowError: Source or output missing, the source incomplete, or no card at the path given.
    """
    config = parse_command(PackConfig, "python -m ctflow.pack", DESCRIPTION, [], argv).config
    if not config.source or not config.output:
        raise CTFlowError(
            f"source={config.source!r} and output={config.output!r}", "two folders", "give source=… output=…"
        )
    from ctflow.checkpoint import (
        CARD_FILE,
        folder_fingerprint,
        load_avae,
        load_system,
        mix,
        mix_decoders,
        save_system,
    )  # takes seconds

    card = Path(config.card) if config.card else Path(config.source) / CARD_FILE
    if config.card and not card.is_file():
        raise CTFlowError(f"no model card at {card}", "a Markdown file")
    system = load_system(config.source)
    if config.mean_with:
        mix(system, load_system(config.mean_with), config.mean_with)
    if config.avae:
        mix_decoders(system, load_avae(config.avae), config.avae_share, config.avae)
    provenance = dict(system.config.provenance)
    if config.training:
        # Paths of the training machine mean nothing to who gets the folder.
        provenance = {"training": config.training}
    rollout = config.sampling.applied_to(system.config.rollout)
    system.config = replace(system.config, rollout=rollout, provenance=provenance)
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    save_system(config.output, system, card=text, half=config.half)
    log.info("%s: sha256 %s", config.output, folder_fingerprint(config.output))
    return 0


if __name__ == "__main__":
    run_command(main)
