"""Report text to stated findings, sentence by sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, cast

from ctflow.reports import terms
from ctflow.reports.places import Group, groups_of, normalised
from ctflow.reports.sentences import sentences
from ctflow.reports.stated import Side, StatedFinding

_CLAUSE = re.compile(
    r";|\b(?:but|however|although|though|whereas|while|except(?: for)?|apart from|other than)\b|,(?= (?:the|both|no|without)\b)"
)
_CHUNK = re.compile(r"(,(?!\d)|:|\band\b|\bor\b|\bnor\b|\bwith\b|\bwithout\b|\bas well as\b|\bplus\b|[()])")
_LEADING_PLACE = re.compile(r"^\W*(?:in|on|at|within)\b")
_MAINLY = re.compile(r"\b(?:mainly|predominantly|predominant|especially|particularly|more|mostly|primarily)\b")
_ONE = re.compile(r"\bones?\b")
_NEW_STATEMENT = re.compile(
    r"\b(?:an?|there|some|several|multiple|few|two|three|four|five|seen|present|is|are|bilateral|both|extensive|\d+)\b"
)
_FILLER = re.compile(
    r"\b(?:an?|the|of|in|on|at|to|up|about|around|approximately|ca|side|sides|sided|lungs?|zones?|measuring|measures|size|sized"
    r"|diameter|short|long|axis|axes|thick|thickness|largest|bigger|smaller|other|another|also|each|respectively|hemithorax|apex|apices"
    r"|apical|base|basal|bases|one|is|are|it|segments?|mm|cm|ml|cc|mainly|predominantly|level|in total|total|volume|amount|level)\b|[\d.,:()%/\-]"
)

Scope = Literal["stated", "denied"]


@dataclass
class _Entry:
    """A mention on its way to findings: its labels and what is said of its places and sizes."""

    labels: tuple[str, ...]
    present: bool
    group: Group
    extra: list[Group] = field(default_factory=list)

    def attach(self, group: Group, only_fill: bool, refines: bool) -> None:
        """Take what a part of the sentence without a mention says."""
        if refines and self.group.placed:
            group = group.unplaced()
        if self.group.side == "both" and self.group.lobe is None and group.placed:
            if not only_fill:
                self.extra.append(group)
            return
        last = self.extra[-1] if self.extra else self.group
        if not group.placed or not self.extra and not self.group.placed:
            if last.takes(group):
                last.fill(group)
            elif not only_fill:
                self.extra.append(replace(group, side=group.side or last.side, lobe=group.lobe or last.lobe))
        elif not only_fill and (last.side, last.lobe) != (group.side, group.lobe):
            self.extra.append(group)
        elif not only_fill or (last.side, last.lobe) == (group.side, group.lobe):
            if last.takes(group):
                last.fill(group)
            else:
                self.extra.append(group)

    def groups(self) -> list[Group]:
        """Places, each with its sizes; the sides named one by one stand for ``both``."""
        whole = self.group.side == "both" and self.group.lobe is None
        if whole and any(g.placed for g in self.extra):
            return [replace(g, grade=g.grade or self.group.grade) for g in self.extra]
        return [self.group, *self.extra]


def parse_report(text: str) -> list[StatedFinding]:
    """Every statement of a finding in a text, in reading order, repeats included (see ``summarised``).

    A question states nothing. What is possible, suspected or not excluded counts as present, as in CT-RATE's labels.

    Args:
        text: A report, parts of one or a single sentence.
    """
    return [finding for sentence in sentences(text) for finding in parse_sentence(sentence)]


@lru_cache(maxsize=65536)
def parse_sentence(sentence: str) -> tuple[StatedFinding, ...]:
    """The statements of one sentence."""
    if sentence.rstrip().endswith("?"):
        return ()
    text = normalised(sentence)
    entries: list[_Entry] = []
    for clause in _clauses(text):
        _read_clause(clause, entries)
    found = []
    for entry in entries:
        for label in entry.labels:
            for group in entry.groups():
                found.append(_finding(label, entry.present, group, sentence))
    return tuple(dict.fromkeys(found))


def _finding(label: str, present: bool, group: Group, sentence: str) -> StatedFinding:
    sided = label not in terms.WITHOUT_SIDE
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


def _clauses(text: str) -> list[str]:
    """Parts of a sentence with a verb of their own; a comma parts only what names organs or denies anew."""
    return [clause for clause in _CLAUSE.split(text) if clause.strip(" ,.")]


def _read_clause(clause: str, entries: list[_Entry]) -> None:
    """Add the clause's mentions to the sentence's ``entries``, or give those before it what it says more."""
    pieces = _CHUNK.split(clause)
    place, lead, before, offset = False, None, [], 0
    first = True
    for i in range(0, len(pieces), 2):
        chunk = pieces[i]
        separator = pieces[i - 1] if i else ""
        mentions = _mentions(clause, offset, offset + len(chunk), entries)
        groups = groups_of(chunk)
        if terms.FOREIGN.search(chunk) and not terms.THORACIC.search(chunk):
            mentions, groups = [], []
        if mentions:
            new = [_Entry(labels, present, replace(groups[0]), [replace(g) for g in groups[1:]]) for labels, present in mentions]
            for entry in new:
                _take_leading(entry, before, lead)
            if first and _LEADING_PLACE.match(chunk) and groups[0].placed:
                lead = groups[0].place()
            _share_place(entries, new, separator, chunk, place)
            entries.extend(new)
            first, place, before = False, True, []
        elif groups and groups[0].says_anything and not terms.NORMAL.search(chunk) and not terms.BEFORE.search(chunk):
            if first and not place:
                if _LEADING_PLACE.match(chunk) and groups[0].placed and not groups[0].sized:
                    lead = groups[0].place()
                else:
                    before.extend(groups)
            elif entries:
                bare = not re.sub(r"\W", "", _FILLER.sub("", _without_modifiers(chunk)))
                for group in groups:
                    entries[-1].attach(group, only_fill=not bare, refines=bool(_MAINLY.search(chunk)))
        offset += len(chunk) + (len(pieces[i + 1]) if i + 1 < len(pieces) else 0)
    if first and before and entries and not terms.NORMAL.search(clause):
        for group in before:
            entries[-1].attach(group, only_fill=False, refines=False)


def _without_modifiers(chunk: str) -> str:
    for pattern in (terms.LOBE, terms.SIDE, terms.MILLIMETRES, terms.MILLILITRES, terms.GRADE, _MAINLY):
        chunk = pattern.sub("", chunk)
    return chunk


def _take_leading(entry: _Entry, before: list[Group], lead: Group | None) -> None:
    """What came before the mention: places of their own (``a large right and a small left effusion``)."""
    if before:
        if entry.group.placed:
            entry.extra.extend(replace(g) for g in before)
        else:
            entry.group.fill(before[-1])
            entry.extra.extend(replace(g) for g in before[:-1])
    elif lead is not None and not entry.group.placed:
        entry.group.fill(lead)


def _share_place(entries: list[_Entry], new: list[_Entry], separator: str, chunk: str, same_clause: bool) -> None:
    """``atelectasis and effusion on the left``: what is joined directly shares the place that comes after."""
    if not (entries and same_clause and separator in ("and", "or", "nor")) or entries[-1].group.placed:
        return
    place = new[-1].group
    named = terms.SIDE.search(chunk) or terms.LOBE.search(chunk)
    word = min(m.start() for m in (p.search(chunk) for _, p in terms.MENTIONS) if m) if place.placed and _any_mention(chunk) else -1
    if named and 0 <= word < named.start() and entries[-1].present == new[-1].present:
        if not re.match(r"\s*(?:an?|the|there)\b", chunk):
            entries[-1].group.fill(place.place())


def _any_mention(chunk: str) -> bool:
    return any(p.search(chunk) for _, p in terms.MENTIONS)


def _mentions(clause: str, start: int, end: int, entries: list[_Entry]) -> list[tuple[tuple[str, ...], bool]]:
    """(labels, present) of the mentions that begin in ``clause[start:end]``, one per label."""
    found: dict[tuple[str, ...], bool] = {}
    taken: list[tuple[int, int]] = []
    for label, pattern in terms.MENTIONS:
        for match in pattern.finditer(clause, start, len(clause)):
            if match.start() >= end or any(a <= match.start() < b for a, b in taken):
                continue
            taken.append(match.span())
            found[(label,)] = found.get((label,), False) or not _denied(clause, *match.span())
    known = {label for labels in found for label in labels}
    for labels, pattern in terms.ORGANS:
        match_ = pattern.search(clause, start, end)
        if match_ and not known.intersection(labels) and _normal(clause, *match_.span()):
            found[labels] = False
    if not found and entries and (one := _ONE.search(clause, start, end)) and groups_of(clause[start:end])[0].says_anything:
        found[entries[-1].labels] = not _denied(clause, *one.span())
    return list(found.items())


def _denied(clause: str, start: int, end: int) -> bool:
    """Whether a mention is in the scope of a denial before or after it."""
    cues = list(terms.BEFORE.finditer(clause, 0, start))
    if cues and not _ended(clause[cues[-1].end() : start], clause[start:]):
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
    return not listed and bool(_NEW_STATEMENT.search(last) or terms.GRADE.search(last) or terms.SIDE.search(last))


def _normal(clause: str, start: int, end: int) -> bool:
    """Whether an organ is called normal: after it in the clause, or in a word before it."""
    if terms.NORMAL.search(clause, end):
        return True
    near = terms.NORMAL.search(clause, max(0, start - 30), start)
    return bool(near) and not re.search(r"[,:]", clause[near.end() if near else start : start])
