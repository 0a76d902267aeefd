"""A folder of loose DICOM files, sorted: what is one volume, what is none, what lies there by accident."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ctflow.files import describe_stranger
from data_prep.ct_rate.dicom_headers import DicomHeader, is_dicom, read_header
from data_prep.ct_rate.discovery import Item, fingerprint
from data_prep.ct_rate.naming import DICOM
from data_prep.ct_rate.nifti_reader import is_nifti
from data_prep.ct_rate.reasons import ScanRefused, packing_of, printable
from data_prep.ct_rate.scan import MIN_SLICES, SAME_PLACE_MM

_TURNED = 0.02
"""Least difference of two direction cosines that makes two volumes (a reformat) of one series."""
_MAX_STRAYS = 2
"""Most files of no known kind that may lie beside a series by accident."""

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
    placeless = Counter(_image_of(h) for h in headers if h.orientation is None and not h.scout)
    good: list[list[DicomHeader]] = []
    refused: dict[str, list[tuple[str, str]]] = {}
    for members in (turned for group in groups.values() for turned in _by_orientation(group)):
        for part in _split_by_acquisition(members):
            why = _why_not(part[0]) or _why_not_whole(part, placeless[_image_of(part[0])])
            if why is None:
                good.append(part)
            else:
                refused.setdefault(f"{item.key}#{_label(part[0])}", []).append(
                    (why.code, f"{len(part)} files: {why.detail}")
                )
    for key, causes in refused.items():  # one series may be several groups
        told.append((key, "refused", causes[0][0], "; ".join(detail for _, detail in causes)))
    good.sort(key=lambda part: (part[0].series_number, part[0].series, part[0].path.name))
    several = len({part[0].patient_id for part in good}) > 1
    for number, part in enumerate(good, start=1):
        key = item.key.rstrip("/") if len(good) == 1 else f"{item.key}#{number}-{_label(part[0])}"
        paths = sorted(header.path for header in part)
        files = tuple(map(str, paths))
        items.append(Item(key, "series", files, fingerprint(paths), beside_others=several))
    return items, told


def _read_headers(item: Item) -> tuple[list[DicomHeader], list[Told], list[Item]]:
    """Tags of every DICOM file, remarks on the others, and volumes of another format."""
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
            told.append((key, "refused", "not_read", printable(str(error))))
            continue
        paths.append(path)
    unknown = [p for p in paths if p not in dicom and p.suffix.lower() not in DICOM]
    stray = bool(dicom) and len(unknown) <= _MAX_STRAYS
    for path in unknown:
        key = item.key + printable(path.name)
        if stray:
            told.append((key, "ignored", "stray_file", "no image, beside DICOM files"))
        else:
            told.append((key, "refused", *_no_image(path)))
    for path in (p for p in paths if p not in set(unknown)):
        key = item.key + printable(path.name)
        try:
            header = read_header(path)
        except ScanRefused as refusal:
            stranger = describe_stranger(path)
            reason = ("not_an_image", f"the file {stranger}") if stranger else (refusal.code, refusal.detail)
            told.append((key, "refused", *reason))
            continue
        except OSError as error:
            told.append((key, "refused", "not_read", printable(str(error))))
            continue
        if header is None:
            told.append((key, "ignored", "no_pixels", "a DICOM object without rows and columns"))
        else:
            headers.append(header)
    return headers, told, items


def _group(header: DicomHeader) -> tuple[object, ...]:
    alone = header.path.name if header.frames > 1 else ""
    size = (header.rows, header.columns, header.samples)
    return (header.series, header.orientation is None, *size, header.scout, header.modality, alone)


def _by_orientation(members: list[DicomHeader]) -> list[list[DicomHeader]]:
    """Members that are turned alike; jitter between slices is far below the tolerance, reformats above."""
    parts: list[list[DicomHeader]] = []
    for member in members:
        part = next((p for p in parts if _turned_alike(p[0], member)), None)
        if part is None:
            parts.append([member])
        else:
            part.append(member)
    return parts


def _turned_alike(one: DicomHeader, other: DicomHeader) -> bool:
    if one.orientation is None or other.orientation is None:
        return True
    return bool(np.abs(np.subtract(one.orientation, other.orientation)).max() <= _TURNED)


def _split_by_acquisition(members: list[DicomHeader]) -> list[list[DicomHeader]]:
    """Several passes in one series become volumes of their own, if each position is then once in each."""
    if _places(members) == len(members):
        return [members]
    passes: dict[str, list[DicomHeader]] = defaultdict(list)
    for member in members:
        passes[member.acquisition].append(member)
    whole = all(_places(part) == len(part) >= MIN_SLICES for part in passes.values())
    return list(passes.values()) if whole else [members]


def _places(members: list[DicomHeader]) -> int:
    """How many different positions the members have; slices without one count as one."""
    placed = np.array(sorted(m.position for m in members if m.position is not None)).reshape(-1, 3)
    unplaced = len(placed) < len(members)
    if not len(placed):
        return int(unplaced)
    along = placed[:, int(np.argmax(np.ptp(placed, axis=0)))]
    return int(unplaced) + 1 + int((np.diff(np.sort(along)) > SAME_PLACE_MM).sum())


def _why_not(header: DicomHeader) -> ScanRefused | None:
    """Why a series is not a CT volume, by its first header."""
    name = f"series {header.series_number} {header.description!r}"
    unclear = f": {', '.join(header.unclear)}" if header.unclear else ""
    if header.modality != "CT":
        return ScanRefused("not_ct", f"{name}: modality {header.modality or 'unknown'}")
    if header.scout:
        return ScanRefused("localizer", f"{name} is a localiser")
    if header.samples != 1:
        return ScanRefused("not_ct", f"{name}: {header.samples} values per pixel, a screenshot")
    if header.frames == 1 and (
        header.position is None or header.orientation is None or header.pixel_spacing is None
    ):
        return ScanRefused("no_geometry", f"{name} has no position, orientation or pixel spacing{unclear}")
    return None


def _image_of(header: DicomHeader) -> tuple[str, int, int]:
    return header.series, header.rows, header.columns


def _why_not_whole(part: list[DicomHeader], placeless: int) -> ScanRefused | None:
    """Why a series is not taken for a volume where slices that belong between its own have no orientation."""
    if part[0].frames > 1 or placeless <= _MAX_STRAYS:
        return None
    name = f"series {part[0].series_number} {part[0].description!r}"
    detail = f"{name}: {placeless} further slices have no orientation; without them it is not whole"
    return ScanRefused("no_geometry", detail)


def _label(header: DicomHeader) -> str:
    return f"s{header.series_number}" if header.series_number >= 0 else header.series[-8:] or "unnamed"


def _no_image(path: Path) -> tuple[str, str]:
    """Code and detail of a file that is of no known format."""
    with path.open("rb") as stream:
        head = stream.read(300)
    if packing := packing_of(head):
        return "packed", f"packed ({packing}): unpack it first"
    if stranger := describe_stranger(path):
        return "not_an_image", f"the file {stranger}"
    return "not_an_image", f"begins with {head[:8]!r}, no format that is read here"
