"""Further facts of CT-RATE's metadata CSV, besides spacing and rescale: scanner, kernel, geometry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ctflow.formats import LPS_TO_RAS
from ctflow.types import SHARP, SOFT, Acquisition
from data_prep.ct_rate.geometry import Spacing
from data_prep.ct_rate.layout import VOLUME
from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import RawScan

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SHARP_FROM = 50
"""Siemens' kernel numbers (B30f, Br40d, I70f): from here on lung and bone."""
_WORDS = {
    **dict.fromkeys(
        ("soft", "smooth", "standard", "stnd", "std", "detail", "chest", "medium", "routine"), SOFT
    ),
    **dict.fromkeys(
        ("lung", "bone", "boneplus", "edge", "ultra", "sharp", "hard", "high", "sharpplus"), SHARP
    ),
    # Philips: smooth, standard; very sharp, lung, high resolution. C is soft here and sharp there.
    **dict.fromkeys(("a", "b", "xca", "xcb"), SOFT),
    **dict.fromkeys(("d", "e", "l", "ya", "yb", "yc", "yd", "xcd"), SHARP),
}


@dataclass(frozen=True)
class ScanTags:
    """Tags of a metadata row.

    Attributes:
        kernel: ConvolutionKernel; empty where not given.
        manufacturer: Empty where not given.
        orientation: ImageOrientationPatient: directions of a row and of a column, LPS; None where not given.
        position: ImagePositionPatient of the first slice in mm, LPS; None where not given.
        shape: Columns, rows, slices; None where not given.
    """

    kernel: str = ""
    manufacturer: str = ""
    orientation: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None
    shape: tuple[int, ...] | None = None


def tags_of(row: dict[str, str]) -> ScanTags:
    """Tags of a metadata row.

    Args:
        row: Columns in lower case.
    """
    return ScanTags(
        kernel=_words(row.get("convolutionkernel", "")),
        manufacturer=_words(row.get("manufacturer", "")),
        orientation=_vector(row.get("imageorientationpatient", ""), 6),
        position=_vector(row.get("imagepositionpatient", ""), 3),
        shape=_shape(row),
    )


def kernel_sharpness(kernel: str) -> str:
    """``soft`` or ``sharp`` by a kernel's name; empty if it does not show it.

    Siemens numbers its kernels (B30f, Br40d, I70f), Canon too (FC03, FC52), GE gives words (STANDARD, LUNG),
    Philips letters (B, YA).
    """
    for word in re.split(r"[^a-z0-9]+", kernel.lower()):
        if match := re.fullmatch(r"fc(\d+)\w*", word):
            return SHARP if int(match[1]) // 10 in (3, 5, 8) else SOFT if int(match[1]) < 30 else ""
        if match := re.fullmatch(r"[a-z]{1,2}(\d{2})[a-z]?", word):
            return SHARP if int(match[1]) >= _SHARP_FROM else SOFT
        if word in _WORDS:
            return _WORDS[word]
    return ""


def acquisition_of(case_id: str, kernel: str, manufacturer: str, noise_hu: float | None) -> Acquisition:
    """Scan and reconstruction by CT-RATE's name (``train_1_a_2`` is the second one of scan ``train_1_a``).

    Args:
        case_id: The case; another name is a scan of its own.
        kernel: ConvolutionKernel.
        manufacturer: Of the scanner.
        noise_hu: As measured.
    """
    match = VOLUME.match(case_id)
    scan = f"{match['patient']}_{match['scan']}".lower() if match else ""
    number = match["number"] if match else ""
    return Acquisition(scan, number, kernel, kernel_sharpness(kernel), manufacturer, noise_hu)


def with_geometry(scan: RawScan, spacing: Spacing | None, tags: ScanTags) -> RawScan:
    """A scan without orientation in its header, placed by its metadata; any other unchanged.

    Args:
        scan: As read.
        spacing: The CSV's, millimetres (slices, rows, columns); None where not given.
        tags: The CSV's.

    Raises:
        ScanRefused: ``no_orientation`` where the metadata tell none either, or another order of the axes;
            ``no_geometry`` where they tell no spacing.
    """
    if scan.oriented:
        return scan
    if tags.orientation is None:
        raise ScanRefused(
            "no_orientation", f"{scan.unplaced}, and no metadata CSV gives ImageOrientationPatient"
        )
    if spacing is None:
        raise ScanRefused(
            "no_geometry", f"{scan.unplaced}, and the metadata CSV gives no spacing: no CT volume"
        )
    affine = _placed(tags, spacing)
    if affine is None:
        raise ScanRefused(
            "no_orientation", f"ImageOrientationPatient {list(tags.orientation)} is not a direction"
        )
    if tags.shape and tags.shape != scan.stored.shape and sorted(tags.shape) == sorted(scan.stored.shape):
        raise ScanRefused(
            "no_orientation",
            f"axes of {scan.stored.shape}, the metadata CSV says columns, rows, slices {tags.shape}",
        )
    facts = {**scan.facts, "geometry_from": "csv", "origin_mm_lps": list(tags.position or ())}
    return replace(scan, affine=affine, unplaced="", facts=facts)


def _placed(tags: ScanTags, spacing: Spacing) -> NDArray[np.float64] | None:
    """Voxel index (columns, rows, slices: DICOM's order) to millimetres, RAS ``[4, 4]``.

    Slices follow each other along the normal, the cross product of row and column, as the data set's own
    correction has it.

    Args:
        tags: Orientation, and position where it is known.
        spacing: Millimetres (slices, rows, columns).

    Returns:
        None where the orientation is not two orthogonal unit vectors.
    """
    assert tags.orientation is not None
    row, column = np.array(tags.orientation[:3]), np.array(tags.orientation[3:])
    normal = np.cross(row, column)
    if not 0.99 < np.linalg.norm(normal) < 1.01 or abs(float(np.linalg.norm(row)) - 1) > 0.01:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[2], column * spacing[1], normal * spacing[0]], axis=1)
    affine[:3, 3] = tags.position or (0.0, 0.0, 0.0)
    return LPS_TO_RAS @ affine


def _words(text: str) -> str:
    """A cell's text; lists that were written as text (``['B70f', '3']``) lose brackets and quotes."""
    text = " ".join(re.sub(r"[\[\]'\"(),]", " ", text).split())
    return "" if text.lower() in ("nan", "none") else text


def _shape(row: dict[str, str]) -> tuple[int, ...] | None:
    sizes = [row.get(name, "").removesuffix(".0") for name in ("columns", "rows", "numberofslices")]
    return tuple(map(int, sizes)) if all(size.isdigit() for size in sizes) else None


def _vector(text: str, length: int) -> tuple[float, ...] | None:
    values = tuple(float(number) for number in _NUMBER.findall(text))
    return values if len(values) == length and np.isfinite(values).all() else None
