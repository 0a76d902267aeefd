"""Writers of shards: a temporary name, a rename when complete, then a line in the manifest."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ctflow.data import schema
from ctflow.data.guarded import GuardedStream
from ctflow.data.manifest import add_to_manifest, read_manifest
from ctflow.data.records import CaseEntry, LatentHeader, LatentRecord, ShardEntry, SliceRecord
from ctflow.errors import ShardError
from ctflow.files import file_sha256
from ctflow.locks import LockHeld, LongLock

PARTIAL = ".partial"
"""Ending of every file that is not complete yet; readers never look at them."""


class ShardFile:
    """One shard while it is written.

    Args:
        folder: Folder of the shard set.
        name: Final file name.
        kind: ``slices`` or ``latents``.
        header: Needed for ``latents``.
        provenance: How the shards are made (JSON values).
    """

    def __init__(
        self, folder: Path, name: str, kind: str, header: LatentHeader | None, provenance: dict[str, Any]
    ) -> None:
        self.folder, self.name, self.kind = folder, name, kind
        self.cases: list[CaseEntry] = []
        self._temporary = folder / f".{name}{PARTIAL}"
        self._stream = GuardedStream(self._temporary)
        self._file = schema.create(self._stream, kind, header, provenance)

    def append(self, record: SliceRecord | LatentRecord) -> None:
        """Write one case.

        Raises:
            OSError: A full disk, for one.
        """
        if isinstance(record, SliceRecord):
            schema.write_slice_record(self._file, record)
            tokens, size = 0, record.hu.shape[1:]
        else:
            schema.write_latent_record(self._file, record)
            tokens, size = len(record.text), record.mean.shape[2:]
        z, y, x = (float(s) for s in record.spacing)
        entry = CaseEntry(
            case_id=record.case_id,
            patient_id=record.patient_id,
            slices=record.slices,
            spacing=(z, y, x),
            split=record.split,
            tokens=tokens,
            size=(size[0], size[1]),
            acquisition=record.acquisition,
        )
        self._stream.check()
        self.cases.append(entry)

    def commit(self) -> ShardEntry:
        """Close the file, give it its name and list it in the manifest; before that nobody sees it.

        Raises:
            OSError: A full disk, for one; nothing is left then.
        """
        self._file.close()
        self._stream.sync()
        self._stream.close()
        try:
            self._stream.check()
        except OSError:
            self._temporary.unlink(missing_ok=True)
            raise
        digest, size = file_sha256(self._temporary), self._temporary.stat().st_size
        self._temporary.replace(self.folder / self.name)
        entry = ShardEntry(self.name, self.kind, schema.VERSION, digest, size, tuple(self.cases))
        add_to_manifest(self.folder, entry)
        return entry

    def discard(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._stream.close()
        self._temporary.unlink(missing_ok=True)


class SliceShardWriter:
    """Appends scans to a folder of slice shards; one process owns it at a time.

    Used as a context manager: leaving it completes the last shard, an exception drops the unfinished one.
    What a killed process had completed stays, so ``completed_case_ids`` says what a new run may skip::

        with SliceShardWriter(folder) as writer:
            for record in records_not_in(writer.completed_case_ids()):
                writer.append(record)

    Args:
        folder: Made where missing.
        volumes_per_shard: Cases per file; at most this many are lost by a kill.
        provenance: How the shards are made (JSON values); kept in every shard's header.

    Raises:
        ShardError: Another process writes to the folder, or it holds shards of another kind.
    """

    def __init__(
        self, folder: Path | str, volumes_per_shard: int = 16, provenance: dict[str, Any] | None = None
    ) -> None:
        if volumes_per_shard < 1:
            raise ValueError(f"volumes_per_shard must be at least 1, found {volumes_per_shard}")
        self.folder = Path(folder)
        self.volumes_per_shard = volumes_per_shard
        self.provenance = provenance or {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = writer_lock(self.folder)
        entries = shard_entries(self.folder, schema.SLICES)
        self._done = {case.case_id for entry in entries for case in entry.cases}
        self._next = 1 + max((shard_index(entry.file) for entry in entries), default=-1)
        self._shard: ShardFile | None = None
        remove_partial(self.folder)

    def completed_case_ids(self) -> set[str]:
        """Cases that lie in complete shards."""
        return set(self._done)

    def append(self, record: SliceRecord) -> None:
        """Add one scan; every ``volumes_per_shard``-th completes a shard.

        Raises:
            ShardError: The case is already there.
        """
        open_ids = {case.case_id for case in self._shard.cases} if self._shard else set()
        if record.case_id in self._done or record.case_id in open_ids:
            raise ShardError(
                f"case {record.case_id!r} is already in {self.folder}",
                "every case once",
                "skip completed cases",
            )
        if self._shard is None:
            self._shard = ShardFile(self.folder, shard_name(self._next), schema.SLICES, None, self.provenance)
        self._shard.append(record)
        if len(self._shard.cases) == self.volumes_per_shard:
            self.flush()

    def flush(self) -> None:
        """Complete the shard that is being filled, also a short one."""
        if self._shard is None:
            return
        entry = self._shard.commit()
        self._done |= {case.case_id for case in entry.cases}
        self._shard = None
        self._next += 1

    def close(self) -> None:
        """Complete the last shard and let go of the folder."""
        self.flush()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        if self._shard is not None:
            self._shard.discard()
            self._shard = None
        self._lock.release()


class LatentShardWriter:
    """Writes latent shards by name: several ranks fill one folder, each its own names.

    Args:
        folder: Made where missing when the first shard begins.
        header: What all cases share.

    Raises:
        ShardError: The folder holds shards of another kind.
    """

    def __init__(self, folder: Path | str, header: LatentHeader) -> None:
        self.folder = Path(folder)
        self.header = header
        self._shard: ShardFile | None = None

    def completed_shards(self) -> set[str]:
        """File names of complete shards."""
        return {entry.file for entry in shard_entries(self.folder, schema.LATENTS)}

    def begin(self, name: str, provenance: dict[str, Any] | None = None) -> None:
        """Start the shard ``name``; ``provenance`` is what only this shard has, added to the header's."""
        assert self._shard is None, "finish a shard before the next one begins"
        self.folder.mkdir(parents=True, exist_ok=True)
        provenance = self.header.provenance | (provenance or {})
        self._shard = ShardFile(self.folder, name, schema.LATENTS, self.header, provenance)

    def append(self, record: LatentRecord) -> None:
        """Add one case to the shard begun last."""
        assert self._shard is not None, "begin a shard before appending to it"
        self._shard.append(record)

    def finish(self) -> ShardEntry:
        """Complete the shard: rename it and list it."""
        assert self._shard is not None, "begin a shard before finishing it"
        entry = self._shard.commit()
        self._shard = None
        return entry

    def discard(self) -> None:
        """Drop a shard that was begun and not finished."""
        if self._shard is not None:
            self._shard.discard()
            self._shard = None


