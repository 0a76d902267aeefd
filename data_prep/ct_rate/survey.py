"""The names under a source: what each file may be, before anything is opened."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctflow.errors import ScanError
from data_prep.ct_rate.layout import TABLE_FOLDERS, TREE, is_list
from data_prep.ct_rate.naming import DICOM, ITK, NIFTI
from data_prep.ct_rate.reasons import printable

TRUTH = ".truth.json"
"""Ending of the ground truth beside a phantom, after the volume's stem."""
_RAW_PARTS = (".raw", ".zraw", ".raw.gz")
_PAIR_PARTS = (".img", ".img.gz")
_STRAY = (
    *(
        [
            ".csv",
            ".tsv",
            ".txt",
            ".md",
            ".json",
            ".jsonl",
            ".yaml",
            ".yml",
            ".xml",
            ".html",
            ".htm",
            ".pdf",
            ".doc",
            ".docx",
            ".xls",
            ".xlsx",
            ".ini",
            ".cfg",
            ".log",
            ".rtf",
        ]
    ),
    *(
        [
            ".png",
            ".jpg",
            ".jpeg",
            ".gif",
            ".bmp",
            ".tif",
            ".tiff",
            ".svg",
            ".webp",
            ".mp4",
            ".avi",
            ".mov",
            ".py",
            ".sh",
            ".bat",
            ".exe",
            ".dll",
            ".jar",
            ".inf",
            ".js",
            ".css",
        ]
    ),
    *(
        [
            ".h5",
            ".hdf5",
            ".npz",
            ".npy",
            ".pkl",
            ".pt",
            ".safetensors",
            ".db",
            ".sqlite",
            ".lnk",
            ".bval",
            ".bvec",
            ".partial",
        ]
    ),
)
_ARCHIVES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar", ".tgz", ".zip", ".7z", ".rar")
_PACKED = (*_ARCHIVES, ".gz", ".bz2", ".xz", ".zst", ".lz4")
_SPECIAL = ("pipe", "socket", "device")
_SEARCHABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_STRAY_NAMES = ("dicomdir", "lockfile", "version", "readme", "license", "thumbs.db")


@dataclass
class Survey:
    """Names of the files under a source; nothing was opened.

    Attributes:
        base: Folder that keys are relative to.
        images: Key to path of NIfTI, NRRD and MetaImage files.
        loose: Folder's key to the paths of its files that may be DICOM.
        csvs: CSV files.
        lists: Lists of volumes that show no chest.
        stray: Keys of files that are not images.
        told: As in ``Source``.
    """

    base: Path
    images: dict[str, str] = field(default_factory=dict)
    loose: dict[str, list[str]] = field(default_factory=dict)
    csvs: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    told: list[tuple[str, str, str, str]] = field(default_factory=list)


def survey_source(root: Path, output: Path | None = None) -> Survey:
    """The names under a source; the CSVs and lists beside it, where it is one of CT-RATE's trees.

    Args:
        root: Folder or file.
        output: Left out of the walk, should it lie inside.

    Raises:
        ScanError: Nothing there, or nothing that this user may read.
    """
    closed: list[OSError] = []
    if root.is_file():
        survey = Survey(root.parent)
        found: Iterator[tuple[str, str, bool]] = iter([(os.fspath(root), root.name, False)])
    elif root.is_dir():
        survey = Survey(root)
        found = _walk(root, output, closed)
    else:
        raise ScanError(f"no folder at {root}", "a folder with scans", "give --source DIR")
    packed: Counter[tuple[str, str]] = Counter()
    for path, inside, regular in found:
        _sort_in(survey, path, inside, regular, packed)
    for (folder, ending), count in packed.items():
        detail = f"{count} files that are not read packed: unpack them first"
        survey.told.append((f"{folder}*{ending}", "refused", "packed", detail))
    for refusal in closed:
        _tell_closed(survey, root, refusal)
    if TREE.match(root.resolve().name):
        for beside in (root.resolve().parent / name for name in TABLE_FOLDERS):
            add_tables(survey, beside)
    return survey


def _sort_in(survey: Survey, path: str, inside: str, regular: bool, packed: Counter[tuple[str, str]]) -> None:
    """Put one file where it belongs.

    Args:
        survey: Changed in place.
        path: The file.
        inside: Its path under the source.
        regular: Whether the walk has seen that it is a regular file.
        packed: Packed files by folder and ending, changed in place.
    """
    key = printable(inside)
    folder, _, name = key.rpartition("/")
    lower = name.lower()
    try:
        kind = "list" if is_list(name) else (not regular and _special(path)) or _kind(lower, path)
    except OSError as error:
        survey.told.append((key, "refused", "not_read", printable(str(error))))
        return
    if kind in ("nifti", "itk"):
        survey.images[key] = path
    elif kind == "dicom":
        survey.loose.setdefault((folder or printable(survey.base.name)) + "/", []).append(path)
    elif kind == "csv":
        survey.csvs.append(Path(path))
    elif kind == "list":
        survey.lists.append(Path(path))
    elif kind == "stray":
        survey.stray.append(key)
    elif kind in _SPECIAL:
        status = "refused" if lower.endswith((*NIFTI, *ITK, *DICOM)) else "ignored"
        code = "not_an_image" if status == "refused" else "special_file"
        survey.told.append((key, status, code, f"a {kind}, which is not opened"))
    elif kind.startswith("packed"):
        packed[f"{folder}/" if folder else "", kind.partition(" ")[2]] += 1


