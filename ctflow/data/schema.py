"""The HDF5 layout of shards: the only module that knows keys, dtypes and attributes.

A file holds the attributes ``format``, ``kind`` and ``version``, a ``header`` and one group per case. Every
dataset is chunked and carries a fletcher32 checksum, texts too (UTF-8 bytes of JSON), because HDF5 checks
neither attributes nor variable-length strings::

    /               attributes: format = "ctflow", kind = "slices" | "latents", version
    /header         JSON bytes
    /cases/00000/   metadata      JSON bytes: case, patient, spacing, report, labels, split, source …

    slices:
    /cases/00000/   hu            int16 [slices, rows, columns]

    latents:
    /air, /white    float32 [channels, h, w]
    /cases/00000/   mean, logvar  float16 [slices, channels, h, w]
                    text          float16 [tokens, width]
                    text_mask     uint8 [tokens]
                    pooled        float32 [width]
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ctflow.data.records import CaseEntry, LatentHeader, LatentRecord, SliceRecord
from ctflow.errors import ShardError
from ctflow.types import Acquisition
from ctflow.whitening import Whitening

FORMAT = "ctflow"
VERSION = 1
SLICES = "slices"
LATENTS = "latents"
_ARRAYS = {SLICES: ("hu",), LATENTS: ("mean", "logvar", "text", "text_mask", "pooled")}
_SHARED: dict[str, tuple[str, ...]] = {SLICES: (), LATENTS: ("air", "white")}
_SLICE_CHUNK_BYTES = 2**17
_LATENT_CHUNK_BYTES = 2**20
_LATENT_CHUNK_SLICES = 8


def create(
    stream: io.RawIOBase, kind: str, header: LatentHeader | None, provenance: dict[str, Any]
) -> h5py.File:
    """Open a new shard file for writing and write its header.

    Args:
        stream: Where it goes.
        kind: ``slices`` or ``latents``.
        header: Needed for ``latents``.
        provenance: How the shards are made (JSON values).
    """
    file = h5py.File(stream, "w")
    file.attrs.update(format=FORMAT, kind=kind, version=VERSION)
    text: dict[str, Any] = {"provenance": provenance}
    if header is not None:
        text |= {
            "avae_fingerprint": header.avae_fingerprint,
            "text_fingerprint": header.text_fingerprint,
            "whitening": asdict(header.whitening),
            "hu_window": list(header.hu_window),
        }
        _write(file, "air", header.air.astype(np.float32))
        _write(file, "white", header.white.astype(np.float32))
    _write_json(file, "header", text)
    file.create_group("cases")
    return file


def open_shard(path: Path, kind: str) -> h5py.File:
    """Open a shard for reading.

    Raises:
        ShardError: Not an HDF5 file, not a shard of this project, of another kind or of a newer version.
    """
    try:
        file = h5py.File(path, "r", locking=False)  # complete shards never change; Lustre has no locks
    except OSError as error:
        raise ShardError(
            f"{path} cannot be opened: {error}", f"a {kind} shard", "delete its folder and prepare it again"
        ) from error
    found = {name: file.attrs.get(name) for name in ("format", "kind", "version")}
    if found != {"format": FORMAT, "kind": kind, "version": VERSION}:
        file.close()
        raise ShardError(
            f"{path} says {found}",
            f"format {FORMAT!r}, kind {kind!r}, version {VERSION}",
            "prepare the shards again with this version"
            if found["kind"] == kind
            else f"give a folder of {kind} shards",
        )
    return file


def read_latent_header(file: h5py.File) -> LatentHeader:
    """The header of a latent shard."""
    text = _read_json(file, "header")
    return LatentHeader(
        avae_fingerprint=text["avae_fingerprint"],
        text_fingerprint=text["text_fingerprint"],
        whitening=Whitening(**text["whitening"]),
        air=_read(file, "air"),
        white=_read(file, "white"),
        hu_window=(text["hu_window"][0], text["hu_window"][1]),
        provenance=text["provenance"],
    )


def write_slice_record(file: h5py.File, record: SliceRecord) -> None:
    """Append a case to a slice shard."""
    group = _new_case(file)
    per_slice = 2 * record.hu.shape[1] * record.hu.shape[2]
    chunk = min(record.slices, max(1, _SLICE_CHUNK_BYTES // per_slice))
    _write(group, "hu", record.hu, chunk, compressed=True)
    _write_json(group, "metadata", _metadata(record))


def write_latent_record(file: h5py.File, record: LatentRecord) -> None:
    """Append a case to a latent shard."""
    group = _new_case(file)
    per_slice = 2 * record.mean[0].size
    chunk = min(record.slices, _LATENT_CHUNK_SLICES, max(1, _LATENT_CHUNK_BYTES // per_slice))
    _write(group, "mean", record.mean.astype(np.float16), chunk)
    _write(group, "logvar", record.logvar.astype(np.float16), chunk)
    _write(group, "text", record.text.astype(np.float16), compressed=True)
    _write(group, "text_mask", record.text_mask.astype(np.uint8))
    _write(group, "pooled", record.pooled.astype(np.float32))
    _write_json(group, "metadata", _metadata(record))


def case_count(file: h5py.File) -> int:
    """Cases in a shard."""
    return len(file["cases"])


def read_slice_record(file: h5py.File, index: int) -> SliceRecord:
    """One whole case of a slice shard."""
    group = _case(file, index)
    return SliceRecord(hu=_read(group, "hu"), **_read_metadata(group))


def read_latent_record(file: h5py.File, index: int) -> LatentRecord:
    """One whole case of a latent shard."""
    group = _case(file, index)
    return LatentRecord(
        mean=_read(group, "mean"),
        logvar=_read(group, "logvar"),
        text=_read(group, "text"),
        text_mask=_read(group, "text_mask").astype(bool),
        pooled=_read(group, "pooled"),
        **_read_metadata(group),
    )


def read_hu(file: h5py.File, index: int, start: int, stop: int) -> NDArray[np.int16]:
    """Slices ``start … stop−1`` of a case, int16 HU ``[n, rows, columns]``."""
    return _read(_case(file, index), "hu", slice(start, stop))


def read_posterior(
    file: h5py.File, index: int, start: int, stop: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Posterior mean and log-variance of slices ``start … stop−1``, each ``[n, channels, h, w]``."""
    group = _case(file, index)
    return _read(group, "mean", slice(start, stop)), _read(group, "logvar", slice(start, stop))


