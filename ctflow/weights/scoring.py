"""The agreement of one report with one volume, by a CT-CLIP on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctflow.checkpoint import folder_fingerprint, load_text_encoder

if TYPE_CHECKING:
    from ctflow.evaluation.backbones import ClipScorer


def load_scorer(path: Path | str, tokenizer: Path | str | None = None) -> ClipScorer:
    """Load both towers of a CT-CLIP and its tokenizer; ``scorer.score(report, volume)`` is the score.

    Args:
        path: See ``load_ctclip``.
        tokenizer: Folder of ``tokenizer.json`` or ``vocab.txt``; None: beside the weights; nothing is
            fetched.

    Raises:
        WeightsError: See ``load_text_encoder``.
    """
    from ctflow.evaluation.backbones import ClipScorer  # takes seconds
    from ctflow.evaluation.system import scorer_name

    encoder = load_text_encoder(path, tokenizer)
    return ClipScorer(encoder, scorer_name(encoder), folder_fingerprint(path))
