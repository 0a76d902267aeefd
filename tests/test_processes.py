"""Freed buffers stay in the process."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAULTS = """
import resource, sys
import torch
from ctflow.processes import keep_freed_buffers
if sys.argv[1] == "kept":
    assert keep_freed_buffers()
for _ in range(20):
    torch.ones(16_000_000).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_buffers_are_used_again() -> None:
    """Twenty buffers of 64 MB one after the other: pages are touched once instead of twenty times."""
    given, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, mode], check=True, capture_output=True).stdout)
        for mode in ("given back", "kept")
    )
    # Imports fault as well, more or fewer from run to run; each buffer is 15,625 pages of 4 KiB.
    assert given - kept > 10 * 15_625


STAGE = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(0)))
(folder / "pid.partial").write_text(str(os.getpid()))
(folder / "pid.partial").rename(folder / "pid")
time.sleep(60)
"""
PARENT = """
import sys
from ctflow.processes import run_module
run_module("stage", sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_command_takes_what_it_runs_along(tmp_path: Path) -> None:
    """SIGTERM to the parent alone: what it runs saves and ends with 0, and the parent goes no further."""
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}
    )
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == -signal.SIGTERM and (tmp_path / "saved").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
