"""Which findings a clause names, and whether it denies them."""

from __future__ import annotations

import re

from ctflow.reports import terms
from ctflow.reports.places import groups_of

_ONE = re.compile(r"\bones?\b")
_NEW_STATEMENT = re.compile(
    r"\b(?:an?|there|some|several|multiple|few|two|three|four|five|seen|present|is|are|bilateral|both|extensive|\d+)\b"
)


def mentions_in(
    clause: str, start: int, end: int, last: tuple[str, ...]
) -> list[tuple[tuple[str, ...], bool]]:
    """(labels, present) of the mentions that begin in ``clause[start:end]``, one per label.

    ``last`` are the labels of the mention before: what ``a small one`` means.
    """
    found: dict[tuple[str, ...], bool] = {}
    taken: list[tuple[int, int]] = []
    for label, pattern in terms.MENTIONS:
        for match in pattern.finditer(clause, start, len(clause)):
            shared = label == "Coronary artery wall calcification"  # plaques of both kinds in one word
            if match.start() >= end or (not shared and any(a <= match.start() < b for a, b in taken)):
                continue
            taken.append(match.span())
            found[(label,)] = found.get((label,), False) or not _denied(clause, *match.span())
    known = {label for labels in found for label in labels}
    for labels, pattern in terms.ORGANS:
        match_ = pattern.search(clause, start, end)
        if match_ and not known.intersection(labels) and _normal(clause, *match_.span()):
            found[labels] = False
    one = _ONE.search(clause, start, end)
    if not found and last and one and groups_of(clause[start:end])[0].says_anything:
        found[last] = not _denied(clause, *one.span())
    return list(found.items())


def _denied(clause: str, start: int, end: int) -> bool:
    """Whether a mention is in the scope of a denial before or after it."""
    cues = list(terms.BEFORE.finditer(clause, 0, start))
    if cues and not _ended(clause[cues[-1].end() : start], clause[start:]):
        return True
    if terms.NOWHERE.search(clause, end):
        return True
    after = terms.AFTER.search(clause, end)
    return bool(after) and not terms.STATED.search(clause, end, after.start() if after else end)


def _ended(between: str, rest: str) -> bool:
    """Whether a denial's scope ends between its word and a mention."""
    if terms.STATED.search(between) or re.search(r"\bwith\b|\band (?:an?|there)\b|:", between):
        return True
    comma = between.rfind(",")
    if comma < 0:
        return False
    last = between[comma + 1 :]
    listed = re.search(r"\b(?:or|nor)\b", last + rest)
    return not listed and bool(
        _NEW_STATEMENT.search(last) or terms.GRADE.search(last) or terms.SIDE.search(last)
    )


def _normal(clause: str, start: int, end: int) -> bool:
    """Whether an organ is called normal: after it in the clause, or in a word before it."""
    if terms.NORMAL.search(clause, end):
        return True
    near = terms.NORMAL.search(clause, max(0, start - 30), start)
    return bool(near) and not re.search(r"[,:]", clause[near.end() if near else start : start])
