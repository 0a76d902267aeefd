"""Writing and reading where the file system has no locks, and where another process holds one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctflow.data import SliceRecord, SliceShards, SliceShardWriter
from ctflow.errors import ShardError
from ctflow.locks import LockHeld, LongLock, short_lock

HU = np.zeros((4, 32, 32), np.int16)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENODEV, errno.EIO])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre without ``-o flock``."""

    def refuse(stream: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_shards_are_written_and_read_without_locks(without_locks: None, tmp_path: Path) -> None:
    with SliceShardWriter(tmp_path, volumes_per_shard=1) as writer:
        for name in ("a", "b"):
            writer.append(SliceRecord(name, name, HU, (4.0, 2.0, 2.0), "report"))
        with pytest.raises(ShardError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            SliceShardWriter(tmp_path)
    assert len(SliceShards(tmp_path)) == 2
    assert not list(tmp_path.glob("*.owner")) and not list(tmp_path.glob(".*.owner"))


def test_a_killed_holder_is_recognised_without_locks(without_locks: None, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = tmp_path / "lock.owner"
    owner.write_text(f"{socket.gethostname()} {ended.pid}", encoding="utf-8")
    LongLock(tmp_path / "lock").release()
    owner.write_text("elsewhere 1", encoding="utf-8")
    with pytest.raises(LockHeld, match=r"process 1 on elsewhere; if it is gone, delete .*lock\.owner"):
        LongLock(tmp_path / "lock")
    os.utime(owner, (0, 0))
    with short_lock(tmp_path / "lock"):  # left by a kill a minute ago and more
        assert owner.is_file()


def test_a_lock_is_let_go(tmp_path: Path) -> None:
    first = LongLock(tmp_path / "lock")
    with pytest.raises(LockHeld):
        LongLock(tmp_path / "lock")
    first.release()
    LongLock(tmp_path / "lock").release()


def test_shards_are_opened_without_asking_for_a_lock(tmp_path: Path) -> None:
    """HDF5 itself locks files it reads, which fails where there are no locks."""
    with SliceShardWriter(tmp_path) as writer:
        writer.append(SliceRecord("a", "a", HU, (4.0, 2.0, 2.0), "report"))
    with (tmp_path / "shard-00000.h5").open("rb+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert SliceShards(tmp_path).hu(0).shape == (4, 32, 32)
