"""The run: what is to do goes to the workers, what comes back goes into the shards, in the items' order."""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ctflow.config.prep import IngestConfig
from ctflow.data.manifest import read_manifest
from ctflow.data.writer import PARTIAL, shard_index
from ctflow.parts import WHOLE, Part
from data_prep.ct_rate.decisions import Decisions
from data_prep.ct_rate.discovery import Item, Source
from data_prep.ct_rate.journal import FOLDER, Journal
from data_prep.ct_rate.memory import available_bytes, needed_bytes
from data_prep.ct_rate.naming import case_id_of, patient_and_split
from data_prep.ct_rate.pool import GuardedPool, failure
from data_prep.ct_rate.prepare import EXCLUDED, EXPANDED, REFUSED, Job, Outcome, outcome_fingerprint
from data_prep.ct_rate.reasons import PASSING
from data_prep.ct_rate.records import record_of, settings
from data_prep.ct_rate.tables import CsvRow, Tables
from data_prep.ct_rate.units import SPLITS, UnitWriter, planned_units, units_again

log = logging.getLogger(__name__)
_AHEAD = 16
"""Prepared volumes that may wait on disk for an earlier item, per worker."""


class IngestRun:
    """One run over a source, or over a part of it.

    Args:
        config: Settings.
        source: What was found.
        tables: The CSVs.
        journal: What earlier runs did; this one adds to it.
        part: The share of the units that this run does.
        decides: Whether outcomes are decided on at once; else they are kept as they were read, and all
            volumes with them, until the parts are joined.
        retry: Whether refusals whose cause may have passed are tried again.
    """

    def __init__(
        self,
        config: IngestConfig,
        source: Source,
        tables: Tables,
        journal: Journal,
        part: Part = WHOLE,
        decides: bool = True,
        retry: bool = True,
    ) -> None:
        self.config, self.tables, self.journal = config, tables, journal
        self.part, self._decides, self._retry = part, decides, retry
        self.output = Path(config.output)
        self.alone = len(source.items) == 1
        self._numbers = itertools.count()
        self.seen: dict[str, Outcome] = {}
        self._pending: list[tuple[str, Item]] = []
        self._waiting: list[tuple[str, Outcome, Path]] = []
        self._writers: dict[int, UnitWriter] = {}
        self._left: dict[int, set[str]] = {}
        self._shards: dict[int, dict[str, set[str]]] = {}
        self._cases: set[str] = set()
        for split in SPLITS:
            for entry in read_manifest(self.output / split):
                self._cases |= {case.case_id for case in entry.cases}
                self._shards.setdefault(shard_index(entry.file), {}).setdefault(split, set()).add(entry.file)
        done = [o for o in journal.outcomes.values() if o.usable and o.case_id in self._cases]
        self._decisions = Decisions(config, done if decides else [], self._cases)
        self._unclaimed = self._cases - {o.case_id for o in journal.outcomes.values() if o.usable}
        self._tell_left_out(source)
        expected = [(item.key, case_id_of(item.key), self._expected_side(item)) for item in source.items]
        self.units = planned_units(self.output, expected, config.volumes_per_shard)
        for item in source.items:
            number = self.units.of(item.key)
            if number is not None and part.owns(number):
                self._plan(item)
        self._again()

    def _tell_left_out(self, source: Source) -> None:
        for key, status, code, detail in source.told:
            self.seen[key] = Outcome(key, "", status, [[code, detail]])
            _tell(self.seen[key])
        for key, detail in source.excluded.items():
            reasons = [["listed_no_chest", detail]]
            self.seen[key] = Outcome(key, "", EXCLUDED, reasons, case_id=case_id_of(key))
            if self.seen[key].case_id in self._cases:
                log.warning("%s is %s, but an earlier run put it into the shards", key, detail)

    def _expected_side(self, item: Item) -> str:
        """The side of the split, as far as names and tables tell."""
        return patient_and_split(item.key, case_id_of(item.key), self._row(item).patient_id, self.config)[1]

    def _again(self) -> None:
        """Items whose unit is complete, and that are tried again, get units of their own."""
        keys = sorted(key for key, _ in self._pending if self.units.of(key) in self.journal.closed)
        if keys:
            self.units = units_again(self.output, keys, self.config.volumes_per_shard, self.part)
        self._left = {}
        for key, _ in self._pending:
            self._enter(key)

    def _enter(self, key: str) -> None:
        number = self.units.of(key)
        assert number is not None, f"{key} is in no unit"
        self._left.setdefault(number, set()).add(key)

    @property
    def pending(self) -> int:
        """Items that are still to be done."""
        return len(self._pending)

    def work(self) -> None:
        """Do everything that is pending."""
        self._remove_partial()
        for number in self.units.keys:
            if self.part.owns(number) and number not in self._left and number not in self.journal.closed:
                self.journal.close_unit(number)
        if not self._pending:
            return
        staging = self.output / FOLDER / f"staging-{self.part.index}-of-{self.part.count}"
        with ExitStack() as stack:
            stack.callback(self._discard)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            count = min(self.config.workers or os.cpu_count() or 1, len(self._pending))
            pool = GuardedPool(count, self.config.timeout, self.config.memory_gb)
            stack.callback(pool.close)
            bar = stack.enter_context(
                tqdm(total=len(self._pending), desc="scans", unit="scan", disable=not self.config.progress)
            )
            stack.enter_context(logging_redirect_tqdm())
            self._loop(pool, staging, bar, _AHEAD * count)
        shutil.rmtree(staging, ignore_errors=True)

    def _remove_partial(self) -> None:
        """Remove what a killed run of this part left."""
        for split in SPLITS:
            for path in (self.output / split).glob(f".*{PARTIAL}"):
                number = shard_index(path.name.removeprefix(".").removesuffix(PARTIAL))
                if self.part.owns(number):
                    path.unlink()

    def _discard(self) -> None:
        for writer in self._writers.values():
            writer.discard()

    def _loop(self, pool: GuardedPool, staging: Path, bar: tqdm, ahead: int) -> None:
        running: dict[str, float] = {}
        memory = available_bytes()
        while self._pending or running:
            while self._pending and pool.free() and (not running or len(self._waiting) < ahead):
                need = needed_bytes(self._pending[0][1])
                if running and need + sum(running.values()) > memory:
                    break  # read when others have given their memory back
                key, item = heapq.heappop(self._pending)
                job = self._job(item, staging / f"{next(self._numbers):07d}.npy")
                if need > memory:
                    detail = f"needs {need / 2**30:.1f} GiB of memory, {memory / 2**30:.1f} GiB are free"
                    heapq.heappush(self._waiting, (key, failure(job, "too_large", detail), Path(job.staging)))
                    bar.update()
                    continue
                running[key] = need
                pool.submit(job)
            for job, outcome in pool.results() if running else ():
                del running[job.item.key]
                if outcome.status == EXPANDED:
                    self.journal.add(outcome)
                    bar.total += self._expand(outcome)
                    for key, status, *_ in outcome.told:
                        if status == REFUSED:
                            _tell(self.seen[key])
                    self._finish(outcome.key)
                else:
                    heapq.heappush(self._waiting, (outcome.key, outcome, Path(job.staging)))
                bar.update()
            unfinished = min([*running, *(key for key, _ in self._pending[:1])], default=None)
            while self._waiting and (unfinished is None or self._waiting[0][0] < unfinished):
                _, outcome, path = heapq.heappop(self._waiting)
                self._settle(outcome, path)

    def _plan(self, item: Item) -> bool:
        """Whether an item is to be done; a finished one counts, a finished folder has its series planned."""
        before = self.journal.outcomes.get(item.key)
        row = self._row(item)
        if before is not None and before.usable and self._is_written(before):
            if before.fingerprint != outcome_fingerprint(item, row):
                log.warning(
                    "%s has changed since it went into the shards; they keep what they have", item.key
                )
            self.seen[item.key] = before
            return False
        stands = before is not None and before.fingerprint == outcome_fingerprint(item, row)
        if before is not None and self._retry:
            stands = stands and not _may_pass(before) and self._is_out(before)
        if before is None or not stands:
            heapq.heappush(self._pending, (item.key, item))
            self._enter(item.key)
            return True
        self.seen[item.key] = before
        if before.status == EXPANDED:
            self._expand(before)
        return False

    def _is_written(self, outcome: Outcome) -> bool:
        """Whether the volume of an earlier outcome lies in a shard."""
        undecided = outcome.key in self.journal.undecided
        return (self.units.working_name(outcome) if undecided else outcome.case_id) in self._cases

    def _is_out(self, outcome: Outcome) -> bool:
        """Whether an outcome that lies in no shard belongs into none."""
        closed = outcome.key in self.journal.undecided and self.units.of(outcome.key) in self.journal.closed
        return not outcome.usable or self._decisions.drops(outcome) or closed

    def _expand(self, outcome: Outcome) -> int:
        """Plan the series of a folder and tell what else lies in it; returns how many are to be done."""
        for key, status, code, detail in outcome.told:
            self.seen[key] = Outcome(key, "", status, [[code, detail]])
        items = [Item(**{**found, "files": tuple(found["files"])}) for found in outcome.items]
        self.tables.found(item.key for item in items)
        self.alone = self.alone and len(items) == 1
        return sum(self._plan(item) for item in items)

    def _row(self, item: Item) -> CsvRow:
        return self.tables.row(item.key, self.alone, item.beside_others)

    def _job(self, item: Item, staging: Path) -> Job:
        return Job(item, self._row(item), self.config, str(staging), self.tables.has_reports)

    def _settle(self, outcome: Outcome, path: Path) -> None:
        """Journal first, then the shard: a volume in a shard is always known; any other is done again."""
        self.seen[outcome.key] = outcome
        if self._decides:
            goes_in = self._decided(outcome)
            self.journal.add(outcome)
        else:
            self.journal.add(outcome)
            outcome = copy.copy(outcome)
            outcome.case_id = self.units.working_name(outcome)
            goes_in = (
                outcome.usable and not self._decisions.drops(outcome) and outcome.case_id not in self._cases
            )
        if outcome.reasons and [code for code, _ in outcome.reasons] != ["label_map"]:
            _tell(outcome)
        if goes_in:
            self._writer(outcome.key).append(record_of(outcome, np.load(path)))
        path.unlink(missing_ok=True)
        self._finish(outcome.key)

    def _decided(self, outcome: Outcome) -> bool:
        """Decide on an outcome; whether its volume goes into a shard."""
        # In a shard, but the journal was lost: now it is known again.
        known = outcome.case_id in self._unclaimed
        self._unclaimed.discard(outcome.case_id)
        return outcome.usable and self._decisions.decide(outcome, own_name=known)

    def _writer(self, key: str) -> UnitWriter:
        number = self.units.of(key)
        assert number is not None, f"{key} is in no unit"
        if number not in self._writers:
            taken, size = self._shards.get(number, {}), self.units.sizes[number]
            self._writers[number] = UnitWriter(self.output, number, size, settings(self.config), taken)
        return self._writers[number]

    def _finish(self, key: str) -> None:
        """An item is done; with its unit's last one the unit's shards are complete."""
        number = self.units.of(key)
        assert number is not None, f"{key} is in no unit"
        self._left[number].discard(key)
        if not self._left[number]:
            del self._left[number]
            if number in self._writers:
                self._writers.pop(number).close()
            self.journal.close_unit(number)


def _tell(outcome: Outcome) -> None:
    text = "; ".join(f"{code} ({detail})" for code, detail in outcome.reasons)
    level = logging.INFO if outcome.usable else logging.WARNING
    log.log(level, "%s %s: %s", outcome.status, outcome.key, text)


def _may_pass(outcome: Outcome) -> bool:
    """Whether an earlier refusal, of an item or of a file in a folder, may have a cause outside it."""
    codes = [reason[0] for reason in outcome.reasons] if outcome.status == REFUSED else []
    codes += [code for _, status, code, _ in outcome.told if status == REFUSED]
    return bool(set(codes) & set(PASSING))
