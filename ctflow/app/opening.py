"""Files from the user's disk: read in a process of their own, through the readers of the ingest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ctflow.app.jobs import Job
from ctflow.app.store import OPENED, WHOLE, Entry, Library
from ctflow.config.app import AppConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import CTFlowError

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".zip")
"""Endings of files that are opened."""

_READER = "data_prep.open_scan"
"""The command that reads; started by its name, as nothing here imports data_prep."""

_TITLE_LETTERS = 80
_SLICES = 16


def ending_of(name: str) -> str:
    """Which of ``ENDINGS`` a user's file has; nothing else of its name becomes part of a path.

    Raises:
        CTFlowError: None of them.
    """
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return ending
    raise CTFlowError(
        "a file whose name has another ending", ", ".join(ENDINGS), "zip a folder of DICOM files first"
    )


def title_of(name: str) -> str:
    """A file's name as a title: its last part, printable, not too long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter if letter.isprintable() else "?" for letter in last)[:_TITLE_LETTERS]


def read_file(job: Job, path: Path, output: Path, system: SystemConfig, config: AppConfig) -> dict[str, Any]:
    """Let another process read a file, and end it where the job is to end or it takes too long.

    Args:
        job: Of the queue.
        path: The file.
        output: Folder of the result, not yet there.
        system: Of the model, whose grid the scan is brought to.
        config: Limits.

    Returns:
        What ``data_prep.open_scan`` tells in its ``scan.json``.

    Raises:
        CTFlowError: It cannot be read, in the reader's words.
        Cancelled: The job is to end.
    """
    keys = {
        "side": system.image_size,
        "z_spacing": system.z_spacing_mm,
        "z_spacing_range": json.dumps(list(system.z_spacing_range)),
        "memory_gb": config.memory_gb,
        "unpacked_gb": config.upload_gb * 4,
    }
    command = [sys.executable, "-m", _READER, str(path), str(output), *(f"{k}={v}" for k, v in keys.items())]
    until = time.monotonic() + 60 * config.open_minutes
    with (output.with_suffix(".log")).open("w+b") as told:
        reader = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
        )
        try:
            while reader.poll() is None:
                job.check()
                if time.monotonic() > until:
                    raise CTFlowError("reading takes too long", f"at most {config.open_minutes:g} minutes")
                time.sleep(0.05)
        finally:
            if reader.poll() is None:
                os.killpg(reader.pid, signal.SIGKILL)
                reader.wait()
        told.seek(0)
        text = told.read().decode("utf-8", "replace")
    if reader.returncode:
        said = text.rpartition("error: ")[2].strip() or f"the reader ended with {reader.returncode}"
        raise CTFlowError(said if "error: " in text else "the file cannot be read")
    return dict(json.loads((output / "scan.json").read_text(encoding="utf-8")))


def add_scan(
    job: Job, library: Library, title: str, output: Path, told: dict[str, Any], entries: list[Entry]
) -> None:
    """Put what was read into the library: the scan, and the same on the model's grid where that is another.

    Args:
        job: Of the queue.
        library: Takes it.
        title: The scan's.
        output: Folder of what was read.
        told: As from ``read_file``.
        entries: Gets every new volume as soon as it is begun.
    """
    names = ["scan"] if told["scan"] == told["model"] else ["scan", "model"]
    job.expected = sum(told[name]["shape"][0] for name in names)
    for name in names:
        slices, side, _ = told[name]["shape"]
        z, y, x = told[name]["spacing"]
        shown = title if name == "scan" else f"{title}, on the model's grid"
        entry = library.add(OPENED, shown, (z, y, x), side, slices)
        entries.append(entry)
        job.volumes = [one.id for one in entries[:1]]
        voxels = np.memmap(output / f"{name}.hu", "<i2", "r", shape=(slices, side, side))
        for start in range(0, slices, _SLICES):
            job.check()
            library.append(entry.id, voxels[start : start + _SLICES])
            job.arrive(len(voxels[start : start + _SLICES]))
        entry.record = {
            "file": title,
            "slices": slices,
            "spacing_mm": [z, y, x],
            "doubts": told["doubts"],
            "description": told["description"],
        }
        entry.message = "; ".join(told["doubts"])
        entry.state = WHOLE
    if len(entries) == 2:
        entries[0].grid, entries[1].source = entries[1].id, entries[0].id
