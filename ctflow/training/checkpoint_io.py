"""Writing of Lightning checkpoints (under a temporary name, whole or not at all), and reading."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ctflow.checkpoint.files import describe_stranger
from ctflow.errors import ConfigError
from ctflow.training.base import COUNTERS_KEY

PARTIAL = ".partial"
NEEDED = ("state_dict", "hyper_parameters", "loops", "optimizer_states", COUNTERS_KEY)
"""Keys of every checkpoint of a training."""


class BesideTarget(TorchCheckpointIO):
    """Writes to a temporary name in the target's folder and renames.

    Lightning's own way leads through ``$TMPDIR``, which is small on many clusters.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write whole or not at all.

        Raises:
            OSError: A full disk, for one; the target is then what it was.
        """
        # Through memory: torch's own writer ends the process where a disk is full.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        target = Path(path)
        partial = target.with_name(target.name + PARTIAL)
        try:
            with partial.open("wb") as stream:
                stream.write(buffer.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(target)) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training's checkpoint, its tensors left on disk until they are used; nothing in it is executed.

    Raises:
        ConfigError: It is cut, empty, or no checkpoint of a training here.
    """
    expected = "a checkpoint that a training of this program wrote"
    action = "give resume=PATH of a whole one, or start anew with resume=none or another name=…"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if zipfile.is_zipfile(path):
            damaged = zipfile.ZipFile(path).testzip()  # torch reads on over a wrong checksum
            if damaged:
                raise ValueError(f"checksum of {damaged}")
    except Exception as error:  # what the unpickler raises on a stranger's file is anything
        kind = f"is cut or damaged, or no file of plain values ({type(error).__name__})"
        what = describe_stranger(path) or kind
        raise ConfigError(f"{path} {what}", expected, action) from None
    missing = [key for key in NEEDED if not isinstance(content, dict) or not content.get(key)]
    if missing:
        raise ConfigError(f"{path} is another program's: it lacks {', '.join(missing)}", expected, action)
    return content
