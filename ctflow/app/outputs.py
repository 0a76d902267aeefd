"""Outputs of the library: voxels for the viewer, pictures for browsers without one, files for every tool."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctflow.app.store import CONTINUED, GENERATED, Entry, Library
from ctflow.data.writers import write_volume
from ctflow.errors import CTFlowError
from ctflow.pictures import (
    BONE,
    DIFFERENCE,
    LUNG,
    SOFT_TISSUE,
    Window,
    axial,
    coronal,
    montage,
    sagittal,
    save_png,
)
from ctflow.types import HUVolume

WINDOWS: dict[str, Window] = {
    "lung": LUNG,
    "soft": SOFT_TISSUE,
    "bone": BONE,
    "difference": DIFFERENCE,
}
PLANES = ("axial", "coronal", "sagittal")
MOST_BYTES = 2**25
"""Voxels of one answer."""

_WIDTH = 512
_THUMBNAIL = 96


def voxel_bytes(library: Library, volume_id: str, first: int, count: int, minus: str = "") -> bytes:
    """Slices as the viewer takes them: int16, columns to the patient's right, rows to the front.

    Args:
        library: Where the volume lies.
        volume_id: The volume.
        first: First slice.
        count: Most slices; fewer where fewer are there, or would be too much for one answer.
        minus: A volume on the same grid to be subtracted; empty: none.
    """
    voxels = _chosen(library, volume_id, minus)
    side = library[volume_id].side
    count = min(count, max(MOST_BYTES // (2 * side * side), 1))
    part = voxels(slice(first, first + count))
    return np.ascontiguousarray(part[:, ::-1, :]).astype("<i2").tobytes()


def slice_png(
    library: Library, volume_id: str, plane: str, index: int, window: str, minus: str = ""
) -> bytes:
    """One slice as a PNG in radiological display.

    Raises:
        CTFlowError: No such plane, window or slice.
    """
    entry = library[volume_id]
    if plane not in PLANES or window not in WINDOWS:
        raise CTFlowError("no such plane or window", f"{', '.join(PLANES)}; {', '.join(WINDOWS)}")
    voxels = _chosen(library, volume_id, minus)
    limit = entry.done if plane == "axial" else entry.side
    if not entry.done or not 0 <= index < limit:
        raise CTFlowError(f"slice {index} of {limit}", "one that is there")
    one = slice(index, index + 1)
    if plane == "axial":
        image = axial(_volume(voxels(one), entry), 0, WINDOWS[window], _WIDTH)
    elif plane == "coronal":
        image = coronal(_volume(voxels(slice(None))[:, one], entry), WINDOWS[window], _WIDTH, 0)
    else:
        image = sagittal(_volume(voxels(slice(None))[:, :, one], entry), WINDOWS[window], _WIDTH, 0)
    return _png(image)


def thumbnail_png(library: Library, volume_id: str) -> bytes:
    """A coronal cut through the middle, for the list."""
    entry = library[volume_id]
    if not entry.done:
        raise CTFlowError("the volume has no slice yet", "at least one")
    row = entry.side // 2
    plane = library.voxels(volume_id)[:, row : row + 1]
    return _png(coronal(_volume(plane, entry), LUNG, _THUMBNAIL, 0))


def _write_montage(path: Path, volume: HUVolume, entry: Entry) -> None:
    save_png(path, montage(volume))


def _write_record(path: Path, volume: HUVolume, entry: Entry) -> None:
    text = json.dumps(entry.record | {"title": entry.title, "kind": entry.kind}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _write_volume(path: Path, volume: HUVolume, entry: Entry) -> None:
    made = entry.kind in (GENERATED, CONTINUED)
    write_volume(path, volume, f"ctflow {entry.kind} CT in HU", synthetic=made)


def _write_dicom_zip(path: Path, volume: HUVolume, entry: Entry) -> None:
    with TemporaryDirectory(dir=path.parent) as folder:
        series = Path(folder) / f"{file_name(entry)}.dcm"
        _write_volume(series, volume, entry)
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for file in sorted(series.iterdir()):
                archive.write(file, f"{file_name(entry)}/{file.name}")


FORMATS: dict[str, tuple[str, str, Callable[[Path, HUVolume, Entry], None]]] = {
    "nifti": (".nii.gz", "application/gzip", _write_volume),
    "dicom": (".zip", "application/zip", _write_dicom_zip),
    "mha": (".mha", "application/octet-stream", _write_volume),
    "json": (".json", "application/json", _write_record),
    "png": (".png", "image/png", _write_montage),
}
"""Name of a download: ending, media type and writer."""


def write_download(library: Library, volume_id: str, kind: str) -> tuple[Path, str, str]:
    """Write a volume as a file of one format.

    Returns:
        The temporary file, which the caller removes; its name for the user; its media type.

    Raises:
        CTFlowError: No such format, or no slice yet.
    """
    if kind not in FORMATS:
        raise CTFlowError("no such format", ", ".join(FORMATS))
    entry = library[volume_id]
    ending, media, write = FORMATS[kind]
    path = library.temporary(ending)
    try:
        write(path, library.volume(volume_id), entry)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, f"{file_name(entry)}{ending}", media


def file_name(entry: Entry) -> str:
    """Name of a volume's files, without ending."""
    return f"ctflow-{entry.kind}-{entry.id}"


def _chosen(library: Library, volume_id: str, minus: str) -> Callable[[slice], NDArray[np.int16]]:
    """Slices of a volume, or of its difference to another."""
    own = library.voxels(volume_id)
    if not minus:
        return lambda part: own[part]
    a, b = library[volume_id], library[minus]
    if a.side != b.side or a.spacing != b.spacing:
        raise CTFlowError("two volumes on different grids", "equal sides and spacings", "compare others")
    both = min(a.done, b.done)
    other = library.voxels(minus)[:both]
    own = own[:both]
    limits = np.iinfo(np.int16)

    def less(part: slice) -> NDArray[np.int16]:
        difference = own[part].astype(np.int32) - other[part]
        return difference.clip(limits.min, limits.max).astype(np.int16)

    return less


def _volume(part: NDArray[np.int16], entry: Entry) -> HUVolume:
    return HUVolume(part.astype(np.float32), entry.spacing)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
