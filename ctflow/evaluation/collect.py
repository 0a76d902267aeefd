"""Features of every volume an evaluation needs: from the cache, else made, shared out over the ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.cache import CaseFeatures, FeatureCache
from ctflow.evaluation.cases import CaseReader, CaseSets, RealCase
from ctflow.evaluation.features import FeatureExtractor, real_volume
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.settings import REGISTRY, ScoredVolume, Setting
from ctflow.evaluation.system import EvalSystem, generate_batch, usable_in
from ctflow.generation import BlockMemo

log = logging.getLogger(__name__)

REAL_SET, RECONSTRUCTED = "real", "reconstruction"


@dataclass(frozen=True)
class Unit:
    """Volumes that are made together.

    Attributes:
        kind: A setting's name, ``real`` or ``reconstruction``.
        cases: One case, or a batch for a setting; the same on any number of ranks.
        measured: Whether the volumes' findings are read.
    """

    kind: str
    cases: tuple[RealCase, ...]
    measured: bool = False


Group = tuple[Unit, ...]
"""Units that one rank makes, one after the other."""


@dataclass
class Collected:
    """Features by kind and case id."""

    features: dict[str, dict[str, CaseFeatures]]

    def of(self, kind: str, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of the cases that have any, in the order of ``cases``."""
        found = self.features.get(kind, {})
        return [found[case.case_id] for case in cases if case.case_id in found]


class Collector:
    """Makes features and keeps them on disk.

    Args:
        config: The evaluation.
        system: The model.
        reader: Real volumes.
        extractor: What is kept of a volume.
        ranks: This process among others.
        measured: Whether findings are read from what their table needs: whole generated volumes, the real
            ones they are compared with, and reconstructions.

    Attributes:
        reused: Volumes of this process whose features were found in the cache.
    """

    def __init__(
        self,
        config: EvalConfig,
        system: EvalSystem,
        reader: CaseReader,
        extractor: FeatureExtractor,
        ranks: Ranks,
        measured: bool = False,
    ) -> None:
        self.config, self.system, self.reader = config, system, reader
        self.extractor, self.ranks, self.measured = extractor, ranks, measured
        self.rollout = config.sampling.applied_to(system.config.rollout)
        self._avae = f"{system.avae.fingerprint()} {system.config.image_size}"
        self.memo = BlockMemo(4 * config.batch_size, first=2)  # settings share their first two blocks
        self.reused = 0
        self.cache = FeatureCache(
            folder=Path(config.cache),
            identity={"plan": asdict(extractor.plan), "backbones": extractor.backbones.hashes},
        )

    def collect(self, sets: CaseSets, settings: Sequence[str]) -> Collected:
        """All features of an evaluation; what is cached already is not made again."""
        return self._collect(self.groups(sets, settings))

    def real(self, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of real volumes."""
        return self._collect([(Unit(REAL_SET, (case,)),) for case in cases]).of(REAL_SET, cases)

    def generated(self, setting: Setting, cases: Sequence[RealCase]) -> list[CaseFeatures]:
        """Features of volumes generated in one setting, without the real ones."""
        return self._collect(self._batches([setting], cases)).of(setting.name, cases)

    def _collect(self, groups: Sequence[Group]) -> Collected:
        mine = [unit for group in self.ranks.share(groups) for unit in group]
        todo = [unit for unit in mine if not all(self._load(unit, case) for case in unit.cases)]
        total, done = sum(len(u.cases) for u in mine), sum(len(u.cases) for u in mine if u not in todo)
        self.reused += done
        if done:
            log.info("%d of %d volumes are in %s already", done, total, self.cache.folder)
        with tqdm(total=total, initial=done, unit="case", disable=not self.ranks.first) as bar:
            for unit in todo:
                bar.set_description(unit.kind)
                started = time.monotonic()
                for volume, case in self._make(unit, bar.set_postfix_str):
                    seconds = time.monotonic() - started
                    features = self.extractor.extract(volume, unit.measured)
                    features.info["seconds"] = seconds
                    self.cache.store(features, *self._names(unit, case))
                    bar.update()
                    started = time.monotonic()
        self.ranks.wait()
        everything: dict[str, dict[str, CaseFeatures]] = {}
        for unit in (unit for group in groups for unit in group):
            for case in unit.cases:
                loaded = self._load(unit, case)
                assert loaded is not None, f"{unit.kind} features of {case.case_id} vanished from the cache"
                everything.setdefault(unit.kind, {})[case.case_id] = loaded
        return Collected(everything)

    def groups(self, sets: CaseSets, settings: Sequence[str]) -> list[Group]:
        """Everything that is needed: real volumes, reconstructions of the others, generated batches."""
        units = [Unit(REAL_SET, (case,), self.measured) for case in sets.evaluated]
        units += [Unit(REAL_SET, (case,)) for case in sets.others]
        units += [Unit(RECONSTRUCTED, (case,), self.measured) for case in sets.others]
        return [(unit,) for unit in units] + self._batches(
            [REGISTRY[name] for name in settings], sets.evaluated
        )

    def _batches(self, settings: Sequence[Setting], cases: Sequence[RealCase]) -> list[Group]:
        """Batches of cases, each in all settings one after the other: they begin with the same blocks."""
        groups = []
        for start in range(0, len(cases), self.config.batch_size):
            batch = cases[start : start + self.config.batch_size]
            units = []
            for setting in settings:
                measured = self.measured and not setting.given and not setting.spliced
                usable = tuple(case for case in batch if usable_in(setting, case))
                units += [Unit(setting.name, usable, measured)] if usable else []
            groups.append(tuple(units))
        return groups

    def _make(self, unit: Unit, note: Callable[[str], None]) -> Iterator[tuple[ScoredVolume, RealCase]]:
        if unit.kind in REGISTRY:
            yield from zip(self._generate(REGISTRY[unit.kind], unit.cases, note), unit.cases, strict=True)
            return
        for case in unit.cases:
            volume = self.reader.volume(case)
            if unit.kind == REAL_SET:
                yield real_volume(case.case_id, volume), case
            else:
                yield self.system.reconstruct(case, volume), case

    def _generate(
        self, setting: Setting, cases: Sequence[RealCase], note: Callable[[str], None]
    ) -> Iterator[ScoredVolume]:
        return generate_batch(
            self.system,
            setting,
            cases,
            self.reader.volume,
            self.rollout,
            self.config.seed,
            self.config.precision,
            progress=lambda state: note(f"block {state.block + 1}"),
            memo=self.memo,
        )

    def _names(self, unit: Unit, case: RealCase) -> tuple[str, ...]:
        """What a volume's features depend on, beside the plan and the backbones."""
        own: tuple[str, ...] = (unit.kind, case.case_id, case.digest, f"{case.shape}{case.spacing}")
        own += ("measured",) if unit.measured else ()
        if unit.kind == REAL_SET:
            return own
        if unit.kind == RECONSTRUCTED:
            return (*own, self._avae)
        sampling = f"{asdict(self.rollout)} {self.config.precision} {self.config.seed}"
        return (*own, self.system.fingerprint, case.report, sampling)

    def _load(self, unit: Unit, case: RealCase) -> CaseFeatures | None:
        """What is stored of a volume; where no measurement is asked for, a measured one serves as well."""
        loaded = self.cache.load(*self._names(unit, case))
        if loaded is None and not unit.measured:
            loaded = self.cache.load(*self._names(replace(unit, measured=True), case))
        return loaded
