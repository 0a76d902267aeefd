"""Texts to sentences."""

from __future__ import annotations

import re

_WRAPPED = re.compile(r"(?<![.:;!?\s])[ \t]*\n[ \t]*(?=[a-z0-9(])")
"""A line break inside a sentence: no stop before it, no capital after it."""
_END = re.compile(r"(?<=[.!?;])\s+|\s*\n+\s*|(?<=[a-z)][.!?])(?=[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:approx|ca|vs|e\.g|i\.e|max|min|no|nr|fig|dr)|\d)\.$", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """Sentences of a report, without the space around them; lines count as sentences.

    A line that goes on in lower case belongs to the one before it. A stop in a number or after an
    abbreviation ends nothing, unless the next word has a capital.
    """
    found: list[str] = []
    for part in (part.strip() for part in _END.split(_WRAPPED.sub(" ", text))):
        if not part:
            continue
        if found and _ABBREVIATION.search(found[-1]) and not part[0].isupper():
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return found
