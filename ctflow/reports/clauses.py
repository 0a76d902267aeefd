"""One clause of a sentence: its mentions, and the places and sizes that belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ctflow.reports import terms
from ctflow.reports.mentions import mentions_in
from ctflow.reports.places import Group, groups_of

_CHUNK = re.compile(
    r"(,(?!\d)|:|\band\b|\bor\b|\bnor\b|\bwith\b|\bwithout\b|\bas well as\b|\bplus\b"
    r"|\badjacent to\b|\bnext to\b|\baccompan\w+|\bassociated with\b|[()])"
)
_LEADING_PLACE = re.compile(r"^\W*(?:in|on|at|within)\b")
_MAINLY = re.compile(
    r"\b(?:mainly|predominantly|predominant|especially|particularly|more|mostly|primarily)\b"
)
_NOT_HERE = re.compile(r"\b(?:not|none|no|nothing|never|free|clear|spared|normal)\b")
_FILLER = re.compile(
    r"\b(?:an?|the|of|in|on|at|to|up|about|around|approximately|ca|side|sides|sided|lungs?|zones?"
    r"|measuring|measures|size|sized|diameters?|short|long|axis|axes|thick|thickness|largest|bigger"
    r"|smaller|other|another|also|each|respectively|hemithorax|apex|apices"
    r"|apical|base|basal|bases|one|is|are|it|segments?|mm|cm|ml|cc|mainly|predominantly|in total|total|volume"
    r"|amount)\b|[\d.,:()%/\-]"
)


@dataclass
class Entry:
    """A mention on its way to findings.

    Attributes:
        labels: What it names.
        present: False where it is denied.
        group: Place and sizes said with it.
        extra: Further places, each with its sizes.
    """

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
        if not group.placed and not group.numbered:
            for known in (self.group, *self.extra):
                known.fill(group)
        elif not group.placed or (not self.extra and not self.group.placed):
            if last.takes(group):
                last.fill(group)
            elif not only_fill:
                self.extra.append(replace(group, side=group.side or last.side, lobe=group.lobe or last.lobe))
                self.group.fill(group.place())
        elif not only_fill and (last.side, last.lobe) != (group.side, group.lobe):
            self.extra.append(group)
        elif not only_fill or (last.side, last.lobe) == (group.side, group.lobe):
            if last.takes(group):
                last.fill(group)
            else:
                self.extra.append(group)

    def groups(self) -> list[Group]:
        """Places, each with its sizes; sides named one by one replace ``both``, and no side is lost."""
        whole = self.group.side == "both" and self.group.lobe is None
        if whole and any(g.placed for g in self.extra):
            told = [replace(g, grade=g.grade or self.group.grade) for g in self.extra]
            silent = [side for side in ("right", "left") if side not in {g.side for g in told}]
            return told + [replace(self.group, side=side) for side in silent if len(silent) == 1]
        return [self.group, *self.extra]


class Chunk(NamedTuple):
    """A part of a clause between commas, conjunctions and the like.

    Attributes:
        text: Without separators.
        start: Where it begins in the clause.
        separator: The text before it.
    """

    text: str
    start: int
    separator: str


class Clause:
    """Reads a clause chunk by chunk.

    Args:
        text: The clause, normalised.
        entries: The sentence's mentions so far; further ones are added, and what the clause says of the last
            one is added to it.
    """

    def __init__(self, text: str, entries: list[Entry]) -> None:
        self.text, self.entries = text, entries
        self.begun = False
        """Whether a mention of this clause was read."""
        self.lead: Group | None = None
        """Place at the clause's beginning (``in the left lower lobe``): of all mentions without their own."""
        self.before: list[Group] = []
        """Places and sizes that came before the first mention (``a large right and a small left one``)."""

    def read(self) -> None:
        """Read all of it."""
        for chunk in self._chunks():
            named = mentions_in(self.text, chunk.start, chunk.start + len(chunk.text), self._last())
            groups = groups_of(chunk.text)
            if terms.FOREIGN.search(chunk.text) and not terms.THORACIC.search(chunk.text):
                continue
            if named:
                self._add(chunk, named, groups)
            elif self.entries and groups[0].placed and not groups[0].sized and _denied_here(chunk.text):
                self._begin([_entry(self.entries[-1].labels, False, groups)])
            elif groups[0].says_anything and not terms.NORMAL.search(chunk.text):
                self._place(chunk, groups)
        if not self.begun and self.entries and not terms.NORMAL.search(self.text):
            for group in self.before:
                self.entries[-1].attach(group, only_fill=False, refines=False)

    def _chunks(self) -> Iterator[Chunk]:
        pieces, start, separator = _CHUNK.split(self.text), 0, ""
        for i in range(0, len(pieces), 2):
            yield Chunk(pieces[i], start + len(separator), separator)
            start += len(separator) + len(pieces[i])
            separator = pieces[i + 1] if i + 1 < len(pieces) else ""

    def _last(self) -> tuple[str, ...]:
        return self.entries[-1].labels if self.entries else ()

    def _begin(self, entries: list[Entry]) -> None:
        self.entries.extend(entries)
        self.begun, self.before = True, []

    def _add(self, chunk: Chunk, named: list[tuple[tuple[str, ...], bool]], groups: list[Group]) -> None:
        new = [_entry(labels, present, groups) for labels, present in named]
        for entry in new:
            self._take_leading(entry)
        if not self.begun and _LEADING_PLACE.match(chunk.text) and groups[0].placed:
            self.lead = groups[0].place()
        if self.begun and chunk.separator in ("and", "or", "nor"):
            _share_place(self.entries[-1], new[-1], chunk.text)
        self._begin(new)

    def _take_leading(self, entry: Entry) -> None:
        if self.before and entry.group.placed:
            entry.extra.extend(replace(group) for group in self.before)
        elif self.before:
            entry.group.fill(self.before[-1])
            entry.extra.extend(replace(group) for group in self.before[:-1])
        elif self.lead is not None and not entry.group.placed:
            entry.group.fill(self.lead)

    def _place(self, chunk: Chunk, groups: list[Group]) -> None:
        """Places and sizes without a mention: of the mention before, or of the one to come."""
        if not self.begun and _LEADING_PLACE.match(chunk.text) and groups[0].placed and not groups[0].sized:
            self.lead = groups[0].place()
        elif not self.begun:
            self.before.extend(groups)
        elif terms.BEFORE.search(chunk.text):
            return
        elif not self.entries[-1].present and groups[0].placed and groups[0].sized:
            self._begin([_entry(self._last(), True, groups)])
        else:
            bare = not re.sub(r"\W", "", _FILLER.sub("", _without_modifiers(chunk.text)))
            for group in groups:
                self.entries[-1].attach(group, only_fill=not bare, refines=bool(_MAINLY.search(chunk.text)))


