"""What of a report too long for its text encoder is kept: the beginning, and the impression at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence

_IMPRESSION = re.compile(r"\b(?:impressions?|conclusions?|opinion)\b", re.IGNORECASE)
LARGEST_SHARE, USUAL_SHARE = 1 / 2, 1 / 4
"""Part of the tokens that a headed impression may take, and that the end of a report without headings gets
(in CT-RATE an impression is a seventh of a report)."""


def kept_tokens(text: str, offsets: Sequence[tuple[int, int]], room: int) -> tuple[int, int]:
    """Which tokens of a long report stay.

    Args:
        text: The report.
        offsets: Where each of its tokens lies in ``text``; more than ``room`` of them.
        room: Tokens that can stay.

    Returns:
        How many at the beginning and how many at the end; together ``room``.
    """
    headings = [match.start() for match in _IMPRESSION.finditer(text)]
    if headings:
        first = next(i for i, (_, end) in enumerate(offsets) if end > headings[-1])
        tail = min(len(offsets) - first, int(room * LARGEST_SHARE))
    else:
        tail = int(room * USUAL_SHARE)
        starts = range(len(offsets) - tail, len(offsets))
        # From the beginning of a sentence on, where one begins there.
        tail = next((len(offsets) - i for i in starts if text[slice(*offsets[i - 1])] == "."), tail)
    return room - tail, tail
