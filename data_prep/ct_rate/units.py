"""Units: the items that share a shard, planned from names before anything is read.

Which items those are depends on the source alone, so any number of parts writes the same shards. A unit has a
number, and its shards bear it: ``train/shard-00007.h5``; a volume that turns out to be on the other side of
the split lies under the same number there. Items that come later, or are tried again, are units of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ctflow.data import schema
from ctflow.data.manifest import read_manifest
from ctflow.data.records import SliceRecord
from ctflow.data.writer import ShardFile, shard_index, shard_name
from ctflow.files import write_text
from ctflow.locks import short_lock
from ctflow.parts import WHOLE, Part
from data_prep.ct_rate.journal import FOLDER
from data_prep.ct_rate.naming import case_id_of, distinct_case_id
from data_prep.ct_rate.prepare import Outcome

SPLITS = ("train", "valid")
UNITS = "units.jsonl"


class Units:
    """The plan of an output, kept on disk; later units take an item over from earlier ones.

    Args:
        output: Folder of the run.

    Attributes:
        keys: A unit's items.
        sizes: A unit's volumes per shard.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / FOLDER / UNITS
        self.keys: dict[int, list[str]] = {}
        self.sizes: dict[int, int] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                unit = json.loads(line)
                self.keys[unit["unit"]], self.sizes[unit["unit"]] = unit["keys"], unit["size"]
        self._of = {key: number for number, keys in self.keys.items() for key in keys}

    def of(self, key: str) -> int | None:
        """The unit of an item, or of a series or a file by its folder's; None: in none yet."""
        folder = key.partition("#")[0]
        names = (key, f"{key}/", folder, f"{folder.rpartition('/')[0]}/")
        return next((self._of[name] for name in names if name in self._of), None)

    def working_name(self, outcome: Outcome) -> str:
        """The case under which a part writes a volume: longer where others of the unit have the name too."""
        number = self.of(outcome.key)
        mine = case_id_of(outcome.key.partition("#")[0])
        shared = number is not None and sum(case_id_of(key) == mine for key in self.keys[number]) > 1
        return distinct_case_id(outcome.case_id, outcome.key) if shared else outcome.case_id

    def add(self, groups: Sequence[list[str]], size: int, part: Part = WHOLE) -> None:
        """Append units with the next free numbers that are this part's."""
        number = 1 + max([*self.keys, *_written(self.output)], default=-1)
        for keys in groups:
            while not part.owns(number):
                number += 1
            self.keys[number], self.sizes[number] = keys, size
            self._of |= dict.fromkeys(keys, number)
            number += 1
        if groups:
            lines = [
                json.dumps({"unit": n, "size": self.sizes[n], "keys": self.keys[n]})
                for n in sorted(self.keys)
            ]
            write_text(self.path, "\n".join(lines) + "\n")


def planned_units(output: Path, items: Sequence[tuple[str, str, str]], size: int) -> Units:
    """The plan, with units for what no unit holds yet; all parts make the same one, the first writes it.

    Args:
        output: Folder of the run.
        items: Key, case and expected side of the split, in the keys' order.
        size: Items of a unit. Items of one case stay together, so that a part alone can tell them apart.
    """
    with _changing(output) as units:
        units.add(_groups([item for item in items if units.of(item[0]) is None], size), size)
    return units


def units_again(output: Path, keys: Sequence[str], size: int, part: Part) -> Units:
    """The plan, with units of this part for items that are tried again after their units were complete."""
    with _changing(output) as units:
        units.add([list(keys[i : i + size]) for i in range(0, len(keys), size)], size, part)
    return units


@contextmanager
def _changing(output: Path) -> Iterator[Units]:
    (output / FOLDER).mkdir(parents=True, exist_ok=True)
    with short_lock(output / FOLDER / ".units.lock"):
        yield Units(output)


def _groups(items: Sequence[tuple[str, str, str]], size: int) -> list[list[str]]:
    groups: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    by_case: dict[str, list[str]] = {}
    for key, case, split in items:
        group = by_case.get(case)
        if group is None:
            if not groups[split] or len(groups[split][-1]) >= size:
                groups[split].append([])
            group = by_case[case] = groups[split][-1]
        group.append(key)
    return [group for split in SPLITS for group in groups[split]]


def _written(output: Path) -> set[int]:
    return {shard_index(entry.file) for split in SPLITS for entry in read_manifest(output / split)}


class UnitWriter:
    """Writes the shards of one unit, at most so many volumes in each.

    Args:
        output: Folder of the run.
        number: The unit's.
        size: Volumes per shard.
        settings: What shaped the volumes; kept in every shard's header.
        taken: Shards of the unit that are complete, by split.
    """

    def __init__(
        self, output: Path, number: int, size: int, settings: Mapping[str, Any], taken: Mapping[str, set[str]]
    ) -> None:
        self.output, self.number, self.size = output, number, size
        self._provenance = {"command": "data_prep.ct_rate", "settings": dict(settings)}
        self._taken = {split: set(taken.get(split, ())) for split in SPLITS}
        self._full: dict[str, list[ShardFile]] = {split: [] for split in SPLITS}
        self._open: dict[str, ShardFile] = {}

    def append(self, record: SliceRecord, commit: bool = True) -> None:
        """Add a volume; a full shard is completed at once, or with ``commit=False`` by ``close``."""
        split = record.split
        if split not in self._open:
            (self.output / split).mkdir(parents=True, exist_ok=True)
            name = self._next_name(split)
            self._open[split] = ShardFile(self.output / split, name, schema.SLICES, None, self._provenance)
        shard = self._open[split]
        shard.append(record)
        if len(shard.cases) == self.size:
            del self._open[split]
            if commit:
                shard.commit()
            else:
                self._full[split].append(shard)

    def close(self) -> dict[str, set[str]]:
        """Complete what is open; returns the names of the shards that this writer wrote last, by split."""
        names = {}
        for split in SPLITS:
            shards = [*self._full[split], *([self._open[split]] if split in self._open else [])]
            names[split] = {shard.commit().file for shard in shards}
        self._open, self._full = {}, {split: [] for split in SPLITS}
        return names

    def discard(self) -> None:
        """Drop what is not complete."""
        with ExitStack() as stack:
            for shard in [*self._open.values(), *(s for shards in self._full.values() for s in shards)]:
                stack.callback(shard.discard)
        self._open = {}

    def _next_name(self, split: str) -> str:
        extra = 0
        while (name := unit_shard(self.number, extra)) in self._taken[split]:
            extra += 1
        self._taken[split].add(name)
        return name


def unit_shard(number: int, extra: int = 0) -> str:
    """Name of a unit's shard; a folder of many series fills several."""
    name = shard_name(number)
    return name if not extra else f"{name.removesuffix('.h5')}-{extra:03d}.h5"
