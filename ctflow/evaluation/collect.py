"""Features of every volume an evaluation needs: from the cache, else made, shared out over the ranks.

All statistics derive from the files of the cache, and an interrupted evaluation resumes there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ctflow.config.evaluation import EvalConfig
from ctflow.data.nifti import small_nifti
from ctflow.evaluation.cases import CaseReader, CaseSets, RealCase
from ctflow.evaluation.features import (
    CaseFeatures,
    FeatureExtractor,
    packed,
    real_volume,
    unpacked,
)
from ctflow.evaluation.settings import SETTINGS, ScoredVolume, Setting
from ctflow.evaluation.system import EvalSystem, generate_batch, usable_in
from ctflow.files import replaced
from ctflow.generation import BlockMemo
from ctflow.metrics.images import volume_at
from ctflow.processes import Ranks
from ctflow.types import HUVolume

log = logging.getLogger(__name__)

FORMAT = 7
REAL_SET, RECONSTRUCTED = "real", "reconstruction"


@dataclass(frozen=True)
class Wanted:
    """Features of one volume.

    Attributes:
        kind: A setting's name, ``real``, ``reconstruction`` …
        case: Whose volume.
        depends: What the features depend on, beside kind, case, plan and backbones.
        findings: Whether findings are read from the volume.
    """

    kind: str
    case: RealCase
    depends: tuple[str, ...] = ()
    findings: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Everything they depend on, in words."""
        case = self.case
        own = (self.kind, case.case_id, case.digest, f"{case.shape}{case.spacing}", *self.depends)
        return (*own, "findings") if self.findings else own


@dataclass(frozen=True)
class Batch:
    """Volumes that are made together.

    Attributes:
        wanted: One entry for each volume; the same on any number of ranks.
        make: Yields the volumes in that order, one in memory at a time; it is given a function that notes its
            progress.
    """

    wanted: tuple[Wanted, ...]
    make: Callable[[Callable[[str], None]], Iterator[ScoredVolume]]


Group = tuple[Batch, ...]
"""Batches that one rank makes, one after the other."""


