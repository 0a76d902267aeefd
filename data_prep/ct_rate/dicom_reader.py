"""One DICOM series to one volume: geometry from every slice's tags, pixels (any transfer syntax) by GDCM."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.formats import LPS_TO_RAS
from data_prep.ct_rate.dicom_headers import DicomHeader, read_header
from data_prep.ct_rate.dicom_multiframe import frame_headers
from data_prep.ct_rate.dicom_pixels import read_pixels, same_pixels
from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import MIN_SLICES, SAME_PLACE_MM, RawScan, check_shape

TILT_DEGREES = 0.5
_SAME_SPACING = 1e-3
"""Relative difference below which two pixel spacings are one."""
_MAX_SHIFT_PIXELS = 1.0
"""Largest distance of a slice from the line between the first and the last."""


def read_dicom_series(paths: list[Path], memory_bytes: float) -> RawScan:
    """Read the slices of one series.

    Args:
        paths: Its files.
        memory_bytes: What the worker may use.

    Raises:
        ScanRefused: See ``reasons``; missing slices and tilt are named with their numbers.
    """
    headers = [header for path in paths if (header := read_header(path)) is not None]
    if len(headers) == 1 and headers[0].frames > 1:
        headers = frame_headers(headers[0])
    _check_rescale(headers)
    headers, offsets, normal = _in_order(headers)
    flags = _check_order(headers, offsets, normal)
    first = headers[0]
    check_shape((first.columns, first.rows, len(headers)), 8, memory_bytes)
    for header in headers:
        if not header.complete:
            raise ScanRefused("truncated", f"{header.path.name} is shorter than its pixels")
    stored, beyond = read_pixels(headers)
    if beyond:
        flags.append(["clipped_values", f"{beyond} voxels"])
    step = float((offsets[-1] - offsets[0]) / (len(headers) - 1))
    assert first.orientation is not None and first.pixel_spacing is not None and first.position is not None
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.pixel_spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_spacing[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = first.position
    return RawScan(
        stored,
        LPS_TO_RAS @ affine,
        format=f"DICOM, {first.syntax}",
        patient_id=first.patient_id,
        facts=series_facts(headers),
        flags=flags,
    )


def series_facts(headers: list[DicomHeader]) -> dict[str, Any]:
    """Facts of the headers for the record; GDCM has applied slope and intercept."""
    first = headers[0]
    rescales = sorted({str(h.rescale) for h in headers})
    return {
        **first.facts,
        "series": first.description,
        "files": len(headers),
        "rescale_by_reader": rescales[:4],
    }


def _check_rescale(headers: list[DicomHeader]) -> None:
    """Slope and intercept in all slices or in none, and no negative slope.

    Raises:
        ScanRefused: ``mixed_rescale`` or ``not_hu``, by file or frame.
    """
    usual = Counter(h.rescale_tags for h in headers).most_common(1)[0][0]
    odd = [h for h in headers if h.rescale_tags != usual]
    unclear = next((h for h in headers if h.rescale_tags and h.rescale is None), None)
    if unclear is not None:
        raise ScanRefused("mixed_rescale", f"{_name(unclear)}: {', '.join(unclear.unclear)}")
    if odd:
        texts = [
            " and ".join(tags) or "neither RescaleSlope nor RescaleIntercept"
            for tags in (odd[0].rescale_tags, usual)
        ]
        more = f" (and {len(odd) - 1} more slices differ)" if len(odd) > 1 else ""
        raise ScanRefused(
            "mixed_rescale",
            f"{len(headers) - len(odd)} of {len(headers)} slices have {texts[1]}, but {_name(odd[0])} has "
            f"{texts[0]}{more}: its values may be stored values or HU",
        )
    negative = next((h for h in headers if h.rescale and h.rescale[0] < 0), None)
    if negative is not None and negative.rescale is not None:
        raise ScanRefused(
            "not_hu", f"{_name(negative)} has the negative RescaleSlope {negative.rescale[0]:g}"
        )


def _name(header: DicomHeader) -> str:
    return header.path.name if header.frames == 1 else f"frame {header.frame + 1} of {header.path.name}"


def _in_order(
    headers: list[DicomHeader],
) -> tuple[list[DicomHeader], NDArray[np.float64], NDArray[np.float64]]:
    """Slices along their normal, each once; offsets in mm, and the normal."""
    for header in headers:
        if header.position is None or header.orientation is None or header.pixel_spacing is None:
            unclear = f": {', '.join(header.unclear)}" if header.unclear else ""
            raise ScanRefused(
                "no_geometry", f"{header.path.name} has no position, orientation or pixel spacing{unclear}"
            )
    turned = np.array(headers[0].orientation)
    normal = np.cross(turned[:3], turned[3:])
    length = float(np.linalg.norm(normal))
    if not 0.99 < length < 1.01:
        raise ScanRefused(
            "no_geometry", f"row and column directions {turned.tolist()} are not orthogonal unit vectors"
        )
    normal = normal / length
    placed = sorted(
        ((float(np.dot(normal, np.array(h.position))), h) for h in headers),
        key=lambda pair: (pair[0], pair[1].path.name),
    )
    kept = [placed[0]]
    for offset, header in placed[1:]:
        before, same = kept[-1]
        if offset - before > SAME_PLACE_MM:
            kept.append((offset, header))
        elif header.frames > 1 or not (
            (same.sop_uid and same.sop_uid == header.sop_uid) or same_pixels(same, header)
        ):
            raise ScanRefused(
                "repeated_positions", f"{same.path.name} and {header.path.name} both lie at {offset:.2f} mm"
            )
    return [h for _, h in kept], np.array([o for o, _ in kept]), normal


def _check_order(
    headers: list[DicomHeader], offsets: NDArray[np.float64], normal: NDArray[np.float64]
) -> list[list[str]]:
    """Even steps, along the normal, and enough of them; all faults are named at once.

    Returns:
        Flags: a tilt that the header names and the geometry does not have.
    """
    wrong: list[tuple[str, str]] = []
    if len(headers) > 2:
        wrong += [("uneven_slices", text) for text in _gaps(headers, offsets)]
    if len(headers) < MIN_SLICES:
        wrong.append(("too_few_slices", f"{len(headers)} slices, {MIN_SLICES} or more expected"))
    turned = np.array([h.orientation for h in headers])
    if np.abs(turned - turned[0]).max() > 0.01:
        wrong.append(("no_geometry", "slices are turned against each other"))
    spacings = np.array([h.pixel_spacing for h in headers])
    if np.ptp(spacings, axis=0).max() > _SAME_SPACING * spacings.min():
        told = sorted({str(h.pixel_spacing) for h in headers})[:3]
        wrong.append(("no_geometry", f"pixel spacing differs between slices: {told}"))
    shear = 0.0
    if len(headers) > 1:
        positions = np.array([h.position for h in headers], np.float64)
        along = positions[-1] - positions[0]
        cosine = abs(float(np.dot(along, normal))) / float(np.linalg.norm(along))
        shear = float(np.degrees(np.arccos(min(1.0, cosine))))
        if shear > TILT_DEGREES:
            wrong.append(("gantry_tilt", f"slices lie {shear:.1f} degrees off their normal (gantry tilt)"))
        line = positions[0] + np.outer((offsets - offsets[0]) / (offsets[-1] - offsets[0]), along)
        beside = np.linalg.norm(positions - line, axis=1)
        if beside.max() > _MAX_SHIFT_PIXELS * spacings.max():
            worst = headers[int(beside.argmax())]
            wrong.append(("no_geometry", f"{worst.path.name} lies {beside.max():.1f} mm beside the others"))
    if wrong:
        raise ScanRefused(wrong[0][0], wrong[0][1], wrong[1:])
    tilt = max(abs(h.tilt) for h in headers)
    if tilt > TILT_DEGREES:
        return [["tilt_conflict", f"GantryDetectorTilt {tilt:g} degrees, positions {shear:.1f}"]]
    return []


def _gaps(headers: list[DicomHeader], offsets: NDArray[np.float64]) -> list[str]:
    steps = np.diff(offsets)
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > 0.1 * usual + 0.05)
    texts = []
    for k in odd[:3]:
        here, there = headers[k], headers[k + 1]
        missing = round(float(steps[k]) / usual) - 1
        lost = f", {missing} missing" if missing > 0 else ""
        texts.append(
            f"gap of {steps[k]:.3f} mm between {here.path.name} (z {_z(here):.2f}) and {there.path.name} "
            f"(z {_z(there):.2f}), {usual:.3f} mm elsewhere{lost}"
        )
    if len(odd) > 3:
        texts.append(f"and {len(odd) - 3} more uneven steps")
    return ["; ".join(texts)] if texts else []


def _z(header: DicomHeader) -> float:
    return header.position[2] if header.position else float("nan")
