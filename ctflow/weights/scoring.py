"""The agreement of one report with one volume, by a CT-CLIP on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctflow.evaluation.system import ClipScorer


def load_scorer(path: Path | str, tokenizer: Path | str | None = None) -> ClipScorer:
    """Load both towers of a CT-CLIP and its tokenizer; ``scorer.score(report, volume)`` is the score.

    Args:
        path: See ``load_ctclip``.
        tokenizer: Folder of ``tokenizer.json`` or ``vocab.txt``; None: the folder of the weights. Nothing is
            fetched.

    Raises:
        WeightsError: See ``load_text_encoder``.
    """
    from ctflow.evaluation.system import scorer_at  # takes seconds

    return scorer_at(path, tokenizer=tokenizer)
