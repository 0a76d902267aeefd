"""The run's memory on disk: one JSON line per item, written before its volume goes into a shard.

A run without parts writes ``journal.jsonl``: decided outcomes. A part writes a journal of its own, with
outcomes as they were read: whether a volume equals another part's is decided when all parts are done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from ctflow.parts import Part
from data_prep.ct_rate.prepare import Outcome

FOLDER = ".ingest"
JOURNAL = "journal.jsonl"
JOIN_LOCK = ".join.lock"
"""Held while the parts are joined; a part takes it for the moment in which it begins."""


class Journal:
    """Outcomes by item; later lines replace earlier ones of the same item and case.

    A kill can tear the last line only, and a torn line counts as never written.

    Args:
        output: Folder of the run.
        part: Whose journal; None: the one of decided outcomes.

    Attributes:
        outcomes: Of all journals, by item.
        undecided: Items whose newest outcome is a part's.
        closed: Units that are complete.
    """

    def __init__(self, output: Path, part: Part | None = None) -> None:
        name = JOURNAL if part is None else f"journal-{part.index}-of-{part.count}.jsonl"
        self.path = output / FOLDER / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes, self.undecided, self.closed, self._latest = _read(output)
        self._decides = part is None
        self._stream = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._stream.write("\n")

    def add(self, *outcomes: Outcome) -> None:
        """Write outcomes through to the disk."""
        self._write([asdict(outcome) for outcome in outcomes])
        for outcome in outcomes:
            self.outcomes[outcome.key] = outcome
            (self.undecided.discard if self._decides else self.undecided.add)(outcome.key)

    def close_unit(self, number: int) -> None:
        """Note that a unit is complete."""
        self._write([{"closed": number}])
        self.closed.add(number)

    def open_unit(self, number: int) -> None:
        """Note that a unit's shards are being replaced: what they lack is read anew until it is closed."""
        self._write([{"opened": number}])
        self.closed.discard(number)

    def _write(self, lines: Iterable[dict[str, object]]) -> None:
        for line in lines:
            self._latest = max(self._latest, time.time())  # machines' clocks differ
            self._stream.write(json.dumps({"at": self._latest, **line}) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def read_outcomes(output: Path) -> dict[str, Outcome]:
    """Outcomes of earlier runs, by item; empty without one."""
    return _read(output)[0]


def closed_units(output: Path) -> set[int]:
    """Units that are complete."""
    return _read(output)[2]


def undecided(output: Path) -> set[str]:
    """Items whose newest outcome is a part's: the parts are not joined yet."""
    return _read(output)[1]


def _read(output: Path) -> tuple[dict[str, Outcome], set[str], set[int], float]:
    lines = []
    for path in sorted((output / FOLDER).glob("journal*.jsonl")):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines.append((float(line.pop("at", 0.0)), path.name == JOURNAL, line))
            except (ValueError, TypeError, AttributeError):
                continue
    outcomes: dict[str, Outcome] = {}
    parts: set[str] = set()
    closed: set[int] = set()
    lines.sort(key=lambda line: line[:2])
    for _, decided, line in lines:
        if "closed" in line:
            closed.add(line["closed"])
        elif "opened" in line:
            closed.discard(line["opened"])
        else:
            try:
                outcome = Outcome(**line)
            except TypeError:
                continue
            outcomes[outcome.key] = outcome
            (parts.discard if decided else parts.add)(outcome.key)
    return outcomes, parts, closed, lines[-1][0] if lines else 0.0
