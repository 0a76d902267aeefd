"""Who may write: locks between processes, also on file systems that have none (Lustre, some NFS).

Where the file system knows ``flock``, the system lets go of a lock when its holder dies. Elsewhere a file
that only one process can create represents the lock and names its holder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_HELD = {errno.EWOULDBLOCK, errno.EACCES}
"""Said where another process holds the lock; every other error means that ``flock`` does not work here."""
_STALE_SECONDS = 60.0
"""A short lock is held for less than a second: an older file was left by a killed process."""


class LockHeld(Exception):
    """Another process holds the lock.

    Args:
        holder: Who, where it is known, and what to delete if it is gone.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class LongLock:
    """A lock held for as long as a process writes to a folder.

    Args:
        path: The lock's file; its folder exists.

    Raises:
        LockHeld: Another process holds it.
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._owner: Path | None = None
        self._stream: IO[str] = path.open("w", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            if error.errno in _HELD:
                raise LockHeld("") from None
            self._owner = _take_owner_file(path.with_name(path.name + ".owner"))

    def release(self) -> None:
        """Let go."""
        self._stream.close()
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
            self._owner = None


@contextmanager
def short_lock(path: Path) -> Iterator[None]:
    """Wait for a lock that everybody holds for an instant only.

    Args:
        path: The lock's file; its folder exists.
    """
    with path.open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            owner = path.with_name(path.name + ".owner")
            while not _created(owner):
                if _age(owner) > _STALE_SECONDS:
                    owner.unlink(missing_ok=True)
                time.sleep(0.02)
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)
            return
        yield


def _take_owner_file(owner: Path) -> Path:
    if _created(owner):
        return owner
    host, _, pid = owner.read_text(encoding="utf-8").partition(" ")
    if host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
        owner.unlink(missing_ok=True)  # its holder was killed
        return _take_owner_file(owner)
    raise LockHeld(f"process {pid or '?'} on {host or '?'}; if it is gone, delete {owner}")


def _created(owner: Path) -> bool:
    try:
        handle = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"{socket.gethostname()} {os.getpid()}")
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