def _tell_closed(survey: Survey, root: Path, error: OSError) -> None:
    """A folder that cannot be listed is told; the source itself cannot be done without."""
    here = Path(error.filename or root)
    if here == root:
        raise ScanError(
            f"{root} cannot be read: {error.strerror}", "a folder that this user may read"
        ) from error
    key = printable(here.relative_to(survey.base).as_posix()) + "/"
    survey.told.append((key, "refused", "not_read", f"the folder cannot be read: {error.strerror}"))


def add_tables(survey: Survey, folder: Path) -> None:
    """Count the CSVs and lists of another folder as the source's; one that is not there has none."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".csv":
            survey.csvs.append(path)
        elif is_list(path.name):
            survey.lists.append(path)


def sibling(path: Path, endings: Sequence[str]) -> Path | None:
    """The file beside another that has its name and one of some endings, in small or capital letters.

    Args:
        path: A file; its own ending, with a ``.gz`` after it, is left out.
        endings: Endings to try, in this order.
    """
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem = Path(name).stem
    candidates = (path.with_name(stem + e) for ending in endings for e in (ending, ending.upper()))
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)


def parts_beside(path: Path) -> list[Path]:
    """Files that hold the voxels of a header, as far as their names tell."""
    name = path.name.lower()
    if name.endswith((".hdr", ".hdr.gz")):
        part = sibling(path, _PAIR_PARTS)
    elif name.endswith((".mhd", ".nhdr")):
        part = sibling(path, _RAW_PARTS)
    else:
        part = None
    return [part] if part else []


def _walk(root: Path, output: Path | None, closed: list[OSError]) -> Iterator[tuple[str, str, bool]]:
    """Files in order: path, path under the root, and whether it is a regular file for certain.

    Links are followed, every folder once, hidden names are left out. Folders that cannot be listed, or whose
    files cannot be looked at, go to ``closed``.
    """
    seen: set[tuple[int, int]] = set()
    if output and output.is_dir():
        seen.add(((own := output.stat()).st_dev, own.st_ino))
    waiting = [(os.fspath(root), "")]
    while waiting:
        folder, inside = waiting.pop()
        try:
            status = os.stat(folder)
            with os.scandir(folder) as listed:
                entries = sorted((e for e in listed if not e.name.startswith(".")), key=lambda e: e.name)
            if status.st_mode & _SEARCHABLE != _SEARCHABLE:
                _look_at_first(folder, entries)
        except OSError as error:
            closed.append(error)
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            continue
        seen.add(identity)
        folders = [entry for entry in entries if _is_folder(entry)]
        names = {entry.name for entry in folders}
        cache = {"blobs", "snapshots"} <= names  # of downloads: snapshots link to the blobs
        for entry in entries:
            if entry.name not in names:
                yield entry.path, inside + entry.name, entry.is_file(follow_symlinks=False)
        for entry in reversed(folders):
            if not (cache and entry.name == "blobs"):
                waiting.append((entry.path, f"{inside}{entry.name}/"))


def _look_at_first(folder: str, entries: Sequence[os.DirEntry[str]]) -> None:
    """A folder may be listed though nothing in it may be looked at.

    Raises:
        OSError: So it is; with the folder's name.
    """
    try:
        if entries:
            os.lstat(entries[0].path)
    except PermissionError as error:
        raise PermissionError(error.errno, error.strerror, folder) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed is told as a file
        return False


def _special(path: str) -> str:
    """``pipe``, ``socket`` or ``device``; empty for a regular file, and for a link to nothing, which is told
    when it is read.

    Raises:
        OSError: It may not be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return ""
    if stat.S_ISREG(mode):
        return ""
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _kind(name: str, path: str) -> str:
    """By name; one that says nothing may be DICOM.

    Args:
        name: In small letters.
        path: The file.
    """
    if name.endswith(_PAIR_PARTS) and sibling(Path(path), (".hdr", ".hdr.gz")):
        return "part"
    if name.endswith(NIFTI):
        return "nifti"
    if name.endswith(ITK):
        return "itk"
    if name.endswith(DICOM):
        return "dicom"
    if name.endswith(".csv"):
        return "csv"
    if name.endswith((*_RAW_PARTS, TRUTH)):
        return "part"
    if name.endswith(_PACKED):
        return _packed_kind(name)
    if name.endswith(_STRAY) or name.split(".")[0] in _STRAY_NAMES:
        return "stray"
    return "dicom"


def _packed_kind(name: str) -> str:
    """``packed`` and the ending; but ``stray`` for a packed file whose own name says otherwise."""
    ending = next(e for e in _PACKED if name.endswith(e))
    inner = name[: -len(ending)]
    if ending in _ARCHIVES or not inner.endswith((*_STRAY, ".csv")):
        image = next((e for e in (*NIFTI, *ITK, *DICOM) if inner.endswith(e)), "")
        return f"packed {image}{ending}"
    return "stray"