@dataclass(frozen=True)
class Collected:
    """Features by kind and case id."""

    features: dict[str, dict[str, CaseFeatures]]

    def of(self, kind: str, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of the cases that have any, in the order of ``cases``."""
        found = self.features.get(kind, {})
        return [found[case.case_id] for case in cases if case.case_id in found]


def stored_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file of the cache; None where there is none, or a torn or damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def store_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write under a temporary name and rename, so that a kill leaves no half file."""
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


class FeatureCache:
    """A folder of one ``.npz`` file per volume, named by what its features depend on.

    Args:
        folder: Made when the first file is written.
        extractor: Makes the features of a volume; all files depend on its plan and backbones.
        ranks: This process among others.

    Attributes:
        reused: Volumes of this process that were found in the cache.
    """

    def __init__(self, folder: Path, extractor: FeatureExtractor, ranks: Ranks) -> None:
        self.folder, self.extractor, self.ranks = folder, extractor, ranks
        identity = {"plan": asdict(extractor.plan), "backbones": extractor.backbones.hashes}
        self._identity = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
        self.reused = 0

    def collect(self, groups: Sequence[Group], shared: tqdm | None = None) -> Collected:
        """All features of all groups; each rank makes what is missing of its groups, then all are read.

        Args:
            groups: What is wanted.
            shared: Progress over several calls; None: this call shows its own.
        """
        mine = [batch for group in self.ranks.share(groups) for batch in group]
        todo = [batch for batch in mine if not all(self.load(wanted) for wanted in batch.wanted)]
        total, missing = (sum(len(batch.wanted) for batch in batches) for batches in (mine, todo))
        self.reused += total - missing
        if total > missing:
            log.info("%d of %d volumes are in %s already", total - missing, total, self.folder)
        with self._progress(total, total - missing, shared) as bar:
            for batch in todo:
                bar.set_description(batch.wanted[0].kind)
                started = time.monotonic()
                for wanted, volume in zip(batch.wanted, batch.make(bar.set_postfix_str), strict=True):
                    seconds = time.monotonic() - started
                    features = self.extractor.extract(volume, wanted.findings)
                    self.store(replace(features, seconds=seconds), wanted)
                    bar.update()
                    started = time.monotonic()
        self.ranks.wait()
        found: dict[str, dict[str, CaseFeatures]] = {}
        for wanted in (wanted for group in groups for batch in group for wanted in batch.wanted):
            loaded = self.load(wanted)
            assert loaded is not None, f"{wanted.kind} features of {wanted.case.case_id} vanished"
            found.setdefault(wanted.kind, {})[wanted.case.case_id] = loaded
        return Collected(found)

    @contextmanager
    def _progress(self, total: int, done: int, shared: tqdm | None) -> Iterator[tqdm]:
        if shared is not None:
            shared.update(done)
            yield shared
            return
        with tqdm(total=total, initial=done, unit="volume", disable=not self.ranks.first) as bar:
            yield bar

    def path(self, names: Sequence[str]) -> Path:
        """File of the features that depend on these."""
        text = json.dumps([self._identity, *names])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def load(self, wanted: Wanted) -> CaseFeatures | None:
        """Stored features of a volume, or None; a torn or damaged file counts as absent and is made again.

        Where no findings are asked for, features with findings serve as well.
        """
        arrays = stored_arrays(self.path(wanted.names))
        try:
            if arrays is not None:
                return unpacked(json.loads(arrays.pop("header").tobytes()), arrays)
        except (ValueError, KeyError):
            log.debug("%s is of another form", self.path(wanted.names))
        return None if wanted.findings else self.load(replace(wanted, findings=True))

    def store(self, features: CaseFeatures, wanted: Wanted) -> None:
        """Keep the features of a volume."""
        header, arrays = packed(features)
        arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
        store_arrays(self.path(wanted.names), arrays)


class Collector:
    """Features of real, reconstructed and generated volumes of one model.

    Args:
        config: The evaluation.
        system: The model.
        reader: Real volumes; None where everything is generated from reports.
        extractor: What is kept of a volume.
        ranks: This process among others.
        findings: Whether findings are read from what their table needs: whole generated volumes, the real
            ones they are compared with, and reconstructions.
        bar: Progress over several calls; None: every call shows its own.
    """

    def __init__(
        self,
        config: EvalConfig,
        system: EvalSystem,
        reader: CaseReader | None,
        extractor: FeatureExtractor,
        ranks: Ranks,
        findings: bool = False,
        bar: tqdm | None = None,
    ) -> None:
        self.config, self.system, self.reader, self.findings = config, system, reader, findings
        self.bar = bar
        self.rollout = config.sampling.applied_to(system.config.rollout)
        self._avae = f"{system.avae.fingerprint()} {system.config.image_size}"
        self.memo = BlockMemo(4 * config.batch_size, first=2)  # settings share their first two blocks
        self.cache = FeatureCache(Path(config.cache), extractor, ranks)

    def collect(self, sets: CaseSets, settings: Sequence[str]) -> Collected:
        """All features of an evaluation; what is cached already is not made again."""
        return self.cache.collect(self.groups(sets, settings), self.bar)

    def real(self, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of real volumes."""
        return self.cache.collect([(self._real(case),) for case in cases], self.bar).of(REAL_SET, cases)

    def generated(self, setting: Setting, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of volumes generated in one setting, without the real ones."""
        return self.cache.collect(self._generated([setting], cases), self.bar).of(setting.name, cases)

    def volumes(
        self, setting: Setting, cases: Sequence[RealCase], chosen: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        """Generated volumes and the real ones at their size by case id, made anew as small NIfTI files.

        Args:
            setting: How they are generated.
            cases: Those of the evaluation.
            chosen: Ids of those that are wanted.
        """
        batch = self._batch(setting, [case for case in cases if case.case_id in chosen])
        made = tqdm(batch.make(lambda _: None), "volumes to look at", len(batch.wanted), unit="volume")
        side = self.system.config.image_size
        return {
            wanted.case.case_id: {
                "generated": small_nifti(volume.scored()),
                "real": small_nifti(volume_at(self._real_volume(wanted.case), side)),
            }
            for wanted, volume in zip(batch.wanted, made, strict=True)
        }

    def _real_volume(self, case: RealCase) -> HUVolume:
        assert self.reader is not None, f"a real volume of {case.case_id} is wanted, and there are none"
        return self.reader.volume(case)

    def groups(self, sets: CaseSets, settings: Sequence[str]) -> list[Group]:
        """Everything that is needed: real volumes, reconstructions of the others, generated batches."""
        batches = [self._real(case, self.findings) for case in sets.evaluated]
        batches += [self._real(case) for case in sets.others]
        batches += [self._reconstructed(case) for case in sets.others]
        settings_run = [SETTINGS[name] for name in settings]
        return [(batch,) for batch in batches] + self._generated(settings_run, sets.evaluated)

    def _real(self, case: RealCase, findings: bool = False) -> Batch:
        return Batch(
            (Wanted(REAL_SET, case, (), findings),),
            lambda note: iter([real_volume(case.case_id, self._real_volume(case))]),
        )

    def _reconstructed(self, case: RealCase) -> Batch:
        return Batch(
            (Wanted(RECONSTRUCTED, case, (self._avae,), self.findings),),
            lambda note: iter([self.system.reconstruct(case, self._real_volume(case))]),
        )

    def _generated(self, settings: Sequence[Setting], cases: Sequence[RealCase]) -> list[Group]:
        """Batches of cases, each in all settings one after the other: they begin with the same blocks."""
        size = self.config.batch_size
        parts = [cases[start : start + size] for start in range(0, len(cases), size)]
        groups = [[self._batch(setting, part) for setting in settings] for part in parts]
        return [tuple(batch for batch in group if batch.wanted) for group in groups]

    def _batch(self, setting: Setting, cases: Sequence[RealCase]) -> Batch:
        usable = [case for case in cases if usable_in(setting, case)]
        sampling = f"{asdict(self.rollout)} {self.config.precision} {self.config.seed}"
        findings = self.findings and not setting.given and not setting.spliced
        wanted = tuple(
            Wanted(setting.name, case, (self.system.fingerprint, case.report, sampling), findings)
            for case in usable
        )

        def make(note: Callable[[str], None]) -> Iterator[ScoredVolume]:
            return generate_batch(
                self.system,
                setting,
                usable,
                self._real_volume,
                self.rollout,
                self.config.seed,
                self.config.precision,
                progress=lambda state: note(f"block {state.index + 1}"),
                memo=self.memo,
            )

        return Batch(wanted, make)
