"""NRRD and MetaImage by SimpleITK, header first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import LPS_TO_RAS, RawScan, check_shape

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}


def read_itk_scan(path: Path, memory_bytes: float) -> RawScan:
    """Read a NRRD or MetaImage file.

    Args:
        path: The file, or the header of a pair.
        memory_bytes: What the worker may use.

    Raises:
        ScanRefused: See ``reasons``.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanRefused("unreadable", last_line(error)) from error
    if reader.GetNumberOfComponents() != 1:
        raise ScanRefused("not_3d", f"{reader.GetNumberOfComponents()} values per voxel")
    check_shape(tuple(reader.GetSize()), 4, memory_bytes)
    if path.suffix.lower() in (".nrrd", ".nhdr") and not _nrrd_has_space(path):
        raise ScanRefused("no_orientation", "the NRRD header has no space")
    try:
        image = reader.Execute()
    except RuntimeError as error:
        text = last_line(error)
        short = any(word in text.lower() for word in ("bytes", "eof", "end of", "truncat", "premature"))
        raise ScanRefused("truncated" if short else "unreadable", text) from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return RawScan(stored, itk_affine(image), format=_FORMATS[path.suffix.lower()])


def itk_affine(image: sitk.Image) -> NDArray[np.float64]:
    """Voxel index ``[i, j, k]`` to RAS millimetres of a 3D ITK image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def last_line(error: Exception) -> str:
    """ITK's own words, without the source files it names before them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR:").strip()[:300] if lines else type(error).__name__


def _nrrd_has_space(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(2**16).split(b"\n\n")[0]
    return any(line.startswith((b"space:", b"space dimension:")) for line in head.splitlines())
