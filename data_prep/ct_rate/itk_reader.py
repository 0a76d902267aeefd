"""NRRD and MetaImage by SimpleITK, header first."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import LPS_TO_RAS, RawScan, check_shape

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_NRRD_SHORT = ("ras", "las", "lps", "rast", "last", "lpst")
_META_BYTES = {
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
"""Bytes per voxel as MetaIO writes them; types not named here have one or more."""
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
    try:
        image = reader.Execute()
    except RuntimeError as error:
        text, missing = last_line(error), _missing_voxels(path)
        short = any(
            word in text.lower() for word in ("bytes", "eof", "end of", "truncat", "premature", "fread")
        )
        raise ScanRefused("truncated" if short or missing else "unreadable", missing or text) from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    stored = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    lost = path.suffix.lower() in (".nrrd", ".nhdr") and not _nrrd_has_space(path)
    unplaced = "the NRRD header has no anatomical space (left, posterior …)" if lost else ""
    return RawScan(stored, itk_affine(image), format=_FORMATS[path.suffix.lower()], unplaced=unplaced)


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
    """Whether the axes are tied to the patient; ``scanner-xyz`` and ``space dimension: 3`` are not."""
    with path.open("rb") as stream:
        head = stream.read(2**16).replace(b"\r\n", b"\n").split(b"\n\n")[0].decode("ascii", "replace")
    spaces = [
        line.partition(":")[2].strip().lower() for line in head.splitlines() if line.startswith("space:")
    ]
    return any(space in _NRRD_SHORT or {*space.split("-")} >= {"superior"} for space in spaces)


def _missing_voxels(path: Path) -> str | None:
    """What a MetaImage lacks, which MetaIO does not tell; None where nothing, and for other formats."""
    if path.suffix.lower() not in (".mha", ".mhd"):
        return None
    with path.open("rb") as stream:
        head = stream.read(2**16)
        size = stream.seek(0, 2)
    text, _, rest = head.partition(b"ElementDataFile")
    line = rest.split(b"\n")[0]
    pairs = (part.split("=", 1) for part in text.decode("latin-1").splitlines() if "=" in part)
    fields = {key.strip(): value.strip() for key, value in pairs}
    name = line.partition(b"=")[2].decode("utf-8", "replace").strip()
    if not name:
        return "the header ends without ElementDataFile"
    if name.upper() == "LOCAL":
        there = size - (len(head) - len(rest)) - len(line) - 1
    elif path.with_name(name).is_file():
        there = path.with_name(name).stat().st_size
    else:
        return None if "%" in name or name == "LIST" else f"{name} with the voxels is not beside the header"
    if fields.get("CompressedData", "").lower() == "true":
        return f"the compressed voxels, {there:,} bytes, end early or are damaged"
    sizes = [int(size) for size in fields.get("DimSize", "").split() if size.isdigit()]
    need = math.prod(sizes) * _META_BYTES.get(fields.get("ElementType", ""), 1)
    return f"{there:,} of {need:,} bytes of voxels are there" if there < need else None
