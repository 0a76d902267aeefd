"""How the C library hands out the buffers of long runs on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's ``malloc.h``."""
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))


def keep_freed_buffers() -> bool:
    """Keep freed buffers in this process instead of returning them to the kernel after every operation.

    glibc maps every buffer above 32 MB anew, and the kernel clears its pages on first touch: that takes as
    long as the convolutions of the embedded backbones themselves. The values computed do not change.

    Returns:
        Whether the C library took the settings; false where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # musl exports no mallopt; glibc answers 1 where it accepts a setting.
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in SETTINGS)
