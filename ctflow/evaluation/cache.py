"""Pooled features per case on disk: all statistics derive from them; interrupted evaluations resume there."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 5


@dataclass
class CaseFeatures:
    """What is kept of one volume in one setting.

    Attributes:
        case_id: The case.
        arrays: By key, see ``ctflow.evaluation.features``.
        info: JSON values: length, requested length, stop, seconds, measurement …
    """

    case_id: str
    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any] = field(default_factory=dict)


class FeatureCache:
    """A folder of one ``.npz`` file per volume, named by what it depends on.

    Args:
        folder: Made when the first file is written.
        identity: Everything all files depend on (JSON values): checkpoint, rollout, backbones, resolutions …
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._identity = json.dumps({"format": FORMAT, **identity}, sort_keys=True)

    def path(self, *names: str) -> Path:
        """File of a volume, e.g. ``path("full-body", case.case_id, case.digest)``."""
        text = json.dumps([self._identity, *names])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def load(self, *names: str) -> CaseFeatures | None:
        """What is stored, or None; a torn or damaged file counts as absent and is made again."""
        try:
            with np.load(self.path(*names), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            header = json.loads(arrays.pop("header").tobytes())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return CaseFeatures(header["case_id"], arrays, header["info"])

    def store(self, features: CaseFeatures, *names: str) -> None:
        """Write under a temporary name and rename, so that a kill leaves no half file."""
        path = self.path(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"case_id": features.case_id, "info": features.info}).encode()
        temporary = path.with_suffix(f".{os.getpid()}.partial")
        with temporary.open("wb") as file:
            arrays: dict[str, Any] = {"header": np.frombuffer(header, np.uint8), **features.arrays}
            np.savez(file, **arrays)
        temporary.replace(path)
