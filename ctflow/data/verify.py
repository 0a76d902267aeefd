"""Verification of a shard folder: every checksum, and the manifest against what lies there."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from ctflow.data import schema
from ctflow.data.manifest import read_manifest
from ctflow.data.reader import LatentShards
from ctflow.data.records import ShardEntry
from ctflow.errors import ShardError
from ctflow.files import file_sha256


def verify_folder(folder: Path | str) -> list[str]:
    """Read everything once and compare it.

    Args:
        folder: Slice or latent shards.

    Returns:
        What is wrong, one line each; empty where all holds. Files of an unfinished shard are not an error.

    Raises:
        ShardError: The manifest itself cannot be read, or names no shard.
    """
    folder = Path(folder)
    entries = read_manifest(folder)
    if not entries:
        raise ShardError(f"no manifest with shards in {folder}", "a folder written by data_prep")
    problems = []
    for entry in tqdm(entries, desc="verifying", unit="shard"):
        try:
            _verify_shard(folder, entry)
        except ShardError as error:
            problems.append(error.found)
    listed = {entry.file for entry in entries}
    problems += [
        f"{path.name} is not in the manifest"
        for path in sorted(folder.glob("*.h5"))
        if path.name not in listed
    ]
    if len({entry.kind for entry in entries}) > 1:
        problems.append("slice and latent shards are mixed")
    elif entries[0].kind == schema.LATENTS and not problems:
        problems += _one_encoder(folder)
    return problems


def _verify_shard(folder: Path, entry: ShardEntry) -> None:
    path = folder / entry.file
    if not path.is_file():
        raise ShardError(f"{entry.file} is in the manifest, not in the folder")
    with schema.open_shard(path, entry.kind) as file:
        schema.verify_chunks(file, entry.kind)
        found = [schema.read_case_entry(file, entry.kind, i) for i in range(schema.case_count(file))]
    names = [[case.case_id for case in cases] for cases in (found, entry.cases)]
    if names[0] != names[1]:
        raise ShardError(f"{entry.file} holds the cases {names[0]}, the manifest lists {names[1]}")
    for there, listed in zip(found, entry.cases, strict=True):
        if there != listed:
            raise ShardError(f"{entry.file} holds {there}, the manifest lists {listed}")
    if entry.version != schema.VERSION:
        raise ShardError(f"{entry.file} has version {schema.VERSION}, the manifest says {entry.version}")
    if path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
        raise ShardError(f"{entry.file} is not the file that was written: its SHA-256 or size differs")


def _one_encoder(folder: Path) -> list[str]:
    shards = LatentShards(folder)
    try:
        for i in range(len(shards)):
            shards.metadata(i)
    except ShardError as error:
        return [error.found]
    return []
