"""What lies under a source: one item per file that may be a volume, one per folder of loose DICOM files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
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
            ".zip",
            ".tar",
            ".gz",
            ".tgz",
            ".7z",
            ".rar",
            ".bval",
            ".bvec",
            ".partial",
        ]
    ),
)
_STRAY_NAMES = ("dicomdir", "lockfile", "version", "readme", "license", "thumbs.db")
_CT_RATE = re.compile(r"^((?:train|valid)_\d+)_[a-z]+_\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """A piece of work for one worker.

    Attributes:
        key: Path under the source, unique; a DICOM series adds ``#`` and its number.
        kind: ``nifti``, ``itk``, ``folder`` (loose DICOM files, to be sorted into series) or ``series``.
        files: Its files, absolute; a header comes before the voxels beside it.
        fingerprint: Names, sizes and times of the files.
    """

    key: str
    kind: str
    files: tuple[str, ...]
    fingerprint: str


@dataclass
class Source:
    """Everything found under a source.

    Attributes:
        items: In the order of their keys.
        csvs: CSV files.
        stray: Files that are no images, by path under the source.
    """

    items: list[Item] = field(default_factory=list)
    csvs: list[Path] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)


def find_items(root: Path, output: Path | None = None) -> Source:
    """Walk a source without opening an image; a single file is a source too.

    Args:
        root: Folder or file.
        output: Left out of the walk, should it lie inside.

    Raises:
        ScanError: Nothing there.
    """
    if root.is_file():
        folders: Iterator[tuple[Path, list[str]]] = iter([(root.parent, [root.name])])
        base = root.parent
    elif root.is_dir():
        folders, base = _walk(root, output), root
    else:
        raise ScanError(f"no folder at {root}", "a folder with scans", "give --source DIR")
    source = Source()
    for folder, names in folders:
        loose = []
        for name in names:
            path = folder / name
            kind = _kind(path)
            key = printable(path.relative_to(base).as_posix())
            if kind in ("nifti", "itk"):
                paths = [path, *_parts_of(path)]
                source.items.append(Item(key, kind, tuple(map(str, paths)), fingerprint(paths)))
            elif kind == "dicom":
                loose.append(path)
            elif kind == "csv":
                source.csvs.append(path)
            elif kind == "stray":
                source.stray.append(key)
        if loose:
            key = printable(base.name if folder == base else folder.relative_to(base).as_posix())
            source.items.append(Item(key + "/", "folder", tuple(map(str, loose)), fingerprint(loose)))
    source.items.sort(key=lambda item: item.key)
    return source


def fingerprint(files: list[Path]) -> str:
    """Hash of names, sizes and modification times; equal means that nothing was touched."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat() if path.exists() else path.lstat()
        digest.update(os.fsencode(path.name) + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
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
    return re.sub(r"[^\w.+=-]", "_", f"{name}-{series}" if series else name)


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


def _walk(root: Path, output: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in order; links are followed, every folder once, hidden names left out."""
    seen = {output.resolve()} if output else set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        yield here, sorted(n for n in names if not n.startswith("."))


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
    """By name first; a name that says nothing is looked into, for DICOM's magic."""
    name = path.name.lower()
    if path.exists() and not path.is_file():  # pipes and devices; a link to nothing is told as unreadable
        return "part"
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
    if name.endswith(_STRAY) or name.split(".")[0] in _STRAY_NAMES:
        return "stray"
    return "dicom"
