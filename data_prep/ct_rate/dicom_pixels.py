"""Pixels of DICOM slices (any transfer syntax, by GDCM), slope and intercept applied, padding taken out."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from ctflow.hounsfield import PADDING_HU
from data_prep.ct_rate.dicom_headers import DicomHeader
from data_prep.ct_rate.itk_reader import last_line
from data_prep.ct_rate.reasons import ScanRefused

_INT16 = (-32768, 32767)
_PIXEL_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows"),
    *("Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData",),
]
_MAX_STEP_HU = 300.0
"""Most by which the means of two neighbouring slices differ, whatever they show."""
_MIN_PADDING = 0.005
"""Least share of a slice that a region of padding has; smaller ones may be tissue of the same value."""


def read_pixels(headers: list[DicomHeader]) -> tuple[NDArray[Any], int]:
    """HU ``[columns, rows, slices]``, int16 where every slope and intercept is whole, else float32.

    Values beyond int16 are clipped to it; their number comes second.

    Args:
        headers: Of the slices, in order.

    Raises:
        ScanRefused: A slice that cannot be decoded, or whose own slope and intercept do not fit its values.
    """
    whole = all(h.rescale is None or all(float(v).is_integer() for v in h.rescale) for h in headers)
    first = headers[0]
    stored = np.empty((len(headers), first.rows, first.columns), np.int16 if whole else np.float32)
    frames: NDArray[Any] | None = None
    beyond = 0
    for k, header in enumerate(headers):
        if header.frames == 1:
            frames = _read_frames(header)
        elif frames is None:
            frames = _own_rescale(_read_frames(header), headers)
        plane = _without_padding(frames[header.frame], header)
        beyond += int((plane > _INT16[1]).sum())
        stored[k] = np.clip(plane, *_INT16)
    _check_neighbours(stored, headers)
    return stored.transpose(2, 1, 0), beyond


def _check_neighbours(stored: NDArray[Any], headers: list[DicomHeader]) -> None:
    """A slice whose slope and intercept differ from most slices' lies in HU where its neighbours do.

    Raises:
        ScanRefused: ``mixed_rescale``: the values fit the usual slope and intercept better than its own.
    """
    usual = Counter(h.rescale for h in headers).most_common(1)[0][0]
    means = stored.reshape(len(stored), -1).mean(1, dtype=np.float64)
    fitting = [k for k, h in enumerate(headers) if h.rescale == usual]
    for k, header in enumerate(headers):
        if header.rescale == usual or header.rescale is None or usual is None:
            continue
        near = means[min(fitting, key=lambda other: abs(other - k))]
        as_usual = (means[k] - header.rescale[1]) / header.rescale[0] * usual[0] + usual[1]
        if abs(means[k] - near) > _MAX_STEP_HU and abs(as_usual - near) < 0.25 * abs(means[k] - near):
            raise ScanRefused(
                "mixed_rescale",
                f"{header.path.name} has slope {header.rescale[0]:g} and intercept {header.rescale[1]:g}, "
                f"{len(fitting)} of {len(headers)} slices have {usual[0]:g} and {usual[1]:g}: its mean is "
                f"{means[k]:.0f} HU beside a slice of {near:.0f} HU, with theirs it is {as_usual:.0f} HU",
            )


def same_pixels(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether two files hold the same image, whatever their identifiers say."""
    if one.rescale != other.rescale:
        return False
    pixels = [pydicom.dcmread(h.path, force=True, specific_tags=["PixelData"]) for h in (one, other)]
    return pixels[0].get("PixelData") is not None and pixels[0].PixelData == pixels[1].get("PixelData")


def _read_frames(header: DicomHeader) -> NDArray[Any]:
    """Pixels of one file ``[frames, rows, columns]``, slope and intercept applied by GDCM.

    Raises:
        ScanRefused: GDCM cannot decode it, or to another size.
    """
    pixels = None
    if not header.inverted:
        with contextlib.suppress(
            RuntimeError
        ):  # GDCM stops at tags of a wrong type that say nothing of pixels
            pixels = _execute(header.path)
    try:
        pixels = _execute_clean(header) if pixels is None else pixels
    except RuntimeError as error:
        raise ScanRefused("unreadable", f"{header.path.name}: {last_line(error)}") from error
    expected = (header.frames, header.rows, header.columns)
    if pixels.size != np.prod(expected) or pixels.shape[-2:] != expected[1:]:
        raise ScanRefused("unreadable", f"{header.path.name} holds {pixels.shape} pixels, not {expected}")
    return pixels.reshape(expected)


def _own_rescale(frames: NDArray[Any], headers: list[DicomHeader]) -> NDArray[Any]:
    """Frames with slope and intercept of their own, where GDCM has applied the first frame's to all."""
    rescales = {header.frame: header.rescale for header in headers}
    if len(set(rescales.values())) == 1:
        return frames
    frames = frames.astype(np.float64)
    slope, intercept = rescales[0] or (1.0, 0.0)
    for frame, (own_slope, own_intercept) in ((f, r) for f, r in rescales.items() if r):
        frames[frame] = (frames[frame] - intercept) / slope * own_slope + own_intercept
    return frames


def _execute(path: Path) -> NDArray[Any]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return sitk.GetArrayFromImage(reader.Execute())


def _execute_clean(header: DicomHeader) -> NDArray[Any]:
    """A copy that holds nothing but what pixels need, shown as MONOCHROME2.

    ITK turns the values of MONOCHROME1 upside down, though it says how to show them and no more.
    """
    data = pydicom.dcmread(header.path, force=True, specific_tags=_PIXEL_TAGS)
    data.PhotometricInterpretation = "MONOCHROME2"
    if header.rescale is not None:
        data.RescaleSlope, data.RescaleIntercept = header.rescale
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "slice.dcm"
        data.save_as(copy)
        return _execute(copy)


def _without_padding(plane: NDArray[Any], header: DicomHeader) -> NDArray[Any]:
    """A slice whose padding (DICOM's PixelPaddingValue) lies below everything measured, and so becomes air.

    Padding at or below -1024 HU needs nothing. Another value counts as padding where it fills a region at the
    border of the slice: tissue can have it too.
    """
    if header.padding is None:
        return plane
    slope, intercept = header.rescale or (1.0, 0.0)
    low, high = sorted(value * slope + intercept for value in header.padding)
    if high <= PADDING_HU:
        return plane
    margin = 0.5 * abs(slope)
    labels, count = ndimage.label((plane > low - margin) & (plane < high + margin))
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    outside = [label for label in border if label and sizes[label] >= _MIN_PADDING * plane.size]
    return np.where(np.isin(labels, outside), _INT16[0], plane)
