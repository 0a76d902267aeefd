"""Which line of a CSV names which volume: by the longest end of the path that both share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.ct_rate.naming import DICOM, ITK, NIFTI, case_id_of, folder_and_series, is_published

_ENDINGS = (*NIFTI, ".img.gz", ".img", *ITK, *DICOM)
_FOLDERS_TRUSTED = 2
"""Least names at the end of two paths that must agree where the folders before them differ."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A line of a CSV.

    Attributes:
        place: File and row, for messages.
        name: Its name of the volume, unchanged.
        cells: Its cells by column.
    """

    place: str
    name: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Match:
    """A name of a volume in a table.

    Attributes:
        lines: Lines that name it; several where they name it twice.
        doubt: Why they cannot be taken; empty where they can.
    """

    lines: tuple[Line, ...] = ()
    doubt: str = ""


class Names:
    """Volumes of a source by the ends of their paths, for the CSVs of every kind.

    Args:
        keys: Keys of the source's items; a series' after ``#`` is left out.
        root: Folder of the source, whose own path counts as the beginning of every key.
    """

    def __init__(self, keys: Iterable[str], root: Path) -> None:
        self.root = parts_of(root.absolute().as_posix())
        self.parts: dict[str, Parts] = {}
        self._by_last: dict[str, list[str]] = {}
        for key in sorted({folder_and_series(key)[0] for key in keys}):
            self._place(key)

    def add(self, key: str) -> None:
        """One more volume, found in a folder that was sorted."""
        self._place(folder_and_series(key)[0])
        for cached in ("_ends", "_folders"):
            self.__dict__.pop(cached, None)

    def _place(self, key: str) -> None:
        self.parts[key] = own = parts_of(key)
        self._by_last.setdefault((own or self.root)[-1], []).append(key)

    def ending(self, end: Parts) -> Sequence[str]:
        """Keys whose paths end so, the source's own path included."""
        like = self._by_last.get(end[-1], ())
        if len(like) < 2:
            return [key for key in like if (self.root + self.parts[key])[-len(end) :] == end]
        return self._ends.get(end, ())

    def below(self, end: Parts) -> Sequence[str]:
        """Keys of the volumes in folders whose paths end so."""
        return tuple(dict.fromkeys(self._folders.get(end, ())))

    def names_tell(self) -> bool:
        """Whether file names alone distinguish all volumes."""
        return len(self._by_last) == len(self.parts) > 1

    @cached_property
    def _ends(self) -> dict[Parts, list[str]]:
        """Of the keys whose last name others have too."""
        ends: dict[Parts, list[str]] = {}
        for keys in self._by_last.values():
            for key in keys if len(keys) > 1 else ():
                for end in _ends(self.root + self.parts[key]):
                    ends.setdefault(end, []).append(key)
        return ends

    @cached_property
    def _folders(self) -> dict[Parts, list[str]]:
        folders: dict[Parts, list[str]] = {}
        for key, own in self.parts.items():
            for depth in range(1, len(own)):
                for end in _ends(own[:depth]):
                    folders.setdefault(end, []).append(key)
        return folders


