"""The report of the mirrored patient."""

from __future__ import annotations

import re

_SIDE = re.compile(r"\b(right|left)(?=\b|wards?\b|most\b)", re.IGNORECASE)
_ABBREVIATED = re.compile(r"\b([RL])(UL|LL)\b")
_OTHER = {"right": "left", "left": "right"}


def mirrored(text: str) -> str:
    """A report with left and right exchanged; capitals stay, and all other words.

    The middle lobe changes its name with its side (``left middle lobe``, which no patient has): the text
    stays as close to the original as a wrong side can be. ``RUL`` and ``LUL``, ``RLL`` and ``LLL`` are
    exchanged too.
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group(1)
        other = _OTHER[word.lower()]
        if word.isupper():
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    text = _ABBREVIATED.sub(lambda m: f"{'L' if m.group(1) == 'R' else 'R'}{m.group(2)}", text)
    return _SIDE.sub(swap, text)
