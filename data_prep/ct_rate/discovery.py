"""What lies under a source: one item per file that may be a volume, one per folder of loose DICOM files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.layout import (
    TABLE_FOLDERS,
    TREE,
    Layout,
    LeftOut,
    is_list,
    read_lists,
    sort_out,
    stem_of,
)
from data_prep.ct_rate.reasons import printable

NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
DICOM = (".dcm", ".dicom", ".ima")
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
_STRAY_NAMES = ("dicomdir", "lockfile", "version", "readme", "license", "thumbs.db")
_LONGEST_CASE = 150
"""Most characters of a case's name, so that it fits into file names."""
_CT_RATE = re.compile(r"^((?:train|valid)_\d+)_[a-z]+_\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """A piece of work for one worker.

    Attributes:
        key: Path under the source, unique; a DICOM series adds ``#`` and its number.
        kind: ``nifti``, ``itk``, ``folder`` (loose DICOM files, to be sorted into series) or ``series``.
        files: Its files, absolute; a header comes before the voxels beside it.
        fingerprint: Names, sizes and times of the files.
        shared_name: Other files of the source have its name: it may be a label map of one of them.
    """

    key: str
    kind: str
    files: tuple[str, ...]
    fingerprint: str
    shared_name: bool = False


@dataclass
class Source:
    """Everything found under a source.

    Attributes:
        items: In the order of their keys.
        csvs: CSV files.
        stray: Files that are no images, by path under the source.
        told: Key, status, code and detail of what is neither read nor passed over in silence: folders and
            files that this user may not read, archives, pipes and devices.
        left_out: Groups of files that are no volumes, or are there in a better version.
        excluded: Keys of volumes that a list excludes, and why.
    """

    items: list[Item] = field(default_factory=list)
    csvs: list[Path] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    told: list[tuple[str, str, str, str]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)

    def keys(self) -> list[str]:
        """Keys of all volumes that are there, excluded ones included."""
        return [*(item.key for item in self.items), *self.excluded]


@dataclass
class Survey:
    """Names of the files under a source; nothing was opened.

    Attributes:
        base: Folder that keys are relative to.
        images: Key to path of NIfTI, NRRD and MetaImage files.
        loose: Folder's key to its files that may be DICOM.
        csvs: CSV files.
        lists: Lists of volumes that show no chest.
        stray: Keys of files that are no images.
        told: As in ``Source``.
    """

    base: Path
    images: dict[str, Path] = field(default_factory=dict)
    loose: dict[str, list[Path]] = field(default_factory=dict)
    csvs: list[Path] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    told: list[tuple[str, str, str, str]] = field(default_factory=list)


def find_items(root: Path, output: Path | None = None, config: IngestConfig | None = None) -> Source:
    """Walk a source without opening an image; a single file is a source too.

    Args:
        root: Folder or file.
        output: Left out of the walk, should it lie inside.
        config: Names folders and lists outside of the source, and decides on CT-RATE's first version.

    Raises:
        ScanError: Nothing there, or a list that cannot be read.
    """
    config = config or IngestConfig()
    survey = survey_source(root, output)
    layout, excluded = chosen_images(survey, config)
    source = Source([], survey.csvs, survey.stray, survey.told, layout.left_out, excluded)
    for key in layout.kept:
        paths = [survey.images[key], *_parts_of(survey.images[key])]
        kind = "nifti" if paths[0].name.lower().endswith(NIFTI) else "itk"
        shared = key in layout.shared
        source.items.append(Item(key, kind, tuple(map(str, paths)), fingerprint(paths), shared))
    for key, paths in survey.loose.items():
        source.items.append(Item(key, "folder", tuple(map(str, paths)), fingerprint(paths)))
    source.items.sort(key=lambda item: item.key)
    return source


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
        folders: Iterator[tuple[Path, list[str]]] = iter([(root.parent, [root.name])])
        survey = Survey(root.parent)
    elif root.is_dir():
        folders, survey = _walk(root, output, closed), Survey(root)
    else:
        raise ScanError(f"no folder at {root}", "a folder with scans", "give --source DIR")
    packed: dict[tuple[str, str], int] = {}
    for folder, names in folders:
        inside = folder.relative_to(survey.base).as_posix()
        for name in names:
            path = folder / name
            key = printable(name if inside == "." else f"{inside}/{name}")
            try:
                kind = "list" if is_list(name) else _kind(path)
            except OSError as error:
                survey.told.append((key, "refused", "not_read", printable(str(error))))
                continue
            if kind in ("nifti", "itk"):
                survey.images[key] = path
            elif kind == "dicom":
                where = printable(survey.base.name if inside == "." else inside) + "/"
                survey.loose.setdefault(where, []).append(path)
            elif kind == "csv":
                survey.csvs.append(path)
            elif kind == "list":
                survey.lists.append(path)
            elif kind == "stray":
                survey.stray.append(key)
            elif kind in _SPECIAL:
                status = "refused" if path.name.lower().endswith((*NIFTI, *ITK, *DICOM)) else "ignored"
                code = "not_an_image" if status == "refused" else "special_file"
                survey.told.append((key, status, code, f"a {kind}, which is not opened"))
            elif kind.startswith("packed"):
                place = (key.removesuffix(printable(name)), kind.partition(" ")[2])
                packed[place] = packed.get(place, 0) + 1
    for (folder_key, ending), count in packed.items():
        detail = f"{count} files that are not read packed: unpack them first"
        survey.told.append((f"{folder_key}*{ending}", "refused", "packed", detail))
    for refusal in closed:
        _tell_closed(survey, root, refusal)
    if TREE.match(root.resolve().name):
        for beside in (root.resolve().parent / name for name in TABLE_FOLDERS):
            _add_tables(survey, beside)
    return survey


def _tell_closed(survey: Survey, root: Path, error: OSError) -> None:
    """A folder that cannot be listed is told; the source itself cannot be done without."""
    here = Path(error.filename or root)
    if here == root:
        raise ScanError(
            f"{root} cannot be read: {error.strerror}", "a folder that this user may read"
        ) from error
    key = printable(here.relative_to(survey.base).as_posix()) + "/"
    survey.told.append((key, "refused", "not_read", f"the folder cannot be read: {error.strerror}"))


def _add_tables(survey: Survey, folder: Path) -> None:
    """Count the CSVs and lists of another folder as the source's; one that is not there has none."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".csv":
            survey.csvs.append(path)
        elif is_list(path.name):
            survey.lists.append(path)


def chosen_images(survey: Survey, config: IngestConfig) -> tuple[Layout, dict[str, str]]:
    """Which images are volumes to read, and which of them lists exclude (key to the reason's detail).

    Args:
        survey: The source's names; CSVs and lists of ``config.tables`` are added to it.
        config: As in ``find_items``.

    Raises:
        ScanError: No such folder of tables, or a list that cannot be read.
    """
    if config.tables:
        if not Path(config.tables).is_dir():
            raise ScanError(f"no folder at {config.tables}", "a folder of CSVs and lists", "check --tables")
        _add_tables(survey, Path(config.tables))
    layout = sort_out(survey.images, survey.base.resolve().name, config.first_version)
    listed = read_lists([*survey.lists, *map(Path, config.exclude)])
    excluded = {
        key: f"named in {listed[stem]}" for key in layout.kept if (stem := stem_of(key).lower()) in listed
    }
    layout.kept = [key for key in layout.kept if key not in excluded]
    return layout, excluded


def fingerprint(files: list[Path]) -> str:
    """Hash of names, sizes and modification times; equal means that nothing was touched."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat() if path.exists() else path.lstat()
            told = f"|{status.st_size}|{status.st_mtime_ns}\n"
        except OSError as error:  # told when it is read
            told = f"|{error.strerror}\n"
        digest.update(os.fsencode(path.name) + told.encode())
    return digest.hexdigest()[:16]


def sibling(path: Path, endings: Sequence[str]) -> Path | None:
    """The file beside another that has its name and one of some endings, in small or capital letters.

    Args:
        path: A file; its own ending, with a ``.gz`` after it, is left out.
        endings: Endings to try, in this order.
    """
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem = Path(name).stem
    candidates = (path.with_name(stem + e) for ending in endings for e in (ending, ending.upper()))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def case_id_of(key: str) -> str:
    """Name of the case of an item: CT-RATE's volume name, else the path with dashes for slashes."""
    path, _, series = key.partition("#")
    path = path.rstrip("/")
    for ending in (*NIFTI, *ITK, *DICOM):
        if path.lower().endswith(ending):
            path = path[: -len(ending)]
            break
    name = path.rsplit("/", 1)[-1]
    name = name if _CT_RATE.match(name) else path.replace("/", "-")
    case_id = re.sub(r"[^\w.+=-]", "_", f"{name}-{series}" if series else name)
    return case_id if len(case_id) <= _LONGEST_CASE else distinct_case_id(case_id, key)


def distinct_case_id(case_id: str, key: str) -> str:
    """A name for a case whose own is too long or taken: paths may differ in separators or endings only.

    Args:
        case_id: The name that cannot be used.
        key: Path under the source, unique.
    """
    return f"{case_id[: _LONGEST_CASE - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def is_published(case_id: str) -> bool:
    """Whether a case has one of CT-RATE's names, which say the side of the split."""
    return bool(_CT_RATE.match(case_id))


def patient_and_split(key: str, case_id: str, known_patient: str, config: IngestConfig) -> tuple[str, str]:
    """Whose scan it is, and on which side of the split: all scans of a patient on the same.

    Args:
        key: Path under the source.
        case_id: The case.
        known_patient: From the metadata CSV or the DICOM header; empty where unknown.
        config: Pattern and share of validation.
    """
    published = _CT_RATE.match(case_id)
    pattern = re.search(config.patient_pattern, key) if config.patient_pattern else None
    if pattern:
        patient = pattern.group(1) or case_id
    elif published:
        patient = published.group(1).lower()
    else:
        patient = known_patient or case_id
    if published and not pattern:
        return patient, "valid" if patient.startswith("valid") else "train"
    share = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    return patient, "valid" if share < config.valid_fraction else "train"


def _walk(root: Path, output: Path | None, closed: list[OSError]) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in order; links are followed, every folder once, hidden names left out.

    Folders that cannot be listed go to ``closed``.
    """
    seen = {_identity(output)} if output and output.is_dir() else set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=closed.append):
        here = Path(folder)
        identity = _identity(here)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        if {"blobs", "snapshots"} <= {*folders}:  # a download cache: snapshots link to the blobs
            folders.remove("blobs")
        yield here, sorted(n for n in names if not n.startswith("."))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _parts_of(path: Path) -> list[Path]:
    """Files that hold the voxels of a header, as far as their names tell."""
    name = path.name.lower()
    if name.endswith((".hdr", ".hdr.gz")):
        part = sibling(path, _PAIR_PARTS)
    elif name.endswith((".mhd", ".nhdr")):
        part = sibling(path, _RAW_PARTS)
    else:
        part = None
    return [part] if part else []


def _kind(path: Path) -> str:
    """By name first; a name that says nothing is looked into, for DICOM's magic.

    Raises:
        OSError: The folder does not let its files be looked at.
    """
    name = path.name.lower()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG  # a link to nothing is told when it is read
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    if name.endswith(_PAIR_PARTS) and sibling(path, (".hdr", ".hdr.gz")):
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
    """``packed`` and the ending; but ``stray`` for a packed file whose own name says that it is no image."""
    ending = next(e for e in _PACKED if name.endswith(e))
    inner = name[: -len(ending)]
    if ending in _ARCHIVES or not inner.endswith((*_STRAY, ".csv")):
        image = next((e for e in (*NIFTI, *ITK, *DICOM) if inner.endswith(e)), "")
        return f"packed {image}{ending}"
    return "stray"
