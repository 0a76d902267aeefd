"""Files a volume can be written to: their endings, and the choices there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from ctflow.errors import ScanError

NIFTI, ITK, DICOM = (".nii.gz", ".nii"), (".mha", ".nrrd"), (".dcm",)
ENDINGS = (*NIFTI, *ITK, *DICOM)
"""Endings of all formats; ``.dcm`` is a folder with a file per slice."""

VoxelType = Literal["int16", "float32"]
"""Types of stored HU: rounded, or unchanged."""
VOXEL_TYPES: tuple[VoxelType, ...] = ("int16", "float32")

Orientation = Literal["RAS", "LPS"]
"""Where a file's voxel indices grow to: right, front, up; or left, back, up."""
ORIENTATIONS: tuple[Orientation, ...] = ("RAS", "LPS")

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Affine from the one to the other, and back."""


_SLICE_NAME = re.compile(r"slice_\d{4,}\.dcm")
"""How the files of a series are named here."""


def ending_of(path: Path | str) -> str:
    """Which of ``ENDINGS`` a path has.

    Raises:
        ScanError: None of them.
    """
    name = Path(path).name
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return ending
    raise ScanError(
        f"a volume cannot be written to {path}",
        f"a name ending in {', '.join(ENDINGS[:-1])} or .dcm (a folder with a DICOM series)",
    )


def check_series_place(path: Path) -> None:
    """Whether a folder for a DICOM series can be made, or holds one that was written here before.

    Raises:
        ScanError: A file, or a folder with anything else in it.
    """
    if path.is_dir():
        others = sorted(p.name for p in path.iterdir() if not _SLICE_NAME.fullmatch(p.name))
        if not others:
            return
        found = f"{path} is a folder that holds {others[0]}"
    elif path.exists():
        found = f"{path} is a file"
    else:
        return
    raise ScanError(found, "a new folder, or a series written here before", "choose another name")


def check_choices(path: Path | str, dtype: str | None, orientation: str | None) -> None:
    """Whether a file of this ending can be written so, and there: asked before any work.

    Args:
        path: Names the format.
        dtype: One of ``VOXEL_TYPES``; None: ``int16``.
        orientation: One of ``ORIENTATIONS``; None: RAS for NIfTI, LPS for all others.

    Raises:
        ScanError: Another ending, a choice that DICOM does not have, or something else at this place.
    """
    path = Path(path)
    if ending_of(path) not in DICOM:
        if path.is_dir():
            raise ScanError(f"{path} is a folder", "the name of a file", "choose another name")
        return
    check_series_place(path)
    if dtype == "float32":
        raise ScanError("float32 for a DICOM series", "int16", "write .nii.gz, .mha or .nrrd for fractions")
    if orientation == "RAS":
        raise ScanError(
            "orientation RAS for a DICOM series", "LPS, as CT images are", "leave out the orientation"
        )
