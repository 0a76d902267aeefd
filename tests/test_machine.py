"""Machines unlike a desk: users without a name, threads beside busy processes, folders closed to writing."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import pwd
from pathlib import Path

import pytest

import ctflow
from ctflow import processes
from ctflow.errors import CTFlowError
from ctflow.outputs import check_writable

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def test_a_user_without_an_entry_in_passwd_can_import_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers: ``getpass.getuser`` is asked when monai is imported."""
    import getpass

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is set back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    importlib.reload(ctflow)
    assert getpass.getuser() == f"uid{os.getuid()}"


@pytest.mark.parametrize(("load", "count", "warned"), [(0.1, 2, False), (1.9, 2, True), (1.9, 1, False)])
def test_threads_beside_busy_processes_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, load: float, count: int, warned: bool
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with caplog.at_level(logging.INFO):
        processes.log_threads()
    assert f"threads: {count} on 2 cores" in caplog.text
    assert ("OMP_NUM_THREADS=1 is the better choice" in caplog.text) == warned


def test_a_folder_is_asked_whether_it_can_be_written_to(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CTFlowError, match="Not a directory"):
        check_writable(tmp_path / "file")
    with pytest.raises(CTFlowError, match="Not a directory"):
        check_writable(tmp_path / "file" / "below")


def test_a_disk_that_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CTFlowError, match="cannot be written to: Read-only file system"):
        check_writable(tmp_path / "a")
