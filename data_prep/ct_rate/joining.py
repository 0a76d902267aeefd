"""When all parts are done: decide in the order of paths, write those shards anew that a decision changes."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ctflow.config.prep import IngestConfig
from ctflow.data import schema
from ctflow.data.manifest import read_manifest, remove_from_manifest
from ctflow.data.records import SliceRecord
from ctflow.data.writer import shard_index
from ctflow.parts import parts_running, when_free
from data_prep.ct_rate.decisions import Decisions
from data_prep.ct_rate.journal import FOLDER, JOIN_LOCK, Journal
from data_prep.ct_rate.prepare import EXPANDED, Outcome
from data_prep.ct_rate.records import fields_of, record_of, settings
from data_prep.ct_rate.units import SPLITS, Units, UnitWriter, unit_shard

log = logging.getLogger(__name__)
Place = tuple[Path, int]


def join_parts(config: IngestConfig) -> bool:
    """Decide what no part alone could, where every unit is complete.

    The shards are then those of a single run, byte for byte. A kill costs nothing: what a half replaced unit
    lacks is read again.

    Returns:
        Whether everything is decided now; False where a part has not finished.
    """
    output = Path(config.output)
    with when_free(output / FOLDER / JOIN_LOCK):
        if parts_running(output / FOLDER):
            return False
        with Journal(output) as journal:
            units = Units(output)
            if set(units.keys) - journal.closed:
                return False
            if journal.undecided:
                _Join(config, units, journal).work()
        for folder in (output / FOLDER).glob("staging*"):
            shutil.rmtree(folder, ignore_errors=True)
    return True


class _Join:
    def __init__(self, config: IngestConfig, units: Units, journal: Journal) -> None:
        self.config, self.units, self.journal = config, units, journal
        self.output = Path(config.output)
        self.shards: dict[int, list[Path]] = {}
        self.places: dict[int, dict[str, Place]] = {}
        for split in SPLITS:
            for entry in read_manifest(self.output / split):
                number, path = shard_index(entry.file), self.output / split / entry.file
                self.shards.setdefault(number, []).append(path)
                for index, case in enumerate(entry.cases):
                    self.places.setdefault(number, {})[case.case_id] = (path, index)

    def work(self) -> None:
        """Decide what is undecided, write the units anew that this changes, and note it in the journal."""
        outcomes, undecided = self.journal.outcomes, self.journal.undecided
        there = {case for places in self.places.values() for case in places}
        standing = [
            o for key, o in outcomes.items() if key not in undecided and o.usable and o.case_id in there
        ]
        decisions = Decisions(self.config, standing, {o.case_id for o in standing})
        kept: dict[int, list[tuple[Outcome, Place]]] = {}
        for outcome in standing:
            if self._find(outcome):  # else a volume of an older output, whose shards have no unit
                self._keep(kept, outcome, outcome)
        decided = []
        for key in sorted(undecided):
            outcome = copy.deepcopy(outcomes[key])
            if outcome.usable and decisions.decide(outcome):
                self._keep(kept, outcome, outcomes[key])
            decided.append(outcome)
        changed = {self.units.of(key) for key in undecided if outcomes[key].status != EXPANDED}
        numbers = sorted(number for number in changed if number is not None)
        rewritten = 0
        for number in tqdm(numbers, desc="joining", unit="unit", disable=not self.config.progress):
            rewritten += self._write(number, sorted(kept.get(number, []), key=lambda pair: pair[0].key))
        self.journal.add(*decided)
        log.info(
            "joined %d items of the parts; %d of %d units were written anew",
            len(decided),
            rewritten,
            len(numbers),
        )

    def _keep(self, kept: dict[int, list[tuple[Outcome, Place]]], outcome: Outcome, read: Outcome) -> None:
        number, place = self.units.of(outcome.key), self._find(read)
        assert number is not None and place is not None, f"{outcome.key} is in no unit's shard"
        kept.setdefault(number, []).append((outcome, place))

    def _find(self, outcome: Outcome) -> Place | None:
        """Where a volume lies: under its working name, or its own where a join was cut short."""
        number = self.units.of(outcome.key)
        cases = self.places.get(number, {}) if number is not None else {}
        return cases.get(self.units.working_name(outcome)) or cases.get(outcome.case_id)

    def _write(self, number: int, kept: list[tuple[Outcome, Place]]) -> bool:
        """Bring a unit's shards to what was decided; whether they had to change."""
        expected: dict[str, list[tuple[Outcome, Place]]] = {split: [] for split in SPLITS}
        for outcome, place in kept:
            expected[outcome.split].append((outcome, place))
        if self._stands(number, expected):
            return False
        writer = UnitWriter(self.output, number, self.units.sizes[number], settings(self.config), {})
        try:
            for outcome, place in kept:
                writer.append(record_of(outcome, self._read(place).hu), commit=False)
        except BaseException:
            writer.discard()
            raise
        self.journal.open_unit(number)
        written = writer.close()
        for split in SPLITS:
            old = {p.name for p in self.shards.get(number, []) if p.parent.name == split} - written[split]
            if old:
                remove_from_manifest(self.output / split, old)
                for name in old:
                    (self.output / split / name).unlink()
        self.journal.close_unit(number)
        return True

    def _stands(self, number: int, expected: dict[str, list[tuple[Outcome, Place]]]) -> bool:
        """Whether the shards hold what was decided, in order and cut as one run cuts them."""
        size = self.units.sizes[number]
        there = {path: _metadata(path) for path in self.shards.get(number, [])}
        wanted: dict[Path, list[dict[str, Any]]] = {}
        for split, pairs in expected.items():
            for position, (outcome, _) in enumerate(pairs):
                path = self.output / split / unit_shard(number, position // size)
                wanted.setdefault(path, []).append(_plain(fields_of(outcome)))
        return wanted == there

    def _read(self, place: Place) -> SliceRecord:
        with schema.open_shard(place[0], schema.SLICES) as file:
            return schema.read_slice_record(file, place[1])


def _metadata(path: Path) -> list[dict[str, Any]]:
    with schema.open_shard(path, schema.SLICES) as file:
        return [_plain(schema.read_metadata(file, index)) for index in range(schema.case_count(file))]


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as JSON gives them back."""
    return json.loads(json.dumps(fields, default=asdict))
