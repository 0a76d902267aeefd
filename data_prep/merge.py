"""Several encoded data sets in one, for trainings and analyses that take one folder.

    ctflow merge first=runs/a/latents second=runs/b/latents --output runs/both/latents

Every shard of latents is written again, with the set's name before its cases, patients and scans, so that
equal names of different patients stay apart. All sets have to be encoded by the same A-VAE and text encoder.
A killed run goes on with the missing shards.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.data import MergeConfig
from ctflow.data import LatentHeader, LatentRecord, LatentShards, LatentShardWriter, read_manifest
from ctflow.data.manifest import MANIFEST
from ctflow.data.reader import read_shard_header
from ctflow.data.records import ShardEntry
from ctflow.data.writer import remove_partial, shard_name, writer_lock
from ctflow.errors import CTFlowError, ShardError
from ctflow.outputs import check_writable

log = logging.getLogger("data_prep.merge")
SOURCE = "merged_from"
"""Provenance of a merged shard: name of the set, and file and SHA-256 of the shard it was."""
_SHARED = ("avae_fingerprint", "text_fingerprint", "whitening", "hu_window")
_NAME = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True)
class _Job:
    """A shard of a set, and the cases it holds."""

    name: str
    shards: LatentShards
    entry: ShardEntry
    first: int

    @property
    def source(self) -> list[str]:
        """What the merged shard says about where it is from."""
        return [self.name, self.entry.file, self.entry.sha256]


def main(argv: Sequence[str] | None = None) -> int:
    """Merge sets.

    Raises:
        CTFlowError: Sets without names or shards, or of different encoders; an output made of other sets.
    """
    sets = Flag(
        "sets", options={"nargs": "+", "metavar": "NAME=DIR", "help": "folders of latent shards, named"}
    )
    output = Flag("--output", "output", {"help": "new folder of latent shards"})
    command = parse_command(MergeConfig, "ctflow merge", __doc__ or "", [sets, output], argv)
    folders = named_folders(command.flags["sets"])
    target = Path(command.config.output)
    splits = sorted({split for folder in folders.values() for split in _splits(folder)})
    if "" in splits and len(splits) > 1:
        raise ShardError(
            f"some sets lie in {', '.join(filter(None, splits))}, others in no such folder",
            "sets that are split alike",
            "give the folder above train and valid for each set",
        )
    for split in splits:
        within = {name: folder / split for name, folder in folders.items() if split in _splits(folder)}
        count = merge(within, target / split)
        log.info("%s: %d volumes", target / split, count)
    return 0


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """``NAME=DIR`` as a mapping, in the order given.

    Raises:
        CTFlowError: No name, the same name or folder twice, or a single set.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or not folder or not _NAME.fullmatch(name) or name == "output":
            raise CTFlowError(
                f"the set {argument!r}",
                "NAME=DIR with letters and digits as a name; --output DIR for the output",
            )
        if name in folders or Path(folder).resolve() in [other.resolve() for other in folders.values()]:
            raise CTFlowError(f"the set {argument!r} comes twice", "another name and folder for each set")
        folders[name] = Path(folder)
    if len(folders) < 2:
        raise CTFlowError(f"{len(folders)} set", "two or more: NAME=DIR NAME=DIR …")
    return folders


def merge(folders: dict[str, Path], output: Path) -> int:
    """Write the shards of several folders into one; returns the number of volumes.

    Args:
        folders: Name of a set and its folder of latent shards.
        output: Made where missing.

    Raises:
        ShardError: No shards, shards of different encoders, or an output that holds other sets.
    """
    sets = {name: LatentShards(folder) for name, folder in folders.items()}
    header = _one_header(sets)
    jobs = _jobs(sets)
    check_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    lock = writer_lock(output)
    try:
        remove_partial(output)
        writer = LatentShardWriter(output, header)
        _check_output(output, writer.completed_shards(), jobs)
        done = writer.completed_shards()
        for file, job in tqdm(jobs.items(), f"merging into {output}", unit="shard", leave=False):
            if file in done:
                continue
            writer.begin(file, {SOURCE: job.source})
            try:
                for index in range(job.first, job.first + len(job.entry.cases)):
                    writer.append(renamed(job.shards.record(index), job.name))
            except BaseException:
                writer.discard()
                raise
            writer.finish()
    finally:
        lock.release()
    return sum(len(job.entry.cases) for job in jobs.values())


def renamed(record: LatentRecord, name: str) -> LatentRecord:
    """The case as one of the set ``name``."""
    acquisition = record.acquisition
    scan = f"{name}-{acquisition.scan}" if acquisition.scan else ""
    return replace(
        record,
        case_id=f"{name}-{record.case_id}",
        patient_id=f"{name}-{record.patient_id}",
        acquisition=replace(acquisition, scan=scan),
    )


def _splits(folder: Path) -> list[str]:
    """The folders of shards inside of a set; the empty name for the set itself.

    Raises:
        ShardError: There are none.
    """
    if (folder / MANIFEST).is_file():
        return [""]
    names = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    if not names:
        raise ShardError(
            f"no latent shards in {folder}, nor in folders below it",
            f"a folder with {MANIFEST} and shard-*.h5, or with such folders (train, valid)",
            "encode slices with python -m data_prep.encode first",
        )
    return names


def _one_header(sets: dict[str, LatentShards]) -> LatentHeader:
    (first, shards), *others = sets.items()
    for name, other in others:
        for field in _SHARED:
            found, wanted = getattr(other.header, field), getattr(shards.header, field)
            if found != wanted:
                raise ShardError(
                    f"{other.folder} ({name}) has {field} {found}, {shards.folder} ({first}) has {wanted}",
                    "sets of the same A-VAE and text encoder",
                    "encode their slices with the same avae=FOLDER and clip=FOLDER",
                )
    return shards.header


def _jobs(sets: dict[str, LatentShards]) -> dict[str, _Job]:
    """File of the merged set: what goes into it."""
    jobs: dict[str, _Job] = {}
    for name, shards in sets.items():
        first = 0
        for entry in read_manifest(shards.folder):
            jobs[shard_name(len(jobs))] = _Job(name, shards, entry, first)
            first += len(entry.cases)
    return jobs


def _check_output(output: Path, complete: set[str], jobs: dict[str, _Job]) -> None:
    for file in sorted(complete):
        found = read_shard_header(output / file).provenance.get(SOURCE)
        if file not in jobs or found != jobs[file].source:
            wanted = jobs[file].source if file in jobs else "no such shard"
            raise ShardError(
                f"{output / file} was made from {found or 'other data'}",
                f"{wanted}: these sets in this order, unchanged",
                "give an empty output folder",
            )


if __name__ == "__main__":
    run_command(main)
