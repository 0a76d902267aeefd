"""Missing parts of a folder of shards: parts of its preparation or encoding that never ran or ended."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ctflow.data.manifest import read_manifest
from ctflow.data.writer import shard_index
from ctflow.parts import told_by_part
from data_prep.ct_rate.journal import FOLDER, closed_units, undecided
from data_prep.ct_rate.units import UNITS, Units

ENCODING = ".encoding"
"""Folder, inside of a folder of latent shards, that says which shards there shall be."""
SHARDS = "shards.json"


def unfinished(folder: Path) -> list[str]:
    """The work left, a line each; empty if all is done, or if the whole is unknown.

    Args:
        folder: Of slice shards (or the output of ``data_prep.ct_rate`` that holds it), or of latent shards.
    """
    if (folder / ENCODING / SHARDS).is_file():
        return _encoding(folder)
    for output in (folder, folder.parent):
        if (output / FOLDER / UNITS).is_file():
            return _preparation(output)
    return []


def _preparation(output: Path) -> list[str]:
    closed = closed_units(output)
    left = {number: len(keys) for number, keys in Units(output).keys.items() if number not in closed}
    if left:
        return told_by_part(left, output / FOLDER, "files or folders of the source")
    if undecided(output):
        return ["all parts have run, and none has joined them: run the command again, as any part or without"]
    return []


def _encoding(folder: Path) -> list[str]:
    names = json.loads((folder / ENCODING / SHARDS).read_text(encoding="utf-8"))
    done = {entry.file for entry in read_manifest(folder)}
    left = Counter(shard_index(name) for name in names if name not in done)
    return told_by_part(left, folder / ENCODING, "shards")
