"""Library, queue and vendored files, without a server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from ctflow.app.facts import findings_of
from ctflow.app.jobs import Job, Queue
from ctflow.app.store import GENERATED, WHOLE, Library, sweep
from ctflow.config.app import AppConfig
from ctflow.errors import CTFlowError
from ctflow.files import file_sha256
from ctflow.generation import Cancelled
from ctflow.types import HUVolume

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""dist/niivue.umd.js of @niivue/niivue 0.69.0."""


def test_the_viewer_is_the_published_one_with_its_licence(repo_root):
    static = repo_root / "ctflow" / "app" / "static"
    assert file_sha256(static / "niivue.umd.js") == NIIVUE
    assert (static / "niivue.umd.js").stat().st_size <= 2.5e6
    licence = (static / "niivue.LICENSE.txt").read_text("utf-8")
    assert "BSD 2-Clause" in licence and "Copyright (c) 2021, Niivue" in licence and "0.69.0" in licence


def test_slices_are_kept_in_order_and_rounded():
    library = Library(2**20)
    try:
        entry = library.add(GENERATED, "a", (4.0, 2.0, 2.0), 8, 16)
        first, second = np.full((3, 8, 8), -1000.4), np.full((2, 8, 8), 40_000.0)
        library.append(entry.id, first)
        library.append(entry.id, second)
        found = library.voxels(entry.id)
        assert found.shape == (5, 8, 8) and found[0, 0, 0] == -1000 and found[4, 7, 7] == 32767
        assert library.volume(entry.id).spacing == (4.0, 2.0, 2.0)
        with pytest.raises(CTFlowError, match="growing"):
            library.remove(entry.id)
        entry.state = WHOLE
        library.remove(entry.id)
        assert list(library.folder.iterdir()) == []
    finally:
        library.close()
    assert not library.folder.exists()


def test_the_library_has_an_end():
    config = AppConfig(library_gb=2 * 8 * 8 * 20 / 2**30)
    library = Library(config.library_gb * 2**30)
    try:
        entry = library.add(GENERATED, "a", (4.0, 2.0, 2.0), 8, 16)
        library.append(entry.id, np.zeros((16, 8, 8)))
        with pytest.raises(CTFlowError, match="library_gb"):
            library.append(entry.id, np.zeros((16, 8, 8)))
        with pytest.raises(CTFlowError, match="library_gb"):
            library.add(GENERATED, "b", (4.0, 2.0, 2.0), 8, 16)
    finally:
        library.close()


def test_folders_of_killed_servers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f"ctflow-app-{os.getpid()}-abc", "ctflow-app-x-abc", "another-1-abc"]
    for name in [*kept, f"ctflow-app-{gone.pid}-abc"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "v1.hu").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x")
    (tmp_path / f"ctflow-app-{gone.pid}-link").symlink_to(outside)
    sweep()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*kept, "outside", f"ctflow-app-{gone.pid}-link"])
    assert (outside / "file").is_file()


def test_times_come_from_slices():
    job = Job("j1", "generate", "a", expected=60)
    assert job.snapshot()["rate"] is None and job.snapshot()["seconds_left"] is None
    job.began = time.monotonic() - 10.0
    job.arrive(20)
    told = job.snapshot()
    assert told["rate"] == pytest.approx(2.0, rel=0.02) and told["seconds_left"] == pytest.approx(
        20.0, rel=0.02
    )
    job.arrive(50)
    assert job.snapshot()["expected"] == 70  # longer than thought: the bar stays within its ends


def test_a_closed_queue_ends_its_thread():
    told = []
    queue = Queue(lambda: told.append(1))

    def endless(job: Job) -> None:
        while True:
            job.check()

    job = queue.submit("generate", "a", endless)
    queue.close()
    assert not queue._thread.is_alive() and job.ended.is_set() and told


def test_a_cancelled_job_measures_no_further():
    volume = HUVolume(np.full((16, 64, 64), -1000, np.float32), (4.0, 5.0, 5.0))
    job = Job("j1", "generate", "a")
    shown, told = findings_of("Right pleural effusion.", volume, job.check)
    assert shown["verdicts"] and told
    job.cancel()
    with pytest.raises(Cancelled):
        findings_of("Right pleural effusion.", volume, job.check)
