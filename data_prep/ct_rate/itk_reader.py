"""NRRD and MetaImage by SimpleITK, header first."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ctflow.formats import LPS_TO_RAS
from data_prep.ct_rate.itk_headers import check_files, check_voxels, has_patient_space, read_place
from data_prep.ct_rate.reasons import ScanRefused, printable
from data_prep.ct_rate.scan import RawScan, check_shape

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_FORMATS = {".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}


def read_itk_scan(path: Path, root: Path, memory_bytes: float) -> RawScan:
    """Read a NRRD or MetaImage file.

    Args:
        path: The file, or the header of a pair.
        root: Folder of the source, which the header's other files must lie under.
        memory_bytes: What the worker may use.

    Raises:
        ScanRefused: See ``reasons``.
        OSError: The system does not let a file be read.
    """
    place = read_place(path)
    check_files(place, path, root)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanRefused("unreadable", last_line(error)) from error
    if reader.GetNumberOfComponents() != 1:
        raise ScanRefused("not_3d", f"{reader.GetNumberOfComponents()} values per voxel")
    check_shape(tuple(reader.GetSize()), 8, memory_bytes)
    checksum = check_voxels(place)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        text = last_line(error)
        short = any(
            word in text.lower() for word in ("bytes", "eof", "end of", "truncat", "premature", "fread")
        )
        raise ScanRefused("truncated" if short else "unreadable", text) from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    array = sitk.GetArrayFromImage(image)
    if checksum is not None and checksum not in (zlib.crc32(array), zlib.crc32(array.byteswap())):
        raise ScanRefused("unreadable", "SimpleITK unpacks other values than the compressed voxels hold")
    lost = _FORMATS[path.suffix.lower()] == "NRRD" and not has_patient_space(place.fields)
    unplaced = "the NRRD header has no anatomical space (left, posterior …)" if lost else ""
    comment = place.fields.get("comment") or (
        reader.GetMetaData("Comment") if reader.HasMetaDataKey("Comment") else ""
    )
    return RawScan(
        array.transpose(2, 1, 0),
        itk_affine(image),
        format=_FORMATS[path.suffix.lower()],
        facts={"description": printable(comment)} if comment else {},
        unplaced=unplaced,
    )


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
