"""Files that are whole or absent, and their hashes: one helper each, for every floor."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_stranger(path: Path) -> str:
    """The kind of an unexpected file by its first bytes; an empty text if they do not show it.

    Args:
        path: The file; it may be missing.
    """
    if not path.is_file():
        return "does not exist"
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file itself (a download that asks for a login, for one)"
    if start.startswith((b"{", b"[")) and path.suffix != ".json":
        return "is a JSON text, perhaps a server's error message"
    return ""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its own name when the block ends without an error.

    A kill or a power cut leaves the old file, or none, and never half a file. Folders are made. The temporary
    name keeps the file's endings, since some writers go by them.

    Yields:
        The temporary path, to be written in the block.

    Raises:
        OSError: With the path that could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, temporary, str(temporary)):
            said = error.strerror or " ".join(str(error).split())  # libraries raise without a number
            raise OSError(error.errno or errno.EIO, said, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Write a folder under a temporary name; it takes its own name, and the old one's place, at the end.

    A kill leaves the old folder, or none, and never half a folder.

    Yields:
        The temporary folder, empty, to be filled in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    old = path.with_name(f".{os.getpid()}.old.{path.name}")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
