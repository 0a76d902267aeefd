"""The folders that ``data_prep.encode`` reads and writes: every split that is found, and what is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctflow.data import LatentShards, LatentShardWriter, SliceShards, read_manifest, shards_to_encode
from ctflow.data.manifest import MANIFEST
from ctflow.data.reader import read_shard_header
from ctflow.errors import ShardError
from data_prep.encode_predict import SOURCE_SHARD


def find_splits(source: Path, output: Path) -> list[tuple[Path, Path]]:
    """Folders of slice shards and where their latents go: ``source`` itself, or what lies in it.

    Raises:
        ShardError: There are no shards.
    """
    if (source / MANIFEST).is_file():
        return [(source, output)]
    names = sorted(path.parent.name for path in source.glob(f"*/{MANIFEST}"))
    if not names:
        raise ShardError(
            f"no slice shards in {source}, nor in folders below it",
            f"a folder with {MANIFEST} and shard-*.h5, or with such folders (train, valid)",
            "prepare scans with python -m data_prep.ct_rate first",
        )
    names.sort(key=lambda name: name != "train")  # whitening is measured on the first
    return [(source / name, output / name) for name in names]


@dataclass
class Split:
    """One folder of slice shards on its way to latents.

    Attributes:
        source: The slices.
        writer: Of the latents.
        posteriors: Latents of the same slices that are taken over; None: the slices are encoded.
    """

    source: SliceShards
    writer: LatentShardWriter
    posteriors: LatentShards | None = None

    def __post_init__(self) -> None:
        self.shards: dict[str, range] = {}
        first = 0
        for entry in read_manifest(self.source.folder):
            self.shards[entry.file] = range(first, first + len(entry.cases))
            first += len(entry.cases)
        self.complete = set(self.shards) - set(shards_to_encode(self.source.folder, self.writer.folder))

    def check_posteriors(self) -> None:
        """Look at the latents that are to be taken over.

        Raises:
            ShardError: They are another A-VAE's, or not of these slices.
        """
        if self.posteriors is None:
            return
        folder = self.posteriors.folder
        for name in ("avae_fingerprint", "whitening", "hu_window"):
            found, ours = getattr(self.posteriors.header, name), getattr(self.writer.header, name)
            if found != ours:
                raise ShardError(
                    f"{folder} has {name} {found}, the A-VAE has {ours}",
                    "posteriors of the same A-VAE",
                    "name that A-VAE with avae=FOLDER, or leave posteriors empty to encode the slices",
                )
        known = {case.case_id: case.slices for case in self.posteriors.cases}
        wanted = self.source.cases
        if missing := [case.case_id for case in wanted if known.get(case.case_id) != case.slices]:
            raise ShardError(
                f"{folder} lacks {len(missing)} of {len(wanted)} cases or their slices, e.g. {missing[0]}",
                f"latents of all cases of {self.source.folder}",
                "leave posteriors empty to encode the slices",
            )

    def check_output(self) -> None:
        """Look at the shards that are complete already.

        Raises:
            ShardError: Complete shards come from other weights or other slice shards.
        """
        sources = {entry.file: entry.sha256 for entry in read_manifest(self.source.folder)}
        for name in self.writer.completed_shards():
            header = read_shard_header(self.writer.folder / name)
            made_from = header.provenance.pop(SOURCE_SHARD)
            for field in ("avae_fingerprint", "text_fingerprint", "whitening", "hu_window", "provenance"):
                found, ours = getattr(header, field), getattr(self.writer.header, field)
                if found != ours:
                    raise ShardError(
                        f"{self.writer.folder / name} holds latents with {field} {found}, this run would "
                        f"write {ours}",
                        "one encoder and one setting per folder",
                        "give an empty output folder, or the avae=FOLDER and clip=FOLDER that were used",
                    )
            if made_from != sources.get(name):
                raise ShardError(
                    f"{self.writer.folder / name} was not made from {self.source.folder / name} as it is now",
                    "latents of these slice shards",
                    "give an empty output folder",
                )
