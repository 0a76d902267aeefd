"""The library: volumes that grow, are looked at and taken away, in a temporary folder of this process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.errors import CTFlowError
from ctflow.types import HUVolume

GENERATED, OPENED, RECONSTRUCTED, CONTINUED = "generated", "opened", "reconstruction", "continued"
"""Kinds of volumes."""

GROWING, WHOLE, CANCELLED, FAILED = "growing", "whole", "cancelled", "failed"
"""States of a volume; all but the first are final."""

MOST_VOLUMES = 200
_FOLDER = "ctflow-app-"
_INT16 = np.iinfo(np.int16)


@dataclass
class Entry:
    """One volume of the library.

    Attributes:
        id: Names it in addresses and files; made here.
        kind: See ``GENERATED`` and its neighbours.
        title: A few words for the list.
        spacing: Millimetres between slices, rows and columns.
        side: Rows and columns.
        expected: Slices it is likely to get.
        report: Text it was generated from; empty where there is none.
        seed: Of the noise; None where there is none.
        source: The volume it was made from.
        kept: First slices that were taken over from ``source``.
        pair: The volume it is to be compared with.
        grid: The same scan on the model's grid; empty where it is on that itself.
        done: Slices that are there.
        state: See ``GROWING`` and its neighbours.
        message: Why it ended.
        record: Provenance, for the JSON.
        facts: What was measured in it.
        created: Seconds since the epoch.
    """

    id: str
    kind: str
    title: str
    spacing: tuple[float, float, float]
    side: int
    expected: int
    report: str = ""
    seed: int | None = None
    source: str = ""
    kept: int = 0
    pair: str = ""
    grid: str = ""
    done: int = 0
    state: str = GROWING
    message: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The volume as the list shows it, as JSON values."""
        left_out = ("record", "facts")
        return {name: value for name, value in vars(self).items() if name not in left_out}


class Library:
    """Volumes as int16 HU, a file each, appended to as slices arrive. Safe for threads.

    Args:
        room: Most bytes of all files together.
    """

    def __init__(self, room: float) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        self.room = room
        self._entries: dict[str, Entry] = {}
        self._made = 0
        self._lock = threading.RLock()

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._entries

    def __getitem__(self, volume_id: str) -> Entry:
        entry = self._entries.get(volume_id)
        if entry is None:
            raise CTFlowError("no such volume", "one of the library", "it may have been removed")
        return entry

    def list(self) -> list[Entry]:
        """All volumes, oldest first."""
        with self._lock:
            return list(self._entries.values())

    def add(
        self,
        kind: str,
        title: str,
        spacing: tuple[float, float, float],
        side: int,
        expected: int,
        **more: Any,
    ) -> Entry:
        """A new volume without slices; arguments as in ``Entry``.

        Raises:
            CTFlowError: There is no room for it.
        """
        with self._lock:
            self._check_room(2 * expected * side * side)
            self._made += 1
            entry = Entry(f"v{self._made}", kind, title, spacing, side, expected, **more)
            self._path(entry.id).touch()
            self._entries[entry.id] = entry
            return entry

    def append(self, volume_id: str, hu: NDArray[np.floating] | NDArray[np.integer]) -> None:
        """Add slices ``[n, side, side]`` in HU at a volume's upper end.

        Raises:
            CTFlowError: The volume is gone, or there is no room.
        """
        with self._lock:
            entry = self[volume_id]
            self._check_room(2 * hu.size)
            with self._path(volume_id).open("ab") as stream:
                stream.write(np.clip(np.rint(hu), _INT16.min, _INT16.max).astype(np.int16).tobytes())
            entry.done += len(hu)
            entry.expected = max(entry.expected, entry.done)

    def voxels(self, volume_id: str) -> NDArray[np.int16]:
        """The slices so far ``[done, side, side]``, read from the file as they are used."""
        entry = self[volume_id]
        shape = (entry.done, entry.side, entry.side)
        if not entry.done:
            return np.zeros(shape, np.int16)
        return np.memmap(self._path(volume_id), np.int16, "r", shape=shape)

    def volume(self, volume_id: str) -> HUVolume:
        """The volume so far, in memory.

        Raises:
            CTFlowError: It has no slice yet.
        """
        if not self[volume_id].done:
            raise CTFlowError("the volume has no slice yet", "at least one", "wait for the first block")
        return HUVolume(self.voxels(volume_id).astype(np.float32), self[volume_id].spacing)

    def remove(self, volume_id: str) -> None:
        """Take a volume out, with its file.

        Raises:
            CTFlowError: It is still growing.
        """
        with self._lock:
            if self[volume_id].state == GROWING:
                raise CTFlowError("the volume is still growing", "a finished one", "cancel it first")
            del self._entries[volume_id]
            self._path(volume_id).unlink(missing_ok=True)

    def temporary(self, ending: str) -> Path:
        """A name for a new file with this ending, which is removed with the library at the latest."""
        with self._lock:
            self._made += 1
            return self.folder / f"t{self._made}{ending}"

    def close(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, volume_id: str) -> Path:
        return self.folder / f"{volume_id}.hu"

    def _check_room(self, more: int) -> None:
        used = sum(2 * e.done * e.side * e.side for e in self._entries.values())
        if used + more > self.room or len(self._entries) >= MOST_VOLUMES:
            raise CTFlowError(
                f"the library holds {len(self._entries)} volumes of {used / 2**30:.1f} GiB",
                f"at most {MOST_VOLUMES} volumes and {self.room / 2**30:.1f} GiB",
                "remove some, or start the app with a larger library_gb",
            )


def sweep() -> None:
    """Remove the folders of this user's servers that were killed and could not do it themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        owner = re.fullmatch(rf"{_FOLDER}(\d+)-\w+", folder.name)
        with contextlib.suppress(OSError):
            mine = folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
            if owner and mine and not _is_running(int(owner.group(1))):
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
