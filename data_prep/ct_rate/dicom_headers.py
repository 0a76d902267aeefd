"""The tags of one DICOM file that decide where it belongs, read by pydicom without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, MediaStorageDirectoryStorage

from data_prep.ct_rate.dicom_tags import integer, numbers, text, value_of
from data_prep.ct_rate.reasons import ScanRefused

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *(
        "SeriesDescription",
        "AcquisitionNumber",
        "PatientID",
        "BodyPartExamined",
        "ScanOptions",
        "Manufacturer",
    ),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "GantryDetectorTilt"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("RescaleSlope", "RescaleIntercept", "ConvolutionKernel"),
    *("PhotometricInterpretation", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
]
_SCOUTS = ("localizer", "localiser", "scout", "topogram", "surview", "scanogram")
_CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage)
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""Tags that place a slice, and how many numbers each has."""
_SHORT_VRS = tuple(b"AE AS CS DA DS DT IS LO LT OB PN SH ST TM UI UL US".split())


@dataclass(frozen=True)
class DicomHeader:
    """One file's place in its series.

    Attributes:
        path: The file.
        sop_uid: Its own identifier.
        series: Series identifier.
        series_number: Number of the series; -1 where it has none.
        description: Series description.
        modality: ``CT``, ``MR`` …
        scout: A localiser by its image type, description or scan options.
        patient_id: Patient.
        position: Millimetres (LPS) of the first voxel; None where there is none.
        orientation: Direction cosines (LPS) of the row and the column direction.
        pixel_spacing: Millimetres (between rows, between columns).
        rows: Rows.
        columns: Columns.
        frames: Frames in this file.
        samples: Values per pixel.
        acquisition: Acquisition number, as text; empty where it has none.
        tilt: Gantry tilt in degrees as the header tells it.
        rescale: Slope and intercept, 1 and 0 where one of them is missing; None where both are.
        rescale_tags: Names of the tags of ``rescale`` that are there.
        unclear: Tags that place or scale the slice and cannot be understood, with their values.
        padding: Lowest and highest stored value that mean "no pixel here"; None where the header names none.
        inverted: Whether it is to be shown white for low values (MONOCHROME1).
        syntax: Transfer syntax, by name.
        complete: Whether the file is as long as its pixels need (always True for compressed ones).
        facts: For the record.
        frame: Which frame of the file.
    """

    path: Path
    sop_uid: str
    series: str
    series_number: int
    description: str
    modality: str
    scout: bool
    patient_id: str
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    rows: int
    columns: int
    frames: int
    samples: int
    acquisition: str
    tilt: float
    rescale: tuple[float, float] | None
    rescale_tags: tuple[str, ...]
    unclear: tuple[str, ...]
    padding: tuple[int, int] | None
    inverted: bool
    syntax: str
    complete: bool
    facts: dict[str, str]
    frame: int = 0


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: magic behind the preamble, or file meta or group 8 without one."""
    with path.open("rb") as stream:
        head = stream.read(132)
    return head[128:132] == b"DICM" or _begins_with_a_tag(head)


def _begins_with_a_tag(head: bytes) -> bool:
    """Whether the first bytes are a tag of group 2 or 8 with a type or a length that such a tag can have."""
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    order: Literal["big", "little"] = "big" if head[0] == 0 else "little"
    group, element = (int.from_bytes(head[k : k + 2], order) for k in (0, 2))
    if element > (0x60 if group == 8 else 0x18):  # the tags that a file can begin with
        return False
    if head[4:6] in _SHORT_VRS:
        return True
    length = int.from_bytes(head[4:8], order)
    return length == 4 if element == 0 else 0 < length <= 64 and length % 2 == 0


def read_header(path: Path) -> DicomHeader | None:
    """Read one file's tags; None for an object without an image.

    Args:
        path: A DICOM file.

    Raises:
        ScanRefused: Not readable as DICOM.
    """
    try:
        with path.open("rb") as stream:
            data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            pixels_at = stream.tell()
        if data.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return None  # a DICOMDIR, whatever its name
        if "SOPClassUID" not in data and "Modality" not in data:
            raise ScanRefused("unreadable", "no DICOM tags")
        return _header(path, data, pixels_at) if data.get("Rows") and data.get("Columns") else None
    except ScanRefused:
        raise
    except Exception as error:  # damaged tags raise whatever their converters do
        if isinstance(error, OSError) and error.errno:
            raise  # the system's word, not the file's
        raise ScanRefused("unreadable", f"DICOM tags: {type(error).__name__}: {str(error)[:200]}") from error


def _header(path: Path, data: pydicom.Dataset, pixels_at: int) -> DicomHeader:
    syntax = UID(str(getattr(data.file_meta, "TransferSyntaxUID", "")) or "1.2.840.10008.1.2")
    rows, columns = int(data.Rows), int(data.Columns)
    frames, samples = integer(data, "NumberOfFrames", 1), integer(data, "SamplesPerPixel", 1)
    need = rows * columns * frames * samples * integer(data, "BitsAllocated", 16) // 8
    raw = not (syntax.is_transfer_syntax and (syntax.is_compressed or syntax.is_deflated))
    words = " ".join(text(data, name) for name in ("ImageType", "SeriesDescription", "ScanOptions")).lower()
    place = {name: numbers(value_of(data, name), count) for name, count in _PLACE.items()}
    spacing = place["PixelSpacing"]
    rescale, rescale_tags, unclear = rescale_of(data)
    unclear += [
        f"{name} {text(data, name)!r} is not {_PLACE[name]} numbers"
        for name, value in place.items()
        if value is None and text(data, name)
    ]
    return DicomHeader(
        path=path,
        sop_uid=text(data, "SOPInstanceUID"),
        series=text(data, "SeriesInstanceUID"),
        series_number=integer(data, "SeriesNumber", -1),
        description=text(data, "SeriesDescription"),
        modality=text(data, "Modality").upper() or ("CT" if data.get("SOPClassUID") in _CT_CLASSES else ""),
        scout=any(word in words for word in _SCOUTS),
        patient_id=text(data, "PatientID"),
        position=place["ImagePositionPatient"],
        orientation=place["ImageOrientationPatient"],
        pixel_spacing=(spacing[0], spacing[1]) if spacing else None,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        acquisition=text(data, "AcquisitionNumber"),
        tilt=(numbers(value_of(data, "GantryDetectorTilt"), 1) or (0.0,))[0],
        rescale=rescale,
        rescale_tags=rescale_tags,
        unclear=tuple(unclear),
        padding=_padding(data),
        inverted=text(data, "PhotometricInterpretation") == "MONOCHROME1",
        syntax=syntax.name,
        complete=not raw or path.stat().st_size - pixels_at >= need + 8,
        facts={
            k: text(data, k)
            for k in ("Manufacturer", "ConvolutionKernel", "BodyPartExamined")
            if text(data, k)
        },
    )


def rescale_of(data: pydicom.Dataset) -> tuple[tuple[float, float] | None, tuple[str, ...], list[str]]:
    """Slope and intercept of a slice or frame, the tags that are there, and those that are not numbers.

    A slope of 0 says that there is none, as GDCM reads it.
    """
    there = tuple(name for name in ("RescaleSlope", "RescaleIntercept") if text(data, name))
    found = {name: numbers(value_of(data, name), 1) for name in there}
    unclear = [f"{name} {text(data, name)!r} is not a number" for name in there if found[name] is None]
    if not there or unclear:
        return None, there, unclear
    (slope,), (intercept,) = found.get("RescaleSlope") or (1.0,), found.get("RescaleIntercept") or (0.0,)
    return (slope or 1.0, intercept), there, unclear


def _padding(data: pydicom.Dataset) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit, in order and signed as the pixels are."""
    signed = data.get("PixelRepresentation") == 1
    ends = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = value_of(data, name)
        if isinstance(value, bytes) and len(value) == 2:  # VR unknown in implicit files
            value = int.from_bytes(value, "little")
        if isinstance(value, int):
            ends.append(value - 2**16 if signed and value >= 2**15 else value)
    return (min(ends), max(ends)) if ends else None