def read_text(
    file: h5py.File, index: int
) -> tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float32]]:
    """Text tokens ``[L, D]``, mask ``[L]`` and pooled vector ``[D]`` of a case."""
    group = _case(file, index)
    return _read(group, "text"), _read(group, "text_mask").astype(bool), _read(group, "pooled")


def read_metadata(file: h5py.File, index: int) -> dict[str, Any]:
    """The fields of a case's record that are not arrays."""
    return _read_metadata(_case(file, index))


def read_case_entry(file: h5py.File, kind: str, index: int) -> CaseEntry:
    """A case's entry of the manifest, from the shard itself."""
    group, text = _case(file, index), read_metadata(file, index)
    array = group["hu" if kind == SLICES else "mean"]
    z, y, x = (float(s) for s in text["spacing"])
    return CaseEntry(
        case_id=text["case_id"],
        patient_id=text["patient_id"],
        slices=int(array.shape[0]),
        spacing=(z, y, x),
        split=text["split"],
        tokens=0 if kind == SLICES else int(group["text"].shape[0]),
        size=(int(array.shape[-2]), int(array.shape[-1])),
        acquisition=text["acquisition"],
    )


def verify_chunks(file: h5py.File, kind: str) -> None:
    """Read every dataset, so that HDF5 compares every checksum.

    Raises:
        ShardError: A chunk's checksum does not hold, or a dataset is missing.
    """
    _read_json(file, "header")
    for name in _SHARED[kind]:
        _read(file, name)
    for index in range(case_count(file)):
        group = _case(file, index)
        for name in _ARRAYS[kind]:
            _read(group, name)
        _read_json(group, "metadata")


def _metadata(record: SliceRecord | LatentRecord) -> dict[str, Any]:
    return {
        "case_id": record.case_id,
        "patient_id": record.patient_id,
        "spacing": [float(s) for s in record.spacing],
        "report": record.report,
        "labels": record.labels,
        "source_sha256": record.source_sha256,
        "split": record.split,
        "truth_path": record.truth_path,
        "extra": record.extra,
        "acquisition": asdict(record.acquisition),
    }


def _read_metadata(group: h5py.Group) -> dict[str, Any]:
    text = _read_json(group, "metadata")
    # Shards of earlier days hold no acquisition.
    acquisition = Acquisition(**text.get("acquisition", {}))
    return text | {"spacing": tuple(text["spacing"]), "acquisition": acquisition}


def _new_case(file: h5py.File) -> h5py.Group:
    return file["cases"].create_group(f"{case_count(file):05d}")


def _case(file: h5py.File, index: int) -> h5py.Group:
    return file["cases"][f"{index:05d}"]


def _write(
    group: h5py.Group, name: str, array: NDArray[Any], chunk: int | None = None, compressed: bool = False
) -> None:
    chunks = (chunk or max(1, array.shape[0]), *array.shape[1:])
    filters: dict[str, Any] = (
        {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compressed else {}
    )
    group.create_dataset(name, data=array, chunks=chunks, fletcher32=True, **filters)


def _read(group: h5py.Group, name: str, where: slice = slice(None)) -> NDArray[Any]:
    try:
        return group[name][where]
    except (OSError, KeyError) as error:
        raise ShardError(
            f"{group.file.filename}: {group.name}/{name} cannot be read: {error}",
            "a whole dataset whose checksums hold",
            "delete this shard's line from the manifest and the file, then run the preparation again",
        ) from error


def _write_json(group: h5py.Group, name: str, value: dict[str, Any]) -> None:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    _write(group, name, np.frombuffer(text, np.uint8))


def _read_json(group: h5py.Group, name: str) -> dict[str, Any]:
    return json.loads(_read(group, name).tobytes())
