"""One file from anywhere, read in a process of its own: what the browser's server opens.

A stranger's file may be damaged, or made to harm: so it is read in a process that has limits and can be
killed, and only arrays of numbers come back.
"""

from __future__ import annotations

import json
import logging
import lzma
import resource
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctflow.config import Flag, parse_command, run_command
from ctflow.errors import CTFlowError, ScanError
from ctflow.types import HUVolume

log = logging.getLogger("ctflow.open_scan")

DESCRIPTION = """Read IN (NIfTI, NRRD, MetaImage, or a zip of one DICOM series) into the folder OUT:
scan.hu and model.hu, int16 HU with the patient's axes S,P,R and square slices, and scan.json, which tells
their shapes."""

MOST_FILES = 20_000
"""Files in a zip."""

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".dcm")
"""Endings of files that are opened, and ``.zip``."""

_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)
_PIECE = 2**20
_LIBRARIES_GB = 4.0
"""Address space that the libraries take before anything is read."""


@dataclass
class OpenConfig:
    """Keys of ``python -m data_prep.open_scan``.

    Attributes:
        side: Rows and columns of the model's slices.
        z_spacing: Millimetres between the model's slices.
        z_spacing_range: Least and greatest distance that the model takes; empty: ``z_spacing`` alone.
        memory_gb: Most memory that reading takes.
        unpacked_gb: Most that a zip may hold.
    """

    side: int = 128
    z_spacing: float = 4.0
    z_spacing_range: list[float] = field(default_factory=list)
    memory_gb: float = 6.0
    unpacked_gb: float = 4.0


FLAGS = [
    Flag("source", options={"type": Path, "metavar": "IN", "help": "the file"}),
    Flag("output", options={"type": Path, "metavar": "OUT", "help": "folder of the result, made here"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Read one file.

    Raises:
        CTFlowError: It is not a single CT in HU, or larger than allowed.
    """
    line = parse_command(OpenConfig, "python -m data_prep.open_scan", DESCRIPTION, FLAGS, argv)
    config, source, output = line.config, line.flags["source"], line.flags["output"]
    _limit_memory(config.memory_gb)
    output.mkdir(parents=True)
    read = source
    if zipfile.is_zipfile(source):
        read = output / "dicom"
        unpack(source, read, config.unpacked_gb * 2**30)
    from data_prep.convert import read_placed

    try:
        placed = read_placed(read, None, config.memory_gb)
    except CTFlowError as error:
        # Names and places of a server's files tell its user nothing.
        found = error.found.replace(str(read), "the file").replace(read.name, "the file")
        raise ScanError(found, error.expected) from error
    own = placed.volume
    low, high = config.z_spacing_range or (config.z_spacing, config.z_spacing)
    scan = squared(own, max(own.hu.shape[1:]), own.spacing[0])
    model = squared(own, config.side, min(max(own.spacing[0], low), high))
    told = {"doubts": list(placed.doubts), "description": placed.description, "synthetic": placed.synthetic}
    for name, volume in (("scan", scan), ("model", model)):
        volume.hu.astype("<i2").tofile(output / f"{name}.hu")
        told[name] = {"shape": list(volume.hu.shape), "spacing": list(volume.spacing)}
    (output / "scan.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def squared(volume: HUVolume, side: int, z_spacing: float) -> HUVolume:
    """A volume on square slices that show its whole field of view, HU rounded; equal grids stay as they are.

    Args:
        volume: S,P,R.
        side: Rows and columns of the result.
        z_spacing: Millimetres between its slices.
    """
    from data_prep.ct_rate.geometry import Grid, resample
    from data_prep.ct_rate.hounsfield import Rescale

    as_it_is = Rescale(1.0, 0.0, "stored")
    hu, spacing = resample(volume.hu, volume.spacing, as_it_is, Grid(side, z_spacing, None, None))
    return HUVolume(hu.astype(np.float32), spacing)


def unpack(source: Path, folder: Path, most_bytes: float) -> None:
    """Unpack a zip's files side by side under names of our own: none of its names becomes a path.

    Args:
        source: The zip.
        folder: Made here.
        most_bytes: Of all files together; counted while unpacking, whatever the zip says of itself.

    Raises:
        ScanError: Too many files, too many bytes, encrypted, or damaged.
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _is_side_file(m.filename)]
            if not members or len(members) > MOST_FILES:
                raise ScanError(f"a zip of {len(members)} files", f"1 to {MOST_FILES:,}, one DICOM series")
            left = most_bytes
            for number, member in enumerate(members):
                target = folder / f"{number:05d}{_ending_of(member.filename)}"
                left -= _unpack_one(archive, member, target, left)
    except _DAMAGE as error:
        raise ScanError(f"a zip that cannot be read: {error}", "a whole one, without a password") from error


def _unpack_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, most: float) -> int:
    """Write a file of a zip; returns its bytes."""
    written = 0
    with archive.open(member) as packed, target.open("xb") as out:
        while piece := packed.read(_PIECE):
            written += len(piece)
            if written > most:
                raise ScanError("a zip that unpacks to more than allowed", "less than unpacked_gb")
            out.write(piece)
    return written


def _is_side_file(name: str) -> bool:
    """Files that file managers add."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "__MACOSX" in name or last.startswith(".") or last.lower() in ("thumbs.db", "desktop.ini")


def _ending_of(name: str) -> str:
    """The ending that readers go by; a DICOM file may have any or none."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), ".dcm")


def _limit_memory(memory_gb: float) -> None:
    """Let the system refuse what a file would have beyond what it is allowed."""
    most = int((memory_gb * 1.5 + _LIBRARIES_GB) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    run_command(main)
