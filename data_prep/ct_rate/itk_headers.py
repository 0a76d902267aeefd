"""NRRD and MetaImage headers: where the voxels lie, packed how, and whether they are all there and whole.

The libraries behind SimpleITK complain on stderr about a damaged compressed stream and return their buffer
all the same. So a compressed stream is read to its end here first: its checksum, its length, and the size
that the header tells for it.
"""

from __future__ import annotations

import bz2
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.ct_rate.reasons import ScanRefused, printable

_HEAD_BYTES = 2**20
"""Most bytes of a header."""
_CHUNK = 2**20
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
"""Bytes per voxel as MetaIO writes them."""
_NRRD_BYTES = (
    (re.compile(r"^(signed char|int8(_t)?|u(nsigned )?char|uint8(_t)?)$"), 1),
    (re.compile(r"^((signed |unsigned |u)?short( int)?|u?int16(_t)?)$"), 2),
    (re.compile(r"^((signed |unsigned |u)?int|u?int32(_t)?|float)$"), 4),
    (re.compile(r"^((signed |unsigned |u)?(long long( int)?|longlong)|u?int64(_t)?|double)$"), 8),
)
_NRRD_SHORT = ("ras", "las", "lps", "rast", "last", "lpst")


@dataclass(frozen=True)
class VoxelPlace:
    """Where a header says that its voxels lie.

    Attributes:
        fields: The header, keys in lower case.
        files: Files of the voxels, in order; the header's own where they follow it.
        offset: Byte of the first file at which they begin.
        packing: ``raw``, ``zlib`` (with or without gzip's header), ``bzip2`` or ``text``.
        told: Bytes of the compressed stream as the header tells them; None where it does not.
        skipped_lines: Lines of the file before the voxels (NRRD).
        skipped_bytes: Bytes before the voxels once they are unpacked (NRRD).
        need: Bytes of the voxels once they are unpacked; None where the type is unknown.
    """

    fields: dict[str, str]
    files: tuple[Path, ...]
    offset: int
    packing: str
    told: int | None
    skipped_lines: int
    skipped_bytes: int
    need: int | None


def read_place(path: Path) -> VoxelPlace:
    """Read a header.

    Args:
        path: A NRRD or MetaImage file, or the header of a pair.

    Raises:
        ScanRefused: It ends before it says where the voxels lie.
        OSError: The system does not let it be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    return _nrrd(path, head) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta(path, head)


def check_files(place: VoxelPlace, path: Path, root: Path) -> None:
    """Whether the files that a header points to are there, are files, and lie in the source.

    Args:
        place: From ``read_place``.
        path: The header.
        root: Folder that all files must lie under.

    Raises:
        ScanRefused: ``outside_source``, ``truncated`` or ``unreadable``.
        OSError: The system does not let a file be looked at.
    """
    for file in place.files:
        if not _is_under(file, root):
            raise ScanRefused("outside_source", f"the header names {printable(str(file))} for its voxels")
        if file != path and not file.exists():
            raise ScanRefused("truncated", f"{printable(file.name)} with the voxels is not beside the header")
        if not stat.S_ISREG(file.stat().st_mode):
            raise ScanRefused("unreadable", f"{printable(file.name)} is a pipe, socket, device or folder")


def check_voxels(place: VoxelPlace) -> int | None:
    """Read what a header points to, as far as needed to know that it is whole.

    Args:
        place: From ``read_place``.

    Returns:
        CRC-32 of the voxels' bytes, where they are compressed.

    Raises:
        ScanRefused: ``truncated`` or ``damaged``; compressed voxels in several files are ``unreadable``.
        OSError: The system does not let a file be read.
    """
    if place.packing in ("raw", "text"):
        size = sum(file.stat().st_size for file in place.files) - place.offset
        if place.packing == "raw" and place.need is not None and size < place.need:
            raise ScanRefused("truncated", f"{size:,} of {place.need:,} bytes of voxels are there")
        return None
    if len(place.files) != 1:
        raise ScanRefused("unreadable", "compressed voxels in several files are not read here: unpack them")
    with place.files[0].open("rb") as stream:
        stream.seek(place.offset)
        for _ in range(place.skipped_lines):
            stream.readline()
        return _check_stream(stream, place)


def has_patient_space(fields: dict[str, str]) -> bool:
    """Whether a NRRD's axes are tied to the patient; ``scanner-xyz`` and ``space dimension: 3`` are not."""
    space = fields.get("space", "").lower()
    return space in _NRRD_SHORT or {*space.split("-")} >= {"superior"}