class Matcher:
    """Lines of one kind of CSV against the volumes of a source.

    A line names a volume by its path or the end of it, with or without the ending, with either slash, in
    small or capital letters; or by a folder that holds this volume alone. Folders that differ in front do not
    matter where two names agree, or where file names alone tell all volumes of the source apart. Series of
    one folder share its lines; where they are of several patients, a line has to name the series, as
    ``folder/#2-s4``.

    Args:
        lines: All lines.
        names: Of the source's volumes.
    """

    def __init__(self, lines: Sequence[Line], names: Names) -> None:
        self.lines, self._names = lines, names
        self._found: dict[str, list[tuple[int, Line, Sequence[str]]]] = {}
        self.unmatched: list[Line] = []
        for line in lines:
            depth, named = self._named_by(line.name)
            for key in named:
                self._found.setdefault(key, []).append((depth, line, named))
            if not named:
                self.unmatched.append(line)

    def match(self, key: str, shared: bool = False) -> Match:
        """Lines that name a volume, and why they are in doubt.

        Args:
            key: Of an item.
            shared: Whether series of other patients lie in its folder.
        """
        base, series = folder_and_series(key)
        found = self._found.get(base, [])
        if series:
            exact = tuple(line for _, line, _ in found if _series(line.name) == series.lower())
            if exact:
                return Match(exact)
            found = [entry for entry in found if not _series(entry[1].name)]
        deepest = max((depth for depth, _, _ in found), default=0)
        best = [(line, named) for depth, line, named in found if depth == deepest]
        for line, named in best:
            others = [other for other in named if other != base and not _one_case(other, base)]
            if others or shared:
                others = others or ["series of other patients"]
                doubt = (
                    f"{line.place} calls a volume {line.name!r}, which also fits {others[0]}"
                    f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}: write {key}"
                )
                return Match((), doubt)
        return Match(tuple(line for line, _ in best))

    def repeated(self) -> list[tuple[str, Match]]:
        """Keys that several lines name, and these lines."""
        several = [key for key, found in self._found.items() if len(found) > 1]
        return [(key, match) for key in several if len((match := self.match(key)).lines) > 1]

    def _named_by(self, name: str) -> tuple[int, Sequence[str]]:
        """How many names of the path agree, and the keys of the volumes for which they do."""
        parts = parts_of(folder_and_series(name.replace("\\", "/"))[0])
        for end in _ends(parts):
            keys = [key for key in self._names.ending(end) if self._trusted(end, parts, key)]
            if keys:
                return len(end), self._narrowed(name, parts, keys) if len(keys) > 1 else keys
        for end in _ends(parts) if parts and not _has_ending(name) else ():
            below = self._names.below(end)
            if below and (end == parts or len(end) >= _FOLDERS_TRUSTED):
                return len(end), below
        return 0, ()

    def _trusted(self, end: Parts, line: Parts, key: str) -> bool:
        if end in (line, self._names.parts[key]) or len(end) >= _FOLDERS_TRUSTED:
            return True
        return self._names.names_tell()

    def _narrowed(self, name: str, parts: Parts, keys: list[str]) -> Sequence[str]:
        """Of several volumes the one that is called exactly so, or has the ending, if there is just one."""
        spelled = name.strip().replace("\\", "/")
        last = spelled.lower().rsplit("/", 1)[-1]
        one_path = len({self._names.parts[key] for key in keys}) == 1
        for chosen in (
            [key for key in keys if self._names.parts[key] == parts],
            [key for key in keys if key.lower().rsplit("/", 1)[-1] == last and _has_ending(name)],
            [key for key in keys if one_path and _same_letters(key, spelled)],
        ):
            if len(chosen) == 1:
                return chosen
        return keys


def parts_of(path: str) -> Parts:
    """Names of a path in small letters, either slash between them, the last without an image's ending."""
    names = [n for n in path.strip().lower().replace("\\", "/").split("/") if n not in ("", ".")]
    return (*names[:-1], _without_ending(names[-1])) if names else ()


def _same_letters(key: str, spelled: str) -> bool:
    """Whether the shorter of two paths ends the longer one, in the same small and capital letters."""
    one, other = (f"/{_without_ending(path.strip('/'))}" for path in (folder_and_series(key)[0], spelled))
    return one.endswith(other) or other.endswith(one)


def _series(name: str) -> str:
    return folder_and_series(name.strip().lower().replace("\\", "/"))[1]


def _one_case(one: str, other: str) -> bool:
    """CT-RATE's names are cases wherever they lie: a second file of a name is refused as a duplicate."""
    first, second = case_id_of(one), case_id_of(other)
    return is_published(first) and first.lower() == second.lower()


def _ends(parts: Parts) -> list[Parts]:
    return [parts[k:] for k in range(len(parts))]


def _without_ending(name: str) -> str:
    if not name.endswith(_ENDINGS):
        return name
    return next((name[: -len(e)] for e in _ENDINGS if name.endswith(e) and len(name) > len(e)), name)


def _has_ending(name: str) -> bool:
    return name.strip().lower().endswith(_ENDINGS)