def writer_lock(folder: Path) -> LongLock:
    """Take a folder for writing; ``release`` gives it back.

    Raises:
        ShardError: Another process has it.
    """
    try:
        return LongLock(folder / ".writer.lock")
    except LockHeld as held:
        who = f" ({held.holder})" if held.holder else ""
        raise ShardError(
            f"another process is writing to {folder}{who}", "one writer per folder", "wait for it or stop it"
        ) from None


def shard_name(index: int) -> str:
    """File name of the shard number ``index``."""
    return f"shard-{index:05d}.h5"


def shard_index(name: str) -> int:
    """The number in a shard's file name."""
    return int(name.removeprefix("shard-").removesuffix(".h5").partition("-")[0])


def shard_entries(folder: Path, kind: str) -> list[ShardEntry]:
    """The complete shards of a folder that may hold only one kind.

    Raises:
        ShardError: The folder holds another kind.
    """
    entries = read_manifest(folder)
    for entry in entries:
        if entry.kind != kind or entry.version != schema.VERSION:
            raise ShardError(
                f"{folder / entry.file} is a shard of {entry.kind}, version {entry.version}",
                f"{kind}, version {schema.VERSION}",
                "give another folder",
            )
    return entries


def remove_partial(folder: Path) -> None:
    """Remove what a killed writer left; only for the one process that owns the folder."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink()
