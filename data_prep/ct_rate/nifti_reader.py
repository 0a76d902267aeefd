"""NIfTI, whole and checked: sizes before anything is allocated, the gzip checksum to the end."""

from __future__ import annotations

import gzip
import logging
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from data_prep.ct_rate.reasons import ScanRefused, packing_of
from data_prep.ct_rate.scan import RawScan, check_affine, check_shape
from data_prep.ct_rate.survey import sibling

# It tells what it mends in a header, without the file's name; what it cannot mend is the refusal's detail.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
_UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_TAIL_BYTES = 2**20
"""Most bytes read behind the voxels; more is a damaged header, not a NIfTI."""
_EXTENSION_BYTES = 2**26
"""Most bytes between header and voxels (comments, DICOM tags, XML)."""
_PIECE_BYTES = 2**24
_BAD_HEADER = (
    *(HeaderDataError, ImageFileError, WrapStructError),
    *(ValueError, KeyError, OverflowError, TypeError),
)
_HEAD_BYTES = {nib.Nifti1Header: 348, nib.Nifti2Header: 540}
_UNIT_QUATERNION = 1.001
"""Largest length of a quaternion's vector that rounding explains; beyond 1 it is none of a rotation."""


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
    """Read a NIfTI-1 or NIfTI-2 file or pair, compressed or not, with any name.

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


def header_bytes(path: Path) -> float:
    """Bytes of a NIfTI's voxels, by its header alone.

    Raises:
        ScanRefused: No NIfTI header.
    """
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if raw.read(2) == b"\x1f\x8b" else raw
        raw.seek(0)
        try:
            header = _header(stream.read(544), (b"n+1", b"n+2", b"ni1", b"ni2"))
        except (EOFError, zlib.error) as error:
            raise ScanRefused("unreadable", str(error)) from error
    return float(np.prod([float(n) for n in header.get_data_shape()])) * header.get_data_dtype().itemsize


def _take(stream: BinaryIO | gzip.GzipFile, count: int, first: bytes = b"") -> NDArray[np.uint8]:
    """So many bytes after those read already, without a second copy of them; fewer where the stream ends."""
    data = np.empty(count, np.uint8)
    filled = 0
    piece = first[:count]
    while piece:
        data[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
        piece = stream.read(min(_PIECE_BYTES, count - filled))
    return data[:filled]


def _read(stream: BinaryIO | gzip.GzipFile, compressed: bool, memory_bytes: float) -> RawScan:
    head = stream.read(544)
    header = _header(head, (b"n+1", b"n+2"))
    sizes, need = _sizes(header, memory_bytes)
    offset = header.get_data_offset()
    if not 0 <= offset < _EXTENSION_BYTES:
        raise ScanRefused("unreadable", f"voxel data at byte {offset}")
    skipped = offset - len(head)
    body = head[offset:] if skipped < 0 else stream.read(skipped)[:0]
    data = _take(stream, need, body or stream.read(min(need, _PIECE_BYTES)))
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
        voxels = _take(data, need, data.read(min(need, _PIECE_BYTES)))
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


def _scan(header: nib.Nifti1Header, sizes: tuple[int, ...], data: NDArray[np.uint8]) -> RawScan:
    stored = np.frombuffer(data, header.get_data_dtype()).reshape(sizes, order="F")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not slope or not np.isfinite(slope):  # NIfTI: no scaling
        slope, intercept = 1.0, 0.0
    affine, conflict = _affine(header)
    flags = [["header_conflict", conflict]] if conflict else []
    intercept = intercept if np.isfinite(intercept) else 0.0
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    unplaced = "" if placed else "neither sform nor qform is set"
    facts = _facts(header)
    return RawScan(stored, affine, slope, intercept, "NIfTI", facts=facts, flags=flags, unplaced=unplaced)


def _header(head: bytes, magics: tuple[bytes, ...]) -> nib.Nifti1Header:
    if packing := packing_of(head):
        raise ScanRefused("packed", f"packed ({packing}): unpack it first")
    why = f"magic {' or '.join(m.decode() for m in magics)}"
    for kind, size in _HEAD_BYTES.items():
        try:
            header = kind(head[:size])  # without the bytes between header and voxels
            if bytes(header["magic"]).startswith(magics):
                return header
        except _BAD_HEADER as error:
            if head[344:347] in magics or head[4:7] in magics:
                why = str(error)
    raise ScanRefused("unreadable", f"no NIfTI header ({why})")


def _affine(header: nib.Nifti1Header) -> tuple[np.ndarray, str | None]:
    """Voxel index to millimetres by the sform, else the qform, and what of the two disagrees or is unusable.

    Where neither is set, the voxel sizes alone are true.

    Raises:
        ScanRefused: Neither can be used.
    """
    found: dict[str, np.ndarray] = {}
    wrong: dict[str, str] = {}
    for name, read in (("sform", header.get_sform), ("qform", lambda: _qform(header))):
        if int(header[f"{name}_code"]) > 0:
            try:
                place = np.asarray(read(), np.float64)
                check_affine(place)
            except (HeaderDataError, ValueError, TypeError, np.linalg.LinAlgError) as error:
                wrong[name] = str(error)
            except ScanRefused as refusal:
                if refusal.code != "no_geometry":
                    raise  # a sheared grid does not make the other one right, which cannot be sheared
                wrong[name] = refusal.detail
            else:
                found[name] = place
    if not found and wrong:
        raise ScanRefused("no_geometry", "; ".join(f"{name}: {text}" for name, text in wrong.items()))
    if not found:
        found["sizes"] = np.asarray(header.get_base_affine(), np.float64)
    conflict = _conflict(found) if len(found) == 2 else None
    for name, text in wrong.items():
        conflict = f"{name} unusable ({text}), the other was taken"
    try:
        unit = header.get_xyzt_units()[0]
    except (KeyError, ValueError):
        unit = "unknown"
    scale = _UNITS[unit]
    return np.diag([scale, scale, scale, 1.0]) @ next(iter(found.values())), conflict


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    """The qform, its quaternion brought back to a rotation where rounding has made it a little too long."""
    vector = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    length = float(np.linalg.norm(vector))
    if 1.0 < length <= _UNIT_QUATERNION:
        header = header.copy()
        for axis, value in zip("bcd", vector / length * (1 - 1e-7), strict=True):
            header[f"quatern_{axis}"] = value
    return header.get_qform()


def _conflict(places: dict[str, np.ndarray]) -> str | None:
    """Where sform and qform place the voxels differently; None where they agree."""
    axes = {name: "".join(nib.aff2axcodes(place)) for name, place in places.items()}
    spacing = {name: np.linalg.norm(place[:3, :3], axis=0) for name, place in places.items()}
    if len(set(axes.values())) == 1 and np.allclose(spacing["sform"], spacing["qform"], rtol=0.01):
        return None
    return (
        ", ".join(
            f"{name} {axes[name]} of {' x '.join(f'{v:g}' for v in np.round(spacing[name], 4))} mm"
            for name in places
        )
        + "; the sform was taken"
    )


def _facts(header: nib.Nifti1Header) -> dict[str, str]:
    text = bytes(header["descrip"]).split(b"\0")[0].decode("ascii", "replace")
    return {"description": text} if text else {}
