"""The run: what is to do goes to the workers, what comes back goes into the shards, in the items' order."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ctflow.config.prep import IngestConfig
from ctflow.data.manifest import read_manifest
from ctflow.data.records import SliceRecord
from ctflow.data.writer import SliceShardWriter
from ctflow.types import Acquisition
from data_prep.ct_rate.discovery import Item, Source
from data_prep.ct_rate.journal import FOLDER, Journal
from data_prep.ct_rate.memory import available_bytes, needed_bytes
from data_prep.ct_rate.naming import case_id_of, distinct_case_id, is_published, patient_and_split
from data_prep.ct_rate.patients import PatientLinks
from data_prep.ct_rate.pool import GuardedPool, failure
from data_prep.ct_rate.prepare import EXCLUDED, EXPANDED, FLAGGED, REFUSED, Job, Outcome, outcome_fingerprint
from data_prep.ct_rate.reasons import PASSING
from data_prep.ct_rate.tables import CsvRow, Tables

log = logging.getLogger(__name__)
SPLITS = ("train", "valid")
_AHEAD = 16
"""Prepared volumes that may wait on disk for an earlier item, per worker."""


class IngestRun:
    """One run over a source.

    Args:
        config: Settings.
        source: What was found.
        tables: The CSVs.
        journal: What earlier runs did; this one adds to it.
    """

    def __init__(self, config: IngestConfig, source: Source, tables: Tables, journal: Journal) -> None:
        self.config, self.tables, self.journal = config, tables, journal
        self.output = Path(config.output)
        self.alone = len(source.items) == 1
        self._numbers = itertools.count()
        self.seen: dict[str, Outcome] = {}
        self._cases = completed_cases(self.output)
        done = [o for o in journal.outcomes.values() if o.usable and o.case_id in self._cases]
        done.sort(key=lambda o: o.key)
        self._contents = {o.voxels_sha256: o for o in reversed(done)}  # the first of equal ones, as in one go
        self._patients = PatientLinks(config.valid_fraction, config.patient_pattern)
        for outcome in done:
            self._patients.remember(outcome)
        self._unclaimed = self._cases - {o.case_id for o in journal.outcomes.values() if o.usable}
        self._pending: list[tuple[str, Item]] = []
        self._waiting: list[tuple[str, Outcome, Path]] = []
        for key, status, code, detail in source.told:
            self.seen[key] = Outcome(key, "", status, [[code, detail]])
            _tell(self.seen[key])
        for key, detail in source.excluded.items():
            reasons = [["listed_no_chest", detail]]
            self.seen[key] = Outcome(key, "", EXCLUDED, reasons, case_id=case_id_of(key))
            if self.seen[key].case_id in self._cases:
                log.warning("%s is %s, but an earlier run put it into the shards", key, detail)
        for item in source.items:
            self._plan(item)

    @property
    def pending(self) -> int:
        """Items that are still to be done."""
        return len(self._pending)

    def work(self) -> None:
        """Do everything that is pending.

        Raises:
            ShardError: Another process writes to the same output.
        """
        if not self._pending:
            return
        staging = self.output / FOLDER / "staging"
        provenance = {"command": "data_prep.ct_rate", "settings": settings(self.config)}
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(
                    SliceShardWriter(self.output / split, self.config.volumes_per_shard, provenance)
                )
                for split in SPLITS
            }
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            count = min(self.config.workers or os.cpu_count() or 1, len(self._pending))
            pool = GuardedPool(count, self.config.timeout, self.config.memory_gb)
            stack.callback(pool.close)
            bar = stack.enter_context(
                tqdm(total=len(self._pending), desc="scans", unit="scan", disable=not self.config.progress)
            )
            stack.enter_context(logging_redirect_tqdm())
            self._loop(pool, writers, staging, bar, _AHEAD * count)
        shutil.rmtree(staging, ignore_errors=True)

    def _loop(
        self, pool: GuardedPool, writers: dict[str, SliceShardWriter], staging: Path, bar: tqdm, ahead: int
    ) -> None:
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
                else:
                    heapq.heappush(self._waiting, (outcome.key, outcome, Path(job.staging)))
                bar.update()
            unfinished = min([*running, *(key for key, _ in self._pending[:1])], default=None)
            while self._waiting and (unfinished is None or self._waiting[0][0] < unfinished):
                _, outcome, path = heapq.heappop(self._waiting)
                self._settle(outcome, path, writers)

    def _plan(self, item: Item) -> bool:
        """Whether an item is to be done; a finished one counts, a finished folder has its series planned."""
        before = self.journal.outcomes.get(item.key)
        row = self._row(item)
        if before is not None and before.usable and before.case_id in self._cases:
            if before.fingerprint != outcome_fingerprint(item, row):
                log.warning(
                    "%s has changed since it went into the shards; they keep what they have", item.key
                )
            self.seen[item.key] = before
            return False
        stands = (
            before is not None
            and before.fingerprint == outcome_fingerprint(item, row)
            and not _may_pass(before)
        )
        if before is None or not stands or (before.usable and not self._dropped(before)):
            heapq.heappush(self._pending, (item.key, item))
            return True
        self.seen[item.key] = before
        if before.status == EXPANDED:
            self._expand(before)
        return False

    def _dropped(self, outcome: Outcome) -> bool:
        """Flagged scans stay out of the shards where ``keep_flagged`` is false."""
        return outcome.status == FLAGGED and not self.config.keep_flagged

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

    def _settle(self, outcome: Outcome, path: Path, writers: dict[str, SliceShardWriter]) -> None:
        """Journal first, then the shard: a volume in a shard is always known; any other is done again."""
        if outcome.usable and outcome.case_id in self._cases and outcome.case_id not in self._unclaimed:
            self._rename(outcome)
        there = outcome.usable and outcome.case_id in self._cases
        # In a shard, but the journal was lost: now it is known again.
        self._unclaimed.discard(outcome.case_id)
        if outcome.usable:
            self._compare(outcome)
        self.journal.add(outcome)
        self.seen[outcome.key] = outcome
        if outcome.reasons and [code for code, _ in outcome.reasons] != ["label_map"]:
            _tell(outcome)
        if outcome.usable and not self._dropped(outcome):
            self._patients.remember(outcome)
        if outcome.usable and not there and not self._dropped(outcome):
            self._cases.add(outcome.case_id)
            writers[outcome.split].append(_record(outcome, path))
        path.unlink(missing_ok=True)

    def _rename(self, outcome: Outcome) -> None:
        """Another case of this name is in the shards: a duplicate by CT-RATE's names, else named anew."""
        if is_published(outcome.case_id):
            outcome.status = REFUSED
            outcome.reasons = [["duplicate", f"a case {outcome.case_id} is already there"]]
            return
        alone = outcome.patient_id == outcome.case_id
        outcome.case_id = distinct_case_id(outcome.case_id, outcome.key)
        if alone:
            outcome.patient_id, outcome.split = patient_and_split(
                outcome.key, outcome.case_id, "", self.config
            )

    def _compare(self, outcome: Outcome) -> None:
        """A copy or reconstruction of an earlier volume is the same patient's, on the same side."""
        first = self._contents.setdefault(outcome.voxels_sha256, outcome)
        if first.key != outcome.key:
            outcome.status = FLAGGED
            outcome.reasons = [*outcome.reasons, ["duplicate_content", f"equals {first.case_id}"]]
        conflict = self._patients.join(outcome, first if first.key != outcome.key else None)
        if conflict:
            outcome.status, outcome.reasons = REFUSED, [["split_conflict", conflict]]


