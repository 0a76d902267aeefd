"""The manifest of a shard folder: JSON lines that name every complete shard and its cases."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctflow.data.records import CaseEntry, ShardEntry
from ctflow.errors import ShardError
from ctflow.files import write_text
from ctflow.locks import short_lock
from ctflow.types import Acquisition

MANIFEST = "manifest.jsonl"
_LOCK = ".manifest.lock"


def read_manifest(folder: Path | str) -> list[ShardEntry]:
    """The complete shards of a folder, ordered by file name; none without a manifest.

    Raises:
        ShardError: A line is not a shard entry, or a case is listed twice.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{path}, line {number}, is not a shard entry: {error}",
                "one JSON object per complete shard",
                "delete that line and run the preparation again",
            ) from error
    seen: dict[str, str] = {}
    for entry in entries:
        for case in entry.cases:
            if case.case_id in seen:
                raise ShardError(
                    f"{path} lists case {case.case_id!r} in {seen[case.case_id]} and in {entry.file}",
                    "every case once",
                    "delete one of the two shards and its line",
                )
            seen[case.case_id] = entry.file
    return entries


def add_to_manifest(folder: Path, entry: ShardEntry) -> None:
    """Add a complete shard: the whole manifest is rewritten under a lock and renamed, so it is never torn."""
    _change(folder, {entry.file: json.dumps(asdict(entry), ensure_ascii=False)})


def remove_from_manifest(folder: Path, files: Iterable[str]) -> None:
    """Take shards off the list; their files are the caller's to delete afterwards."""
    _change(folder, dict.fromkeys(files, ""))


def _change(folder: Path, changed: dict[str, str]) -> None:
    """Replace lines by file name, or drop them; the others are carried over as they are."""
    with short_lock(folder / _LOCK):
        path = folder / MANIFEST
        texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = {json.loads(text)["file"]: text for text in texts} | changed
        kept = [lines[name] for name in sorted(lines) if lines[name]]
        write_text(path, "".join(f"{line}\n" for line in kept))


def shards_to_encode(slices: Path | str, latents: Path | str) -> list[str]:
    """Slice shards without latents, by file name; empty where a set is encoded as a whole."""
    done = {entry.file for entry in read_manifest(latents)}
    return [entry.file for entry in read_manifest(slices) if entry.file not in done]


def _entry(line: dict[str, Any]) -> ShardEntry:
    cases = [
        CaseEntry(
            **{
                **case,
                "spacing": tuple(case["spacing"]),
                "size": tuple(case["size"]),
                "acquisition": Acquisition(**case.get("acquisition", {})),
            }
        )
        for case in line["cases"]
    ]
    return ShardEntry(**{**line, "cases": tuple(cases)})
