"""Weight files of backbones: present, and the ones they claim to be."""

from __future__ import annotations

from pathlib import Path

from ctflow.errors import WeightsError
from ctflow.files import file_sha256


def checked_file(path: Path, sha256: str, what: str, required: bool = False) -> str:
    """The file's SHA-256, after comparing it with the expected one.

    Args:
        path: The file.
        sha256: Expected hash in hex; empty: any, unless ``required``.
        what: What the file is, for the error.
        required: Whether an expected hash must be given (files that hold code).

    Raises:
        WeightsError: No file there, no hash where one is required, or another hash.
    """
    if not path.is_file():
        raise WeightsError(f"no file at {path}", what, "give the path of a local copy; nothing is downloaded")
    found = file_sha256(path)
    if required and not sha256:
        raise WeightsError(
            f"{path} ({what}) holds code and no sha256 was given",
            "the hash of the file you trust, beside its path",
            f"this file's is {found}",
        )
    if sha256 and sha256.lower() != found:
        raise WeightsError(f"{path} has sha256 {found}", f"{what} with sha256 {sha256.lower()}")
    return found
