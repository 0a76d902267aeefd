"""Why a file was refused or flagged: every code there is, and the exception that carries a refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence

REFUSALS = {
    "unreadable": "the library that reads this format cannot read it",
    "truncated": "the file ends before its header says it does",
    "damaged": "a checksum inside the file does not hold",
    "not_read": "the system did not let it be read (permission, disk, network); tried again by the next run",
    "packed": "an archive or a compressed file that is not read here: unpack it first",
    "outside_source": "a header whose voxels lie in a file outside the source",
    "not_an_image": "not an image format that is read here",
    "not_3d": "not one 3D volume: 2D, 4D, vectors or colours",
    "too_few_slices": "too few slices for a volume (a localiser, or a rest of a series)",
    "too_small": "too few rows or columns",
    "too_large": "more voxels than the memory of a worker holds; tried again by the next run",
    "localizer": "a localiser (scout, topogram)",
    "not_ct": "DICOM of another modality, or no original CT image",
    "no_geometry": "no usable position, orientation or spacing",
    "no_orientation": "the header says nothing about orientation: left and right are unknown",
    "implausible_spacing": "no scanner has this spacing or field of view, and no metadata CSV corrects it",
    "mixed_rescale": "a slope or intercept that only some slices have, or that is wrong or not a number",
    "gantry_tilt": "slices are sheared against their own normal",
    "uneven_slices": "slices are missing or unevenly spaced",
    "repeated_positions": "different slices at one position: 4D, or several reconstructions in one",
    "constant": "every voxel is the same",
    "empty": "almost all voxels have one value",
    "blank_slices": "constant slices between others",
    "not_finite": "more than half of the voxels are not numbers",
    "not_hu": "intensities are not Hounsfield units, with or without slope and intercept",
    "ambiguous_row": "a CSV line that fits several volumes, or several lines that fit one and differ",
    "split_conflict": "it shows the patient of one volume in train and of one in valid",
    "duplicate": "another file with this case's name came first",
    "timeout": "reading took longer than allowed; tried again by the next run",
    "crashed": "the reading process died on this file; tried again by the next run",
}
"""Code to meaning; a refused file is in no shard."""

PASSING = ("not_read", "too_large", "timeout", "crashed")
"""Refusals whose cause may lie outside the file: the next run tries again."""

FLAGS = {
    "orientation_doubt": "the anatomy is not as the header says: turned, mirrored, of wrong sizes or spacing",
    "not_chest": "hardly any lung: another part of the body",
    "one_lung": "lung on one side only",
    "short_coverage": "too short, or the lungs go on beyond the first or last slice",
    "cropped_field": "the body fills the image up to its border: a crop",
    "coarse_intensities": "fewer than 300 distinct values: stored in 8 bits",
    "blank_ends": "constant slices at an end were cut off",
    "not_finite_filled": "voxels that are not numbers became air",
    "rescale_conflict": "the header has slope and intercept, but the values are HU without them",
    "spacing_conflict": "metadata CSV and header disagree on spacing, and the CSV's is implausible",
    "header_conflict": "the NIfTI header's sform and qform disagree on axes or spacing, or one is unusable",
    "tilt_conflict": "the header names a gantry tilt, but the slices lie straight: they count",
    "clipped_values": "voxels beyond the 32,767 HU that are stored became 32,767",
    "unclear_value": "a label outside 0 to 1, or text in place of a number, was left out",
    "duplicate_content": "voxel for voxel another volume of this output; both count as one patient",
    "no_report": "report CSVs are there, but not this volume",
}
"""Code to meaning; a flagged scan is kept unless ``keep_flagged=false`` (``not_chest``: only if
``keep_no_chest=true``)."""

EXCLUSIONS = {
    "first_version": "CT-RATE's first version of a volume whose corrected version is there",
    "label_map": "a label map (segmentation) with the name of a volume",
    "listed_no_chest": "named in a list of volumes that show no chest",
    "not_chest": FLAGS["not_chest"],
}
"""Code to meaning; excluded files are in no shard, and leave the exit status alone."""

IGNORED = {
    "stray_file": "no image by its name, or no image beside a DICOM series",
    "special_file": "a pipe, socket or device",
    "no_pixels": "a DICOM object without an image (report, structure set, presentation state …)",
}
"""Code to meaning; ignored files count neither as usable nor as refused."""


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PACKINGS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}


def printable(text: str) -> str:
    """Text that every file and terminal takes on one line: control characters and bytes of a name or tag that
    are not UTF-8 become escapes.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def packing_of(head: bytes) -> str | None:
    """Name of the archive or compression that a file's first 300 bytes show; None where there is none."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((name for magic, name in _PACKINGS.items() if head.startswith(magic)), None)


class ScanExcluded(Exception):
    """A file that is left out by a rule, without fault of its own.

    Args:
        code: A key of ``EXCLUSIONS``.
        detail: What was found, in words with numbers.
    """

    def __init__(self, code: str, detail: str) -> None:
        assert code in EXCLUSIONS, code
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class ScanRefused(Exception):
    """A file that cannot go in.

    Args:
        code: A key of ``REFUSALS``.
        detail: What was found, in words with numbers.
        more: Further pairs of code and detail.
    """

    def __init__(self, code: str, detail: str, more: Sequence[tuple[str, str]] = ()) -> None:
        assert code in REFUSALS, code
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail
        self.reasons = [[code, detail], *([c, d] for c, d in more)]
