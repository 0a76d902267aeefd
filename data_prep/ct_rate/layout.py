"""Which files of a source are its volumes, by places and names alone: CT-RATE's tree as it lies on disk.

Three kinds of files have the volumes' names: ``train_fixed/`` and ``valid_fixed/`` (corrected), ``train/``
and ``valid/`` (the first version: stored values, geometry lost), ``ts_seg/`` (label maps). The lists
``no_chest_*.txt`` name volumes of other parts of the body.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ctflow.errors import CTFlowError, ScanError
from ctflow.text_files import read_text

VOLUME = re.compile(
    r"^(?P<patient>(?P<split>train|valid)_\d+)_(?P<scan>[a-z]+)_(?P<number>\d+)$", re.IGNORECASE
)
"""CT-RATE's volume name: split, patient, scan, reconstruction."""

TREE = re.compile(r"^(train|valid)(_fixed)?$", re.IGNORECASE)
TABLE_FOLDERS = ("metadata", "radiology_text_reports", "multi_abnormality_labels")
"""Folders of CT-RATE's CSVs and lists, next to its trees."""
_LIST = re.compile(r"^no_?chest.*\.txt$", re.IGNORECASE)
_SEGMENTATIONS = re.compile(r"^ts_(seg|total|lung|pleural)", re.IGNORECASE)
_WORD = r"(seg|segs|segmentations?|masks?|labels?|labelmaps?|labels?tr|labels?ts|rois?|annotations?)"
_LABEL_FOLDER = re.compile(rf"(^|[_\-. ]){_WORD}([_\-. ]|$)|^totalsegmentator", re.IGNORECASE)
_LABEL_SUFFIX = re.compile(rf"[_\-. ]{_WORD}$", re.IGNORECASE)
_ENDINGS = ("nii", "hdr", "img", "mha", "mhd", "nrrd", "nhdr", "dcm")
_CHANNEL = re.compile(r"_0000$")
"""Of a volume's name where label maps of the same case have none (nnU-Net's folders)."""


@dataclass(frozen=True)
class LeftOut:
    """Files that are left unread, reported in one line.

    Attributes:
        place: Where they lie, under the source.
        code: A key of ``reasons.EXCLUSIONS``.
        count: How many.
        detail: Why, in words.
    """

    place: str
    code: str
    count: int
    detail: str


@dataclass
class Layout:
    """The files to read, and those left out.

    Attributes:
        kept: Keys to read.
        shared: Those whose name other files have too: one of them may be a label map.
        left_out: Groups of files that are left unread.
    """

    kept: list[str] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)


def stem_of(key: str) -> str:
    """A file's name without folders and without the endings of images."""
    name = key.rpartition("/")[2]
    whole = name[:-3] if name[-3:].lower() == ".gz" else name
    stem, dot, ending = whole.rpartition(".")
    return stem if dot and ending.lower() in _ENDINGS else name


def is_list(name: str) -> bool:
    """Whether a file's name is that of a list of volumes that show no chest."""
    return _LIST.match(name) is not None


def sort_out(keys: Iterable[str], root: str, first_version: bool) -> Layout:
    """Tell volumes from label maps and the corrected trees from the first version's.

    Args:
        keys: Image files, by path under the source.
        root: Name of the source's own folder: it may be one of the trees.
        first_version: Take volumes that the corrected tree lacks from the first version.
    """
    layout = Layout()
    volumes = _without_label_maps(list(keys), root, layout)
    layout.kept = _corrected(volumes, root, first_version, layout)
    names = Counter(map(stem_of, layout.kept))
    layout.shared = {key for key in layout.kept if names[stem_of(key)] > 1}
    return layout


def read_lists(paths: Sequence[Path]) -> dict[str, str]:
    """Volumes that lists name, a line each, to the list's name; case and endings do not matter.

    Raises:
        ScanError: A list that cannot be read.
    """
    listed: dict[str, str] = {}
    for path in paths:
        try:
            text = read_text(path)
        except CTFlowError as error:
            raise ScanError(
                f"{error.found}: no list of volumes",
                "one file name a line",
                "check --exclude, or move the file out of the source",
            ) from error
        for line in text.splitlines():
            if name := line.split("#")[0].strip().strip('",'):
                listed.setdefault(stem_of(name.replace("\\", "/")).lower(), path.name)
    return listed