def _check_stream(stream: BinaryIO, place: VoxelPlace) -> int:
    counts = {"read": 0, "unpacked": 0}
    checksum = 0
    unpack = _bzip2 if place.packing == "bzip2" else _zlib
    try:
        for piece in unpack(stream, counts):
            checksum = zlib.crc32(piece[max(0, place.skipped_bytes - counts["unpacked"]) :], checksum)
            counts["unpacked"] += len(piece)
            if place.need is not None and counts["unpacked"] > place.need:
                raise ScanRefused(
                    "damaged", f"more than the {place.need:,} bytes of voxels that the header tells"
                )
    except (zlib.error, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if isinstance(error, EOFError):
            detail = f"the compressed voxels end early, after {counts['unpacked']:,} bytes"
            raise ScanRefused("truncated", detail) from error
        raise ScanRefused("damaged", f"the compressed voxels are damaged ({error})") from error
    if place.need is not None and counts["unpacked"] < place.need:
        detail = f"the compressed voxels hold {counts['unpacked']:,} of {place.need:,} bytes"
        raise ScanRefused("truncated", detail)
    if place.told is not None and place.told != counts["read"]:
        raise ScanRefused(
            "damaged",
            f"CompressedDataSize is {place.told:,}, the compressed voxels have {counts['read']:,} bytes",
        )
    return checksum


def _zlib(stream: BinaryIO, counts: dict[str, int]) -> Iterator[bytes]:
    """Unpacked pieces of a zlib stream or of gzip members; checksums are zlib's own affair."""
    pending = b""
    while True:
        unpacker = zlib.decompressobj(47)
        while not unpacker.eof:
            block = pending or stream.read(_CHUNK)
            pending = b""
            if not block and not (rest := unpacker.decompress(b"", _CHUNK)):
                raise EOFError
            if not block:
                yield rest
            counts["read"] += len(block)
            while block and not unpacker.eof:
                yield unpacker.decompress(block, _CHUNK)
                block = unpacker.unconsumed_tail
        counts["read"] -= len(unpacker.unused_data)
        pending = unpacker.unused_data or stream.read(_CHUNK)
        if not pending.startswith(b"\x1f\x8b"):  # no further member
            return


def _bzip2(stream: BinaryIO, counts: dict[str, int]) -> Iterator[bytes]:
    with bz2.BZ2File(stream) as unpacked:
        while block := unpacked.read(_CHUNK):
            yield block


def _is_under(file: Path, root: Path) -> bool:
    """By the words of the path: links inside the source are the user's own."""
    return Path(os.path.normpath(file.absolute())).is_relative_to(os.path.normpath(root.absolute()))


def _meta(path: Path, head: bytes) -> VoxelPlace:
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*)\r?(?:\n|$)", head, re.MULTILINE)
    if found is None or not found.group(1).strip():
        raise ScanRefused("unreadable", "the header ends without ElementDataFile")
    lines = head[: found.start()].decode("latin-1").splitlines()
    fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition("=") for line in lines)}
    name = os.fsdecode(found.group(1).strip())
    offset = 0
    files: tuple[Path, ...]
    if name.upper() == "LOCAL":
        files, offset = (path,), found.end()
    elif name.split()[0].upper() == "LIST":
        rest = head[found.end() :].splitlines()
        files = tuple(path.parent / os.fsdecode(line.strip()) for line in rest if line.strip())
    elif "%" in name:
        files = _numbered(path.parent, name.split())
    else:
        files = (path.parent / name,)
    packed = fields.get("compresseddata", "").lower() in ("true", "1", "t")
    told = fields.get("compresseddatasize", "")
    skip = fields.get("headersize", "0")
    if not packed and skip.isdigit():
        offset += int(skip)
    kind = fields.get("elementtype", "").upper()
    return VoxelPlace(
        fields=fields,
        files=files,
        offset=offset,
        packing="zlib"
        if packed
        else "raw"
        if fields.get("binarydata", "True").lower() != "false"
        else "text",
        told=int(told) if packed and told.isdigit() and int(told) else None,
        skipped_lines=0,
        skipped_bytes=0,
        need=_bytes(fields.get("dimsize", ""), _META_BYTES.get(kind)),
    )


def _nrrd(path: Path, head: bytes) -> VoxelPlace:
    end = re.search(rb"\r?\n\r?\n", head)
    text = (head[: end.start()] if end else head).decode("utf-8", "replace")
    fields: dict[str, str] = {}
    names: list[str] = []
    listing = False
    for line in text.splitlines()[1:]:
        if listing:
            names.append(line.strip())
        elif not line.startswith("#") and ":=" not in line:
            key, _, value = line.partition(":")
            fields[key.strip().lower()] = value.strip()
            listing = key.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]
    detached = fields.get("data file", fields.get("datafile", ""))
    if detached and not listing:
        parts = detached.split()
        names = [detached]
        files = _numbered(path.parent, parts) if "%" in parts[0] else (path.parent / detached,)
    else:
        files = tuple(path.parent / name for name in names if name)
    if not files:
        if end is None:
            raise ScanRefused("truncated", "the header has no end")
        files = (path,)
    encoding = fields.get("encoding", "").lower()
    packing = {"gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}.get(encoding, encoding)
    kind = fields.get("type", "").lower()
    size = next((size for pattern, size in _NRRD_BYTES if pattern.match(kind)), None)
    need = _bytes(fields.get("sizes", ""), size)
    lines, skip = (fields.get(f"{unit} skip", fields.get(f"{unit}skip", "0")) for unit in ("line", "byte"))
    skipped = int(skip) if skip.isdigit() else 0
    if need is not None and packing != "raw":
        need += skipped  # bytes are skipped once unpacked
    return VoxelPlace(
        fields=fields,
        files=files,
        offset=(end.end() if end and files == (path,) else 0) + (skipped if packing == "raw" else 0),
        packing=packing if packing in ("raw", "zlib", "bzip2") else "text",
        told=None,
        skipped_lines=int(lines) if lines.isdigit() else 0,
        skipped_bytes=0 if packing == "raw" else skipped,
        need=need,
    )


def _numbered(folder: Path, words: list[str]) -> tuple[Path, ...]:
    """Files of a pattern like ``slice%03d.raw 1 40 1``."""
    try:
        low, high, step = (int(word) for word in [*words[1:4], "1"][:3])
        return tuple(folder / (words[0] % k) for k in range(low, high + 1, step))
    except (ValueError, TypeError) as error:
        raise ScanRefused("unreadable", f"voxel files {printable(' '.join(words))!r}: {error}") from error


def _bytes(sizes: str, each: int | None) -> int | None:
    counts = [int(word) for word in sizes.split() if word.isdigit()]
    return math.prod(counts) * each if counts and each else None