def _entry(labels: tuple[str, ...], present: bool, groups: list[Group]) -> Entry:
    return Entry(labels, present, replace(groups[0]), [replace(group) for group in groups[1:]])


def _share_place(before: Entry, after: Entry, chunk: str) -> None:
    """``atelectasis and effusion on the left``: what is joined directly shares the place that comes after."""
    if before.group.placed or not after.group.placed or before.present != after.present:
        return
    named = terms.SIDE.search(chunk) or terms.LOBE.search(chunk)
    words = [match.start() for _, pattern in terms.MENTIONS if (match := pattern.search(chunk))]
    if named and words and min(words) < named.start() and not re.match(r"\s*(?:an?|the|there)\b", chunk):
        before.group.fill(after.group.place())


def _denied_here(chunk: str) -> bool:
    """``none on the left``, ``not on the left``, ``left side free``: a denial of what was stated before."""
    rest = _FILLER.sub("", _without_modifiers(chunk))
    return bool(_NOT_HERE.search(rest)) and not re.sub(r"\W", "", _NOT_HERE.sub("", rest))


def _without_modifiers(chunk: str) -> str:
    for pattern in (terms.LOBE, terms.SIDE, terms.MILLIMETRES, terms.MILLILITRES, terms.GRADE, _MAINLY):
        chunk = pattern.sub("", chunk)
    return chunk
