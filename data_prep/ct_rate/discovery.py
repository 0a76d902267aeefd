"""The items of a source: one per file that may be a volume, one per folder of loose DICOM files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.layout import Layout, LeftOut, read_lists, sort_out, stem_of
from data_prep.ct_rate.naming import NIFTI
from data_prep.ct_rate.survey import Survey, add_tables, parts_beside, survey_source


@dataclass(frozen=True)
class Item:
    """A piece of work for one worker.

    Attributes:
        key: Path under the source, unique; a DICOM series adds ``#`` and its number.
        kind: ``nifti``, ``itk``, ``folder`` (loose DICOM files, to be sorted into series) or ``series``.
        files: Its files, absolute; a header comes before the voxels beside it.
        fingerprint: Names, sizes and times of the files.
        shared_name: Other files of the source have its name: it may be a label map of one of them.
        beside_others: A series in a folder that holds series of another patient too.
    """

    key: str
    kind: str
    files: tuple[str, ...]
    fingerprint: str
    shared_name: bool = False
    beside_others: bool = False


@dataclass
class Source:
    """Everything found under a source.

    Attributes:
        items: In the order of their keys.
        csvs: CSV files.
        stray: Files that are not images, by path under the source.
        told: Key, status, code and detail of what is neither read nor passed over in silence: folders and
            files that this user may not read, archives, pipes and devices.
        left_out: Groups of files that are not volumes, or have a better version.
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
        path = Path(survey.images[key])
        paths = [path, *parts_beside(path)]
        kind = "nifti" if paths[0].name.lower().endswith(NIFTI) else "itk"
        shared = key in layout.shared
        source.items.append(Item(key, kind, tuple(map(str, paths)), fingerprint(paths), shared))
    for key, names in survey.loose.items():
        paths = [Path(name) for name in names]
        source.items.append(Item(key, "folder", tuple(map(str, paths)), fingerprint(paths)))
    source.items.sort(key=lambda item: item.key)
    return source


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
        add_tables(survey, Path(config.tables))
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
