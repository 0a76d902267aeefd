"""One enhanced (multi-frame) CT file to one volume: the functional groups hold the place of every frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pydicom

from data_prep.ct_rate.dicom_headers import DicomHeader, rescale_of
from data_prep.ct_rate.dicom_tags import numbers, value_of
from data_prep.ct_rate.reasons import ScanRefused

_GROUPS = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


def frame_headers(header: DicomHeader) -> list[DicomHeader]:
    """One header per frame, in the file's order, as if each frame were a file of its own.

    Args:
        header: Of the file.

    Raises:
        ScanRefused: ``no_geometry``, frames without a place.
    """
    with header.path.open("rb") as stream:
        data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_GROUPS)
    shared = (data.get(_GROUPS[0]) or [pydicom.Dataset()])[0]
    frames = data.get(_GROUPS[1]) or []
    if len(frames) != header.frames:
        raise ScanRefused("no_geometry", f"{header.frames} frames, {len(frames)} functional groups")
    found = []
    for number, frame in enumerate(frames):
        position = numbers(_value(frame, shared, "PlanePositionSequence", "ImagePositionPatient"), 3)
        orientation = numbers(_value(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
        spacing = numbers(_value(frame, shared, "PixelMeasuresSequence", "PixelSpacing"), 2)
        if position is None or orientation is None or spacing is None:
            raise ScanRefused("no_geometry", f"frame {number + 1} has no position, orientation or spacing")
        rescale, tags, unclear = rescale_of(_group(frame, shared, "PixelValueTransformationSequence"))
        found.append(
            replace(
                header,
                position=position,
                orientation=orientation,
                pixel_spacing=(spacing[0], spacing[1]),
                rescale=rescale,
                rescale_tags=tags,
                unclear=tuple(unclear),
                frame=number,
            )
        )
    return found


def _value(frame: pydicom.Dataset, shared: pydicom.Dataset, sequence: str, name: str) -> Any:
    return value_of(_group(frame, shared, sequence), name)


def _group(frame: pydicom.Dataset, shared: pydicom.Dataset, sequence: str) -> pydicom.Dataset:
    for group in (frame, shared):
        items = group.get(sequence)
        if items:
            return items[0]
    return pydicom.Dataset()
