"""Random access to the cases of a shard folder; files are opened on demand, per process."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.config.data import CaseChoice
from ctflow.data import schema
from ctflow.data.choice import chosen_cases
from ctflow.data.records import CaseEntry, LatentHeader, LatentRecord, SliceRecord
from ctflow.data.writer import shard_entries
from ctflow.errors import ShardError
from ctflow.types import BLOCK_LENGTH

_INFINITE_LOGVAR = 170.0
"""Beyond it, exp(logvar / 2) does not fit into a float32."""
_OPEN_FILES = 32
TextArrays = tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float32]]


def padded_slices(slices: int) -> int:
    """Slices and end slices: the next multiple of a block, one whole block more after an exact one."""
    return (slices // BLOCK_LENGTH + 1) * BLOCK_LENGTH


def read_shard_header(path: Path | str) -> LatentHeader:
    """The header of one latent shard.

    Raises:
        ShardError: It cannot be read.
    """
    with schema.open_shard(Path(path), schema.LATENTS) as file:
        return schema.read_latent_header(file)


class ShardSet:
    """The cases of one folder, by index in the manifest's order.

    Args:
        folder: Where the shards lie.
        max_cases: Only the first so many cases; 0 takes all.
        choice: Which reconstructions and scans; None takes every volume.

    Attributes:
        folder: Where the shards lie.
        cases: All cases, in order.
        shard_sizes: Cases in each shard.

    Raises:
        ShardError: No manifest, no case, or shards of another kind.
    """

    kind: str

    def __init__(self, folder: Path | str, max_cases: int = 0, choice: CaseChoice | None = None) -> None:
        self.folder = Path(folder)
        entries = shard_entries(self.folder, self.kind)
        places = [(e.file, i, case) for e in entries for i, case in enumerate(e.cases)]
        if choice is not None:
            places = [places[i] for i in chosen_cases([case for _, _, case in places], choice)]
        if max_cases:
            places = places[:max_cases]
        if not places:
            raise ShardError(
                f"no complete {self.kind} shard in {self.folder}",
                "a folder with manifest.jsonl and shard-*.h5",
                "prepare it with python -m data_prep.ct_rate, latents then with data_prep.encode",
            )
        self.cases: list[CaseEntry] = [case for _, _, case in places]
        self._index = {case.case_id: i for i, case in enumerate(self.cases)}
        self._places = [(file, i) for file, i, _ in places]
        counts = {e.file: 0 for e in entries}
        for file, _ in self._places:
            counts[file] += 1
        self.shard_sizes = [n for n in counts.values() if n]
        self._open: OrderedDict[tuple[int, str], h5py.File] = OrderedDict()

    def __len__(self) -> int:
        return len(self.cases)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def index(self, case_id: str) -> int:
        """Index of a case.

        Raises:
            ShardError: It is not in the folder.
        """
        if case_id not in self._index:
            raise ShardError(f"no case {case_id!r} in {self.folder}", "a case of its manifest")
        return self._index[case_id]

    def one_size(self) -> tuple[int, int]:
        """Rows and columns that all cases share.

        Raises:
            ShardError: They differ, so that slices cannot be stacked to batches.
        """
        sizes = sorted({case.size for case in self.cases})
        if len(sizes) > 1:
            raise ShardError(
                f"{self.folder} holds {self.kind} of the sizes {sizes}",
                "one size (rows, columns) per folder",
                "prepare the scans again at one size",
            )
        return sizes[0]

    def metadata(self, i: int) -> dict[str, Any]:
        """The fields of a case that are not arrays: report, labels, split, truth path …"""
        file, where = self._file(i)
        return schema.read_metadata(file, where)

    def _file(self, i: int) -> tuple[h5py.File, int]:
        name, where = self._places[i]
        key = (os.getpid(), name)  # an HDF5 handle does not survive a fork
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key], where
        file = schema.open_shard(self.folder / name, self.kind)
        self._check(file)
        self._open[key] = file
        if len(self._open) > _OPEN_FILES:
            (pid, _), old = self._open.popitem(last=False)
            if pid == os.getpid():
                old.close()
        return file, where

    def _check(self, file: h5py.File) -> None:
        """Check a shard of the folder; called when one is opened."""


class SliceShards(ShardSet):
    """Scans in HU.

    Args:
        folder: Folder of slice shards.
        max_cases: Only the first so many cases; 0 takes all.
        in_memory: Read everything once and keep it.
        choice: Which reconstructions and scans; None takes every volume.
    """

    kind = schema.SLICES

    def __init__(
        self,
        folder: Path | str,
        max_cases: int = 0,
        in_memory: bool = False,
        choice: CaseChoice | None = None,
    ) -> None:
        super().__init__(folder, max_cases, choice)
        self._hu: list[NDArray[np.int16]] = []
        if in_memory:
            self._hu = [self.hu(i) for i in range(len(self))]

    def record(self, i: int) -> SliceRecord:
        """One whole case."""
        file, where = self._file(i)
        return schema.read_slice_record(file, where)

    def hu(self, i: int, start: int = 0, stop: int | None = None) -> NDArray[np.int16]:
        """Slices ``start … stop−1`` (all by default), int16 HU ``[n, rows, columns]``."""
        stop = self.cases[i].slices if stop is None else stop
        if self._hu:
            return self._hu[i][start:stop]
        file, where = self._file(i)
        return schema.read_hu(file, where, start, stop)


class LatentShards(ShardSet):
    """Posteriors of scans with embedded reports.

    Args:
        folder: Folder of latent shards.
        max_cases: Only the first so many cases; 0 takes all.
        in_memory: Read everything once and keep it.
        choice: Which reconstructions and scans; None takes every volume.
        posterior_noise: Deviations of posterior noise in ``sample``; 0 gives the posterior's mean.

    Attributes:
        header: What all shards share.

    Raises:
        ShardError: Shards of different A-VAEs, text encoders or whitenings lie in one folder.
    """

    kind = schema.LATENTS

    def __init__(
        self,
        folder: Path | str,
        max_cases: int = 0,
        in_memory: bool = False,
        choice: CaseChoice | None = None,
        posterior_noise: float = 1.0,
    ) -> None:
        super().__init__(folder, max_cases, choice)
        self.posterior_noise = posterior_noise
        self._shared: LatentHeader | None = None
        self._file(0)
        assert self._shared is not None
        self.header: LatentHeader = self._shared
        self.tokens: int = max(case.tokens for case in self.cases)
        self._posteriors: list[tuple[NDArray[np.float16], NDArray[np.float16]]] = []
        self._texts: list[TextArrays] = []
        if in_memory:
            self._texts = [self.text(i) for i in range(len(self))]
            self._posteriors = [self.posterior(i) for i in range(len(self))]

    def record(self, i: int) -> LatentRecord:
        """One whole case."""
        file, where = self._file(i)
        return schema.read_latent_record(file, where)

    def posterior(
        self, i: int, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Mean and log-variance of slices ``start … stop−1``, each ``[n, C, h, w]``; not whitened."""
        stop = self.cases[i].slices if stop is None else stop
        if self._posteriors:
            mean, logvar = self._posteriors[i]
            return mean[start:stop], logvar[start:stop]
        file, where = self._file(i)
        mean, logvar = schema.read_posterior(file, where, start, stop)
        # A standard deviation of exp(logvar / 2) has to be finite too.
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all() and logvar.max() < _INFINITE_LOGVAR):
            what = f"latents that are not finite, among slices {start} … {stop - 1}"
            raise self._not_finite(file.filename, i, what)
        return mean, logvar

    def _not_finite(self, file: str, i: int, what: str) -> ShardError:
        return ShardError(
            f"{file}, case {self.cases[i].case_id!r}: {what}",
            "finite numbers",
            "encode this shard again (delete its line from the manifest and the file first)",
        )

    def text(self, i: int) -> TextArrays:
        """Tokens ``[L, D]``, mask ``[L]``, pooled ``[D]`` of a case's report."""
        if self._texts:
            return self._texts[i]
        file, where = self._file(i)
        text = schema.read_text(file, where)
        if not all(np.isfinite(array).all() for array in text):
            raise self._not_finite(file.filename, i, "text vectors that are not finite")
        return text

    def whitened(self, i: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Whitened posterior means of slices ``start … stop−1`` (all by default), ``[C, n, h, w]``."""
        mean, _ = self.posterior(i, start, stop)
        return self._whiten(torch.from_numpy(mean).float()).transpose(0, 1).contiguous()

    def air(self) -> Tensor:
        """The whitened latent of an all-air slice, float32 ``[C, h, w]``."""
        return self._whiten(torch.from_numpy(self.header.air)[None])[0]

    def white(self) -> Tensor:
        """The whitened latent of an end slice, float32 ``[C, h, w]``."""
        return self._whiten(torch.from_numpy(self.header.white)[None])[0]

    def start_block(self) -> Tensor:
        """16 air latents, whitened, float32 ``[C, 16, h, w]``."""
        return self.air()[:, None].repeat(1, BLOCK_LENGTH, 1, 1)

    def sample(self, i: int, start: int, stop: int, generator: torch.Generator) -> Tensor:
        """Whitened posterior sample of slices ``start … stop−1``, end slices beyond the last one.

        Args:
            i: The case.
            start: First slice, at least 0.
            stop: Behind the last slice; may lie beyond the volume.
            generator: Source of the noise; equal generators give equal samples.

        Returns:
            Float32 ``[C, stop − start, h, w]``. End slices are posterior means, never a random draw.
        """
        slices = self.cases[i].slices
        mean, logvar = self.posterior(i, min(start, slices), min(stop, slices))
        shape = (stop - start, *mean.shape[1:])
        noise = torch.randn(*shape, generator=generator)[: len(mean)]
        deviation = torch.exp(0.5 * torch.from_numpy(logvar).float())
        z = torch.from_numpy(mean).float() + self.posterior_noise * deviation * noise
        white = self.white()[:, None].expand(-1, shape[0] - len(mean), -1, -1)
        return torch.cat([self._whiten(z).transpose(0, 1), white], dim=1)

    def _whiten(self, z: Tensor) -> Tensor:
        return self.header.whitening.whiten(z)

    def _check(self, file: h5py.File) -> None:
        header = schema.read_latent_header(file)
        if self._shared is None:
            self._shared = header
            return
        for name in ("avae_fingerprint", "text_fingerprint", "whitening", "hu_window"):
            ours, theirs = getattr(self._shared, name), getattr(header, name)
            if ours != theirs:
                raise ShardError(
                    f"{file.filename}: {name} is {theirs}, other shards of the folder have {ours}",
                    "one A-VAE and one text encoder per folder",
                    "encode the data set again into an empty folder",
                )
