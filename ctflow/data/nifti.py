"""Volumes in HU as NIfTI files and back."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from ctflow.data.placement import Affine, laid_out, voxels
from ctflow.errors import ScanError
from ctflow.files import describe_stranger, replaced
from ctflow.formats import Orientation, VoxelType
from ctflow.hounsfield import sample_of, scale_of, why_not_hu
from ctflow.types import HUVolume

AXES = ("S", "P", "R")
_DESCRIPTION_BYTES = 79
_STEP_HU, _LOWEST_HU = 8.0, 1024.0
_SLOPE_AT = 112
"""Where a NIfTI header holds slope and intercept."""
_MAX_TILT_DEGREES = 2.0


def write_nifti(
    path: Path | str,
    volume: HUVolume,
    metadata: str = "",
    dtype: VoxelType = "int16",
    orientation: Orientation = "RAS",
    placement: Affine | None = None,
) -> None:
    """Write a volume in HU, with slope 1 and its spacing, so that it opens upright.

    Args:
        path: Ends in ``.nii`` or ``.nii.gz``; written under a temporary name and renamed. Folders are made.
        volume: HU, S,P,R.
        metadata: Text of the header's description, cut to 79 bytes.
        dtype: ``int16``: HU are rounded, and clipped to its range; ``float32``.
        orientation: Order of the voxels.
        placement: See ``write_volume``.

    Raises:
        ScanError: The path has another ending, or the volume has values that are not numbers.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ScanError(f"a volume cannot be written to {path}", "a name ending in .nii or .nii.gz")
    array, affine = laid_out(volume, orientation, placement)
    image = nib.Nifti1Image(voxels(array, dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_slope_inter(1.0, 0.0)
    image.header["descrip"] = metadata.encode()[:_DESCRIPTION_BYTES]
    with replaced(path) as temporary:
        nib.save(image, temporary)


def small_nifti(volume: HUVolume) -> bytes:
    """A gzipped NIfTI file to look at: 8 bits a voxel, in steps of 8 HU from -1024 to 1016."""
    array, affine = laid_out(volume, "RAS", None)
    steps = np.clip(np.rint((array + _LOWEST_HU) / _STEP_HU), 0, 255).astype(np.uint8)
    image = nib.Nifti1Image(steps, affine)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    # nibabel would scale voxels that are stored values already.
    content[_SLOPE_AT : _SLOPE_AT + 8] = np.array([_STEP_HU, -_LOWEST_HU], "<f4").tobytes()
    return gzip.compress(bytes(content), mtime=0)


def read_nifti(path: Path | str) -> HUVolume:
    """Read a volume that is in HU already, and turn it to S,P,R.

    Scans as hospitals store them (stored values, oblique axes, padding) go through ``data_prep.ct_rate``.

    Raises:
        ScanError: Not a readable three-dimensional NIfTI file, oblique axes, values that are not numbers, or
            values of another scale (in [0, 1], [-1, 1], 0…255, HU + 1024).
    """
    path = Path(path)
    image = _open(path)
    try:
        hu = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # damaged gzip streams raise zlib.error, short ones OSError or EOFError
        raise ScanError(f"{path} is damaged: {error}", "a whole NIfTI file in HU") from error
    hu = hu.reshape(hu.shape[:3])
    if not np.isfinite(hu).all():
        raise ScanError(f"{path} has values that are not finite", "HU in every voxel")
    _check_scale(path, hu)
    return HUVolume(np.ascontiguousarray(apply_orientation(hu, _turn(image))), _geometry(image)[1])


def read_geometry(path: Path | str) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing that ``read_nifti`` would give, from the header alone.

    Raises:
        ScanError: Not a three-dimensional NIfTI file, or oblique axes.
    """
    return _geometry(_open(Path(path)))


def _open(path: Path) -> Any:
    """The image with its header read, and three axes; its pixels are read later.

    Raises:
        ScanError: Not a three-dimensional NIfTI file, or oblique axes.
    """
    try:
        image: Any = nib.load(path)
    except (OSError, ValueError, EOFError, ImageFileError) as error:
        stranger = describe_stranger(path) if path.is_file() else ""
        told = f"{path} {stranger}" if stranger else f"{path} cannot be read: {error}"
        raise ScanError(told, "a NIfTI file in HU") from error
    except Exception as error:  # zlib.error of a damaged stream has no common base with the above
        raise ScanError(f"{path} is damaged: {error}", "a whole NIfTI file in HU") from error
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise ScanError(f"{path} has the shape {image.shape}", "three axes", "extract one volume first")
    _check_axes(path, image.affine)
    return image


def _geometry(image: Any) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    z, y, x = np.argsort(_turn(image)[:, 0])
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = image.shape
    return (shape[z], shape[y], shape[x]), (float(spacing[z]), float(spacing[y]), float(spacing[x]))


def _turn(image: Any) -> np.ndarray:
    """The transform that brings the file's axes to S,P,R."""
    return ornt_transform(io_orientation(image.affine), axcodes2ornt(AXES))


def _check_scale(path: Path, hu: np.ndarray) -> None:
    sample = sample_of(hu)
    scale = scale_of(sample) if why_not_hu(sample) else None
    if scale is not None:
        raise ScanError(
            f"{path} holds values from {hu.min():g} to {hu.max():g}: they look like {scale.name}",
            "a CT in HU: air near -1000, soft tissue near 0",
            scale.remedy,
        )


def _check_axes(path: Path, affine: np.ndarray) -> None:
    matrix = affine[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any():
        raise ScanError(f"{path} has an affine without spacing:\n{affine}", "three axes with millimetres")
    cosines = np.abs(matrix / lengths).max(axis=0)
    tilt = float(np.degrees(np.arccos(np.clip(cosines.min(), 0.0, 1.0))))
    if tilt > _MAX_TILT_DEGREES:
        raise ScanError(
            f"{path} has axes {tilt:.1f} degrees off the body's",
            f"at most {_MAX_TILT_DEGREES:g} degrees",
            "resample it with python -m data_prep.ct_rate",
        )