def _tell(outcome: Outcome) -> None:
    text = "; ".join(f"{code} ({detail})" for code, detail in outcome.reasons)
    level = logging.INFO if outcome.usable else logging.WARNING
    log.log(level, "%s %s: %s", outcome.status, outcome.key, text)


def _may_pass(outcome: Outcome) -> bool:
    """Whether an earlier refusal, of an item or of a file in a folder, may have a cause outside it."""
    codes = [reason[0] for reason in outcome.reasons] if outcome.status == REFUSED else []
    codes += [code for _, status, code, _ in outcome.told if status == REFUSED]
    return bool(set(codes) & set(PASSING))


def completed_cases(output: Path) -> set[str]:
    """Cases that lie in complete shards."""
    return {
        case.case_id for split in SPLITS for entry in read_manifest(output / split) for case in entry.cases
    }


def settings(config: IngestConfig) -> dict[str, object]:
    """The keys that decide what a prepared volume looks like; a folder of shards has one set of them."""
    names = (
        "resolution",
        "z_spacing",
        "field_of_view",
        "max_slices",
        "valid_fraction",
        "patient_pattern",
        "keep_flagged",
        "keep_no_chest",
    )
    values = asdict(config)
    return {name: values[name] for name in names}


def _record(outcome: Outcome, path: Path) -> SliceRecord:
    z, y, x = outcome.spacing
    return SliceRecord(
        case_id=outcome.case_id,
        patient_id=outcome.patient_id,
        hu=np.load(path),
        spacing=(z, y, x),
        report=outcome.report,
        labels=outcome.labels,
        source_sha256=outcome.source_sha256,
        split=outcome.split,
        truth_path=outcome.truth_path,
        extra={"ingest": outcome.facts, "flags": outcome.reasons},
        acquisition=Acquisition(**outcome.acquisition),
    )
