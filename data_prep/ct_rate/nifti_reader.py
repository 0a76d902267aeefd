"""NIfTI, whole and checked: sizes before anything is allocated, the gzip checksum to the end."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from data_prep.ct_rate.discovery import sibling
from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import RawScan, check_shape

_UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_TAIL_BYTES = 2**20
"""Most bytes read behind the voxels; more is a damaged header, not a NIfTI."""


def is_nifti(path: Path) -> bool:
    """Whether a file holds a NIfTI in one piece, compressed or not, by its content."""
    with path.open("rb") as raw:
        head = raw.read(348)
        if head[:2] == b"\x1f\x8b":
            raw.seek(0)
            try:
                head = gzip.GzipFile(fileobj=raw).read(348)
            except (OSError, EOFError, zlib.error):
                return False
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def read_nifti_scan(path: Path, memory_bytes: float) -> RawScan:
    """Read a NIfTI-1 or NIfTI-2 file or pair, compressed or not, whatever its name says.

    Args:
        path: The file.
        memory_bytes: What the worker may use.

    Raises:
        ScanRefused: See ``reasons``.
    """
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            if path.name.lower().endswith((".hdr", ".hdr.gz")):
                return _read_pair(stream, path, memory_bytes)
            return _read(stream, compressed, memory_bytes)
        except EOFError as error:
            raise ScanRefused("truncated", f"the compressed stream ends early ({error})") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ScanRefused("damaged", f"the compressed stream is damaged ({error})") from error


def read_nifti_header(stream: BinaryIO | gzip.GzipFile) -> nib.Nifti1Header:
    """The header of a NIfTI in one piece, from its decompressed beginning.

    Raises:
        ScanRefused: None there.
    """
    return _header(stream.read(544), (b"n+1", b"n+2"))


def _read(stream: BinaryIO | gzip.GzipFile, compressed: bool, memory_bytes: float) -> RawScan:
    head = stream.read(544)
    header = _header(head, (b"n+1", b"n+2"))
    sizes, need = _sizes(header, memory_bytes)
    offset = header.get_data_offset()
    if not len(head) >= 348 or not 0 <= offset < _TAIL_BYTES:
        raise ScanRefused("unreadable", f"voxel data at byte {offset}")
    skipped = offset - len(head)
    body = head[offset:] if skipped < 0 else stream.read(skipped)[:0]
    data = body + stream.read(need - len(body))
    if len(data) < need:
        raise ScanRefused("truncated", f"{len(data):,} of {need:,} bytes of voxels are there")
    if compressed and len(stream.read(_TAIL_BYTES)) == _TAIL_BYTES:  # reaching the end is what checks the CRC
        raise ScanRefused("unreadable", f"more than {_TAIL_BYTES:,} bytes behind the voxels")
    return _scan(header, sizes, data)


def _read_pair(stream: BinaryIO | gzip.GzipFile, path: Path, memory_bytes: float) -> RawScan:
    header = _header(stream.read(544), (b"ni1", b"ni2"))
    sizes, need = _sizes(header, memory_bytes)
    image = sibling(path, (".img", ".img.gz"))
    if image is None:
        raise ScanRefused("truncated", f"no .img with the voxels beside {path.name}")
    with image.open("rb") as raw:
        data = gzip.GzipFile(fileobj=raw) if image.name.lower().endswith(".gz") else raw
        data.seek(max(0, int(header.get_data_offset())))
        voxels = data.read(need)
    if len(voxels) < need:
        raise ScanRefused("truncated", f"{image.name}: {len(voxels):,} of {need:,} bytes of voxels are there")
    return _scan(header, sizes, voxels)


def _sizes(header: nib.Nifti1Header, memory_bytes: float) -> tuple[tuple[int, ...], int]:
    """Sizes of the volume, and bytes of its voxels."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanRefused("not_3d", f"voxels of type {dtype}, not one number each")
    sizes = check_shape(tuple(int(n) for n in header.get_data_shape()), dtype.itemsize, memory_bytes)
    return sizes, int(np.prod(sizes)) * dtype.itemsize


def _scan(header: nib.Nifti1Header, sizes: tuple[int, ...], data: bytes) -> RawScan:
    stored = np.frombuffer(data, header.get_data_dtype()).reshape(sizes, order="F")
    slope, intercept = header.get_slope_inter()
    affine, conflict = _affine(header), _conflict(header)
    return RawScan(
        stored,
        affine,
        slope or 1.0,
        intercept or 0.0,
        "NIfTI",
        facts=_facts(header),
        flags=[["header_conflict", conflict]] if conflict else [],
        unplaced="" if _is_placed(header) else "neither sform nor qform is set",
    )


def _header(head: bytes, magics: tuple[bytes, ...]) -> nib.Nifti1Header:
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        try:
            header = kind.from_fileobj(io.BytesIO(head))
            if bytes(header["magic"]).startswith(magics):
                return header
        except (HeaderDataError, ImageFileError, ValueError, KeyError, OverflowError):
            continue
    raise ScanRefused("unreadable", f"no NIfTI header (magic {' or '.join(m.decode() for m in magics)})")


def _is_placed(header: nib.Nifti1Header) -> bool:
    return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


def _affine(header: nib.Nifti1Header) -> np.ndarray:
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise ScanRefused("no_geometry", f"the affine cannot be read ({error})") from error
    try:
        unit = header.get_xyzt_units()[0]
    except (KeyError, ValueError):
        unit = "unknown"
    scale = _UNITS[unit]
    return np.diag([scale, scale, scale, 1.0]) @ affine


def _conflict(header: nib.Nifti1Header) -> str | None:
    """Where sform and qform are both set and place the voxels differently; None where they agree."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return None
    try:
        places = header.get_sform(), header.get_qform()
        axes = ["".join(nib.aff2axcodes(place)) for place in places]
    except (HeaderDataError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        return f"qform unusable ({error})"
    spacing = [np.linalg.norm(place[:3, :3], axis=0) for place in places]
    if axes[0] == axes[1] and np.allclose(spacing[0], spacing[1], rtol=0.01):
        return None
    told = [
        f"{a} of {' x '.join(f'{v:g}' for v in np.round(s, 4))} mm"
        for a, s in zip(axes, spacing, strict=True)
    ]
    return f"sform {told[0]}, qform {told[1]}"


def _facts(header: nib.Nifti1Header) -> dict[str, str]:
    text = bytes(header["descrip"]).split(b"\0")[0].decode("ascii", "replace")
    return {"description": text} if text else {}
