"""A volume in HU to a file of any format that is written here: NIfTI, MetaImage, NRRD, a DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctflow.data.nifti import write_nifti
from ctflow.data.placement import Affine, laid_out, voxels
from ctflow.files import replaced
from ctflow.formats import ITK, LPS_TO_RAS, NIFTI, Orientation, VoxelType, check_choices, ending_of
from ctflow.types import HUVolume


def write_volume(
    path: Path | str,
    volume: HUVolume,
    description: str = "",
    *,
    synthetic: bool = False,
    dtype: VoxelType | None = None,
    orientation: Orientation | None = None,
    placement: Affine | None = None,
) -> None:
    """Write a volume in the format that the path's ending names; the file is whole or absent.

    Args:
        path: Its ending is one of ``ctflow.formats.ENDINGS``; folders above it are made.
        volume: HU, S,P,R.
        description: A line that goes into the header.
        synthetic: The volume shows no patient: a DICOM series says so wherever a viewer or archive may look.
        dtype: ``int16`` (rounded; None means this) or ``float32``; DICOM holds whole numbers only.
        orientation: Order of the voxels, ``RAS`` or ``LPS``; None: RAS for NIfTI, LPS for all others. The
            geometry is the same in both. DICOM is LPS.
        placement: Affine ``[4, 4]`` from (slice, row, column) to RAS millimetres; None puts the centre at the
            origin, along the patient's axes.

    Raises:
        ScanError: Another ending, a choice that DICOM does not have, a folder that is not a DICOM series,
            or values that are not finite.
    """
    path, ending = Path(path), ending_of(path)
    check_choices(path, dtype, orientation)
    if ending in NIFTI:
        write_nifti(path, volume, description, dtype or "int16", orientation or "RAS", placement)
    elif ending in ITK:
        _write_itk(path, volume, description, dtype or "int16", orientation or "LPS", placement)
    else:
        from ctflow.data.dicom_writer import write_dicom_series

        write_dicom_series(path, volume, description, synthetic, placement)


def _write_itk(
    path: Path,
    volume: HUVolume,
    description: str,
    dtype: VoxelType,
    orientation: Orientation,
    placement: Affine | None,
) -> None:
    import SimpleITK as sitk  # takes a second

    array, affine = laid_out(volume, orientation, placement)
    affine = LPS_TO_RAS @ affine + 0.0  # the matrix is its own inverse; no minus before zero
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels(array, dtype).transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    if description:
        image.SetMetaData("Comment", " ".join(description.split()))
    with replaced(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
