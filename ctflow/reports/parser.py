"""Report text to stated findings, sentence by sentence."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import cast

from ctflow.reports.clauses import Clause, Entry
from ctflow.reports.places import Group, normalised
from ctflow.reports.sentences import sentences
from ctflow.reports.stated import Side, StatedFinding, summarised
from ctflow.reports.terms import WITHOUT_SIDE

_CLAUSE = re.compile(
    r";|\b(?:but|however|although|though|whereas|while|except(?: for)?|apart from|other than)\b"
    r"|,(?= (?:the|both|no|without)\b)"
)
"""Separators of clauses; a comma only before a phrase that names an organ or denies anew."""


def parse_report(text: str) -> list[StatedFinding]:
    """Every statement of a finding in a text, in reading order, repeats included (see ``summarised``).

    A question states nothing. What is possible, suspected or not excluded counts as present, as in CT-RATE's
    labels.

    Args:
        text: A report, parts of one or a single sentence.
    """
    return [finding for sentence in sentences(text) for finding in parse_sentence(sentence)]


@lru_cache(maxsize=65536)
def parse_sentence(sentence: str) -> tuple[StatedFinding, ...]:
    """The statements of one sentence."""
    if sentence.rstrip().endswith("?"):
        return ()
    entries: list[Entry] = []
    for clause in _CLAUSE.split(normalised(sentence)):
        if clause.strip(" ,."):
            Clause(clause, entries).read()
    found = (
        _finding(label, entry.present, group, sentence)
        for entry in entries
        for label in entry.labels
        for group in entry.groups()
    )
    return tuple(dict.fromkeys(found))


def _finding(label: str, present: bool, group: Group, sentence: str) -> StatedFinding:
    sided = label not in WITHOUT_SIDE
    sizes = group.sizes_mm
    size = (min(sizes) if label == "Lymphadenopathy" else max(sizes)) if sizes else None
    return StatedFinding(
        label=label,
        present=present,
        side=cast(Side | None, group.side) if sided else None,
        lobe=group.lobe if sided else None,
        size_mm=size,
        volume_ml=group.volume_ml if label in ("Pleural effusion", "Pericardial effusion") else None,
        ratio=group.ratio if label == "Cardiomegaly" else None,
        grade=group.grade,
        sentence=sentence,
    )


def difference(a: str, b: str) -> str:
    """The difference of two reports: a label, and its presence, side, place or size; else ``not told``."""
    stated = [{_key(f) for f in summarised(parse_report(text))} for text in (a, b)]
    changed = stated[0] ^ stated[1]
    for label in sorted({key[0] for key in changed}):
        own = [{key for key in side if key[0] == label and key[1]} for side in stated]
        if not own[0] and not own[1]:
            continue
        if not own[0] or not own[1]:
            return f"{label}, presence"
        if {key[2] for key in own[0]} != {key[2] for key in own[1]}:
            return f"{label}, side"
        return f"{label}, {'place' if {k[3] for k in own[0]} != {k[3] for k in own[1]} else 'size'}"
    return "not told"


def _key(finding: StatedFinding) -> tuple[str, bool, str, str, str]:
    size = f"{finding.grade} {finding.size_mm} {finding.volume_ml} {finding.ratio}"
    return finding.label, finding.present, finding.side or "", finding.lobe or "", size
