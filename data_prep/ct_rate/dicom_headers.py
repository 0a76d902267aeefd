"""The tags of one DICOM file that decide where it belongs, read by pydicom without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage

from data_prep.ct_rate.reasons import ScanRefused, printable

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
        acquisition: Acquisition number; -1 where it has none.
        tilt: Gantry tilt in degrees as the header tells it.
        rescale: Slope and intercept; None where there are none.
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
    acquisition: int
    tilt: float
    rescale: tuple[float, float] | None
    padding: tuple[int, int] | None
    inverted: bool
    syntax: str
    complete: bool
    facts: dict[str, str]
    frame: int = 0


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: magic behind the preamble, or a usual first tag without it."""
    with path.open("rb") as stream:
        head = stream.read(132)
    return head[128:132] == b"DICM" or head[:4] in (
        b"\x08\x00\x05\x00",
        b"\x08\x00\x08\x00",
        b"\x02\x00\x00\x00",
    )


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
        if "SOPClassUID" not in data and "Modality" not in data:
            raise ScanRefused("unreadable", "no DICOM tags")
        return _header(path, data, pixels_at) if data.get("Rows") and data.get("Columns") else None
    except ScanRefused:
        raise
    except Exception as error:  # damaged tags raise whatever their converters do
        raise ScanRefused("unreadable", f"DICOM tags: {type(error).__name__}: {str(error)[:200]}") from error


def _header(path: Path, data: pydicom.Dataset, pixels_at: int) -> DicomHeader:
    syntax = UID(str(getattr(data.file_meta, "TransferSyntaxUID", "")) or "1.2.840.10008.1.2")
    rows, columns = int(data.Rows), int(data.Columns)
    frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel") or 1)
    need = rows * columns * frames * samples * int(data.get("BitsAllocated") or 16) // 8
    raw = not (syntax.is_transfer_syntax and (syntax.is_compressed or syntax.is_deflated))
    words = " ".join(_text(data, name) for name in ("ImageType", "SeriesDescription", "ScanOptions")).lower()
    spacing = numbers(data.get("PixelSpacing"), 2)
    intercept = data.get("RescaleIntercept")
    return DicomHeader(
        path=path,
        sop_uid=_text(data, "SOPInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        series_number=_integer(data.get("SeriesNumber")),
        description=_text(data, "SeriesDescription"),
        modality=_text(data, "Modality") or ("CT" if data.get("SOPClassUID") in _CT_CLASSES else ""),
        scout=any(word in words for word in _SCOUTS),
        patient_id=_text(data, "PatientID").strip(),
        position=numbers(data.get("ImagePositionPatient"), 3),
        orientation=numbers(data.get("ImageOrientationPatient"), 6),
        pixel_spacing=(spacing[0], spacing[1]) if spacing else None,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        acquisition=_integer(data.get("AcquisitionNumber")),
        tilt=float(data.get("GantryDetectorTilt") or 0.0),
        rescale=None
        if intercept in (None, "")
        else (float(data.get("RescaleSlope") or 1.0), float(intercept)),
        padding=_padding(data),
        inverted=_text(data, "PhotometricInterpretation") == "MONOCHROME1",
        syntax=syntax.name,
        complete=not raw or path.stat().st_size - pixels_at >= need + 8,
        facts={
            k: _text(data, k)
            for k in ("Manufacturer", "ConvolutionKernel", "BodyPartExamined")
            if _text(data, k)
        },
    )


def _padding(data: pydicom.Dataset) -> tuple[int, int] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit, in order and signed as the pixels are."""
    signed = data.get("PixelRepresentation") == 1
    ends = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = data.get(name)
        if isinstance(value, bytes) and len(value) == 2:  # VR unknown in implicit files
            value = int.from_bytes(value, "little")
        if isinstance(value, int):
            ends.append(value - 2**16 if signed and value >= 2**15 else value)
    return (min(ends), max(ends)) if ends else None


def _text(data: pydicom.Dataset, name: str) -> str:
    value = data.get(name)
    return "" if value is None else printable(str(value))


def _integer(value: Any) -> int:
    return -1 if value in (None, "") else int(value)


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """A tag's values as floats; None unless there are ``count`` of them."""
    if value is None or isinstance(value, str) or not hasattr(value, "__len__") or len(value) != count:
        return None
    return tuple(float(v) for v in value)
