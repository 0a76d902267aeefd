"""Whether results can be written: asked before hours of work, not after."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ctflow.errors import CTFlowError


def check_writable(folder: Path | str) -> None:
    """Make sure that a folder, or the first one above it that exists, can be written to; leaves nothing.

    Raises:
        CTFlowError: It cannot; says why in the system's words.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    probe = there / f".writable-{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        raise CTFlowError(
            f"{folder} cannot be written to: {error.strerror or error} ({there})",
            "a folder to write results to",
            "give another output, or make room",
        ) from None
