"""Which line of a CSV names which volume: by the longest end of the path that both share."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.ct_rate.discovery import DICOM, ITK, NIFTI, case_id_of, is_published

_ENDINGS = (*NIFTI, ".img.gz", ".img", *ITK, *DICOM)
_FOLDERS_TRUSTED = 2
"""Least names at the end of two paths that must agree where the folders before them differ."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A line of a CSV.

    Attributes:
        place: File and row, for messages.
        name: What it calls the volume, as it stands there.
        cells: Its cells by column.
    """

    place: str
    name: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Match:
    """What names a volume.

    Attributes:
        lines: Lines that name it; several where they name it twice.
        doubt: Why they cannot be taken; empty where they can.
    """

    lines: tuple[Line, ...] = ()
    doubt: str = ""


class Matcher:
    """Lines of one kind of CSV against the volumes of a source.

    A line names a volume by its path or the end of it, with or without the ending, with either slash, in
    small or capital letters; or by a folder that holds this volume alone. Folders that differ in front do not
    matter where two names agree, or where file names alone tell all volumes of the source apart.

    Args:
        lines: All lines.
        keys: Keys of the source's items; a series' after ``#`` is left out.
        root: Folder of the source, whose own path counts as the beginning of every key.
    """

    def __init__(self, lines: Sequence[Line], keys: Iterable[str], root: Path) -> None:
        self._lines = lines
        self._root = parts_of(root.absolute().as_posix())
        self._keys = {key.partition("#")[0].rstrip("/") for key in keys}
        # CT-RATE's names are cases wherever they lie: a second file of a name is refused as a duplicate.
        self._cases = {k: name.lower() if is_published(name := case_id_of(k)) else k for k in self._keys}
        self._ends: dict[Parts, list[str]] = defaultdict(list)
        self._folders: dict[Parts, list[str]] = defaultdict(list)
        for key in sorted(self._keys):
            own = parts_of(key)
            for end in _ends(self._root + own):
                self._ends[end].append(key)
            for depth in range(1, len(own)):
                for end in _ends(own[:depth]):
                    self._folders[end].append(key)
        stems = [parts_of(key)[-1] for key in self._keys]
        self._names_tell = len(set(stems)) == len(stems) > 1
        self._found: dict[str, list[tuple[int, Line, tuple[str, ...]]]] = defaultdict(list)
        self.unmatched: list[Line] = []
        for line in lines:
            depth, named = self._named_by(line.name)
            for key in named:
                self._found[key].append((depth, line, named))
            if not named:
                self.unmatched.append(line)

    def match(self, key: str) -> Match:
        """Lines that name a volume, and why they are in doubt.

        Args:
            key: Of an item.
        """
        key = key.partition("#")[0].rstrip("/")
        if key not in self._keys:  # found in a folder that was sorted
            return Matcher(self._lines, [*self._keys, key], Path("/", *self._root)).match(key)
        found = self._found.get(key, [])
        deepest = max((depth for depth, _, _ in found), default=0)
        best = [(line, named) for depth, line, named in found if depth == deepest]
        for line, named in best:
            others = [other for other in named if self._cases[other] != self._cases[key]]
            if others:
                doubt = (
                    f"{line.place} calls a volume {line.name!r}, which also fits {others[0]}"
                    f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}: write {key}"
                )
                return Match((), doubt)
        return Match(tuple(line for line, _ in best))

    def _named_by(self, name: str) -> tuple[int, tuple[str, ...]]:
        """How many names of the path agree, and the keys of the volumes for which they do."""
        parts = parts_of(name)
        for end in _ends(parts):
            keys = [key for key in self._ends.get(end, ()) if self._trusted(end, parts, key)]
            if keys:
                return len(end), self._narrowed(name, parts, keys)
        for end in _ends(parts) if parts and not _has_ending(name) else ():
            if end in self._folders and (end == parts or len(end) >= _FOLDERS_TRUSTED):
                return len(end), tuple(dict.fromkeys(self._folders[end]))
        return 0, ()

    def _trusted(self, end: Parts, line: Parts, key: str) -> bool:
        own = parts_of(key)
        return end in (line, own) or len(end) >= (1 if self._names_tell else _FOLDERS_TRUSTED)

    def _narrowed(self, name: str, parts: Parts, keys: list[str]) -> tuple[str, ...]:
        """Of several volumes the one that is called exactly so, or has the ending, if there is just one."""
        last = re.split(r"[/\\]", name.strip().lower())[-1]
        for chosen in (
            [key for key in keys if parts_of(key) == parts],
            [key for key in keys if key.lower().rsplit("/", 1)[-1] == last and _has_ending(name)],
        ):
            if len(chosen) == 1:
                return tuple(chosen)
        return tuple(keys)


def parts_of(path: str) -> Parts:
    """Names of a path in small letters, either slash between them, the last without an image's ending."""
    names = [n for n in re.split(r"[/\\]+", path.strip().lower()) if n not in ("", ".")]
    return (*names[:-1], _without_ending(names[-1])) if names else ()


def _ends(parts: Parts) -> list[Parts]:
    return [parts[k:] for k in range(len(parts))]


def _without_ending(name: str) -> str:
    return next((name[: -len(e)] for e in _ENDINGS if name.endswith(e) and len(name) > len(e)), name)


def _has_ending(name: str) -> bool:
    return name.strip().lower().endswith(_ENDINGS)