def _without_label_maps(keys: list[str], root: str, layout: Layout) -> list[str]:
    """CT-RATE's segmentations by their folder; others where a volume of their name lies elsewhere."""
    in_root = _SEGMENTATIONS.match(root) is not None
    places = {key: _label_place(key) for key in keys}
    certain = {
        key for key in keys if in_root or (places[key] and _SEGMENTATIONS.match(places[key].rsplit("/")[-1]))
    }
    plain = {_CHANNEL.sub("", stem_of(key)).lower() for key in keys if not places[key] and key not in certain}
    found: dict[str, list[str]] = {}
    volumes = []
    for key in keys:
        name = _LABEL_SUFFIX.sub("", stem_of(key)).lower()
        if key in certain:
            found.setdefault(places[key] or ".", []).append(key)
        elif places[key] and _CHANNEL.sub("", name) in plain:
            found.setdefault(_folder_name(places[key]), []).append(key)
        else:
            volumes.append(key)
    for place, members in found.items():
        detail = "label maps under the names of volumes, by their place"
        layout.left_out.append(LeftOut(_told_place(place, members), "label_map", len(members), detail))
    return volumes


def _label_place(key: str) -> str:
    """The path down to the first folder that by its name holds label maps, or ``*_seg``; empty: neither."""
    if place := _label_folder(key.rpartition("/")[0]):
        return place
    suffix = _LABEL_SUFFIX.search(stem_of(key))
    return f"*{suffix.group(0)}" if suffix else ""


@lru_cache(maxsize=2**16)
def _label_folder(path: str) -> str:
    """The path down to the first of its folders that holds label maps; empty: none does."""
    folders = path.split("/")
    for words in (_SEGMENTATIONS, _LABEL_FOLDER):
        for depth, folder in enumerate(folders, start=1):
            if words.search(folder):
                return "/".join(folders[:depth])
    return ""


def _folder_name(place: str) -> str:
    """Groups label maps that lie in a folder per patient."""
    return place.rsplit("/", 1)[-1]


def _told_place(place: str, members: list[str]) -> str:
    if place.startswith("*"):
        return place
    folders = {_label_place(key) for key in members}
    return f"{place if len(folders) > 1 else folders.pop() or '.'}/"


def _corrected(keys: list[str], root: str, first_version: bool, layout: Layout) -> list[str]:
    """The corrected tree where a split has one; its first version is then left out."""
    trees = {key: _tree(key, root) for key in keys if VOLUME.match(stem_of(key))}
    corrected: dict[str, set[str]] = {}
    for key, tree in trees.items():
        if tree.lower().endswith("_fixed"):
            corrected.setdefault(_split(key), set()).add(stem_of(key).lower())
    dropped: dict[str, list[str]] = {}
    for key, tree in trees.items():
        there = corrected.get(_split(key))
        if tree and there and not tree.lower().endswith("_fixed"):
            if stem_of(key).lower() not in there and first_version:
                continue
            dropped.setdefault(tree, []).append(key)
    for tree, members in dropped.items():
        lacking = sum(stem_of(key).lower() not in corrected[_split(key)] for key in members)
        detail = f"first version: {_split(members[0])}_fixed has these volumes corrected"
        if lacking:
            detail += f", but for {lacking}, which first_version=true takes"
        layout.left_out.append(LeftOut(f"{tree}/", "first_version", len(members), detail))
    gone = {key for members in dropped.values() for key in members}
    return [key for key in keys if key not in gone]


def _tree(key: str, root: str) -> str:
    """The path down to the tree a volume lies in, the source's own folder included; empty: in none."""
    folders = [root, *key.split("/")[:-1]]
    for depth in range(len(folders), 0, -1):
        if TREE.match(folders[depth - 1]):
            return "/".join(folders[1:depth]) or root
    return ""


def _split(key: str) -> str:
    match = VOLUME.match(stem_of(key))
    assert match is not None
    return match["split"].lower()
