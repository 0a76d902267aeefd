"""Freed buffers stay in the process."""

import platform
import subprocess
import sys

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
