"""A folder of loose DICOM files, sorted: what is one volume, what is none, what lies there by accident."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from data_prep.ct_rate.dicom_headers import DicomHeader, is_dicom, read_header
from data_prep.ct_rate.discovery import DICOM, Item, fingerprint
from data_prep.ct_rate.nifti_reader import is_nifti
from data_prep.ct_rate.reasons import ScanRefused, printable
from data_prep.ct_rate.scan import MIN_SLICES

Told = tuple[str, str, str, str]
"""Key, status, code and detail of a file or series that goes no further."""


def sort_folder(item: Item) -> tuple[list[Item], list[Told]]:
    """Find the series of a folder.

    Args:
        item: A ``folder`` item.

    Returns:
        One ``series`` item per volume, and what is to be told of the rest.
    """
    headers, told, items = _read_headers(item)
    groups: dict[tuple[object, ...], list[DicomHeader]] = defaultdict(list)
    for header in headers:
        groups[_group(header)].append(header)
    good: list[list[DicomHeader]] = []
    for members in groups.values():
        for part in _split_by_acquisition(members):
            why = _why_not(part[0])
            if why is None:
                good.append(part)
            else:
                told.append(
                    (f"{item.key}#{_label(part[0])}", "refused", why.code, f"{len(part)} files: {why.detail}")
                )
    good.sort(key=lambda part: (part[0].series_number, part[0].series, part[0].path.name))
    for number, part in enumerate(good, start=1):
        key = item.key.rstrip("/") if len(good) == 1 else f"{item.key}#{number}-{_label(part[0])}"
        paths = sorted(header.path for header in part)
        items.append(Item(key, "series", tuple(map(str, paths)), fingerprint(paths)))
    return items, told


def _read_headers(item: Item) -> tuple[list[DicomHeader], list[Told], list[Item]]:
    """Tags of every DICOM file, what is to be told of the others, and volumes of another format."""
    told: list[Told] = []
    items, headers, paths = [], [], []
    dicom = set()
    for path in map(Path, item.files):
        key = item.key + printable(path.name)
        try:
            if is_dicom(path):
                dicom.add(path)
            elif is_nifti(path):
                items.append(Item(key, "nifti", (str(path),), fingerprint([path])))
                continue
        except OSError as error:
            told.append((key, "refused", "unreadable", printable(str(error))))
            continue
        paths.append(path)
    for path in paths:
        key = item.key + printable(path.name)
        if path not in dicom and path.suffix.lower() not in DICOM:
            if dicom:
                told.append((key, "ignored", "stray_file", "no image, beside DICOM files"))
            else:
                told.append((key, "refused", "not_an_image", _begins(path)))
            continue
        try:
            header = read_header(path)
        except ScanRefused as refusal:
            told.append((key, "refused", refusal.code, refusal.detail))
            continue
        if header is None:
            told.append((key, "ignored", "no_pixels", "a DICOM object without rows and columns"))
        else:
            headers.append(header)
    return headers, told, items


def _group(header: DicomHeader) -> tuple[object, ...]:
    turned = None if header.orientation is None else tuple(round(v, 2) + 0.0 for v in header.orientation)
    alone = header.path.name if header.frames > 1 else ""
    return (
        header.series,
        turned,
        header.rows,
        header.columns,
        header.scout,
        header.modality,
        header.samples,
        alone,
    )


def _split_by_acquisition(members: list[DicomHeader]) -> list[list[DicomHeader]]:
    """Several passes in one series become volumes of their own, if each position is then once in each."""
    positions = [m.position for m in members]
    if len(set(positions)) == len(positions):
        return [members]
    passes: dict[int, list[DicomHeader]] = defaultdict(list)
    for member in members:
        passes[member.acquisition].append(member)
    whole = all(len({m.position for m in part}) == len(part) >= MIN_SLICES for part in passes.values())
    return list(passes.values()) if whole else [members]


def _why_not(header: DicomHeader) -> ScanRefused | None:
    """Why a series is no CT volume, as far as its first header tells."""
    name = f"series {header.series_number} {header.description!r}"
    if header.modality != "CT":
        return ScanRefused("not_ct", f"{name}: modality {header.modality or 'unknown'}")
    if header.scout:
        return ScanRefused("localizer", f"{name} is a localiser")
    if header.samples != 1:
        return ScanRefused("not_ct", f"{name}: {header.samples} values per pixel, a screenshot")
    if header.frames == 1 and (
        header.position is None or header.orientation is None or header.pixel_spacing is None
    ):
        return ScanRefused("no_geometry", f"{name} has no position, orientation or pixel spacing")
    return None


def _label(header: DicomHeader) -> str:
    return f"s{header.series_number}" if header.series_number >= 0 else header.series[-8:] or "unnamed"


def _begins(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(8)
    return f"begins with {head!r}, no format that is read here" if head else "an empty file"
