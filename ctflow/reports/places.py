"""Places and sizes in a part of a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ctflow.reports import terms

_REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"[’‘`]", "'"),
        (r"[–—]", "-"),
        (r"\s+", " "),
        (r"\brul\b", "right upper lobe"),
        (r"\brml\b", "right middle lobe"),
        (r"\brll\b", "right lower lobe"),
        (r"\blul\b", "left upper lobe"),
        (r"\blll\b", "left lower lobe"),
        (r"\blingul\w+(?: segments?)?(?: of the left upper lobe)?", "left upper lobe"),
        (r"\b(right|left)[- ]sided\b", r"\1"),
        (r"\b(right|left) lung,? (upper|middle|lower) lobe", r"\1 \2 lobe"),
        (r"\b(upper|middle|lower) lobes? (?:of|on|in) the (right|left)(?: lung| side)?\b", r"\2 \1 lobe"),
        (r"(?<!right )(?<!left )\bmiddle lobe", "right middle lobe"),
        (
            r"\b(right|left) (upper|middle|lower),? (?:and|or|/) (upper|middle|lower) lobes?",
            r"\1 \2 lobe and \1 \3 lobe",
        ),
        (r"\b(right|left) and (right|left) (upper|middle|lower) lobes?", r"\1 \3 lobe and \2 \3 lobe"),
        (r"\b(?:both|bilateral) (upper|lower) lobes?", r"right \1 lobe and left \1 lobe"),
        (r"\b(upper|lower) lobes of both lungs\b", r"right \1 lobe and left \1 lobe"),
        (r"\b(upper|lower) lobes bilaterally\b", r"right \1 lobe and left \1 lobe"),
        (r"\blevels? (\d+)r\b", r"level \1 on the right"),
        (r"\blevels? (\d+)l\b", r"level \1 on the left"),
    )
)


def normalised(sentence: str) -> str:
    """Lower case, single spaces, every lobe by its full name."""
    text = sentence.lower()
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return text


@dataclass
class Group:
    """A place and sizes said together.

    Attributes:
        side: ``right``, ``left``, ``both`` or None.
        lobe: E.g. ``left lower lobe``, or None.
        sizes_mm: Axes of one measurement, empty where none is given.
        volume_ml: Millilitres.
        ratio: Cardiothoracic ratio.
        grade: Word of size or severity.
    """

    side: str | None = None
    lobe: str | None = None
    sizes_mm: tuple[float, ...] = ()
    volume_ml: float | None = None
    ratio: float | None = None
    grade: str | None = None

    @property
    def placed(self) -> bool:
        """Whether a side or lobe is named."""
        return self.side is not None

    @property
    def sized(self) -> bool:
        """Whether a size or grade is named."""
        return bool(self.sizes_mm) or any(v is not None for v in (self.volume_ml, self.ratio, self.grade))

    @property
    def says_anything(self) -> bool:
        """Whether anything is named."""
        return self.placed or self.sized

    def place(self) -> Group:
        """The place alone."""
        return Group(self.side, self.lobe)

    def unplaced(self) -> Group:
        """The sizes alone."""
        return Group(None, None, self.sizes_mm, self.volume_ml, self.ratio, self.grade)

    def takes(self, other: Group) -> bool:
        """Whether ``fill`` would lose nothing of ``other``'s sizes."""
        pairs = ((self.sizes_mm, other.sizes_mm), (self.volume_ml, other.volume_ml), (self.grade, other.grade))
        return all(not mine or not new or mine == new for mine, new in pairs)

    def fill(self, other: Group) -> None:
        """Take from ``other`` what is not known yet."""
        if not self.placed:
            self.side, self.lobe = other.side, other.lobe
        elif self.lobe is None and self.side == other.side:
            self.lobe = other.lobe
        self.sizes_mm = self.sizes_mm or other.sizes_mm
        self.volume_ml = other.volume_ml if self.volume_ml is None else self.volume_ml
        self.ratio = other.ratio if self.ratio is None else self.ratio
        self.grade = self.grade or other.grade


def groups_of(part: str) -> list[Group]:
    """Places and sizes in a part of a sentence, at least one (empty) group.

    More than one size or lobe make more than one group; sizes and lobes meet in their order.
    """
    lobes = [(m.group(1), m.group(0)) for m in terms.LOBE.finditer(part)]
    places: list[tuple[str | None, str | None]] = [(s, re.sub("lobes$", "lobe", lobe)) for s, lobe in lobes]
    if not places:
        places = [(side, None) for side in dict.fromkeys(_sides(part))]
    sizes = [_axes(m) for m in terms.MILLIMETRES.finditer(part)]
    first = places[0] if places else (None, None)
    groups = [Group(*first)]
    groups += [Group(side, lobe) for side, lobe in places[1:]]
    for i, axes in enumerate(sizes):
        if i < len(groups):
            groups[i].sizes_mm = axes
        else:
            groups.append(Group(*first, axes))
    volume, ratio, grade = (p.search(part) for p in (terms.MILLILITRES, terms.RATIO, terms.GRADE))
    for group in groups:
        group.volume_ml = _number(volume.group(1)) if volume else None
        group.ratio = _number(ratio.group(1)) if ratio else None
        group.grade = grade.lastgroup if grade else None
    return groups


def _sides(part: str) -> list[str]:
    sides = ["both" if m.group("both") else m.group("side") for m in terms.SIDE.finditer(part)]
    return ["both"] if "both" in sides else sides


def _axes(match: re.Match[str]) -> tuple[float, ...]:
    numbers = [match.group("first"), *re.findall(r"\d+(?:[.,]\d+)?", match.group("more"))]
    factor = 10.0 if match.group("unit").startswith("c") else 1.0
    return tuple(_number(n) * factor for n in numbers)


def _number(text: str) -> float:
    return float(text.replace(",", "."))
