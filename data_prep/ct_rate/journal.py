"""The run's memory on disk: one JSON line per item, written before its volume goes into a shard."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from data_prep.ct_rate.prepare import Outcome

FOLDER = ".ingest"
JOURNAL = "journal.jsonl"


class Journal:
    """Outcomes by item; later lines replace earlier ones of the same item and case.

    A kill can tear the last line only, and a torn line counts as never written.

    Args:
        output: Folder of the run.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / FOLDER / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes = read_outcomes(output)
        self._stream = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._stream.write("\n")

    def add(self, outcome: Outcome) -> None:
        """Write an outcome through to the disk."""
        self._stream.write(json.dumps(asdict(outcome)) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.outcomes[outcome.key] = outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def read_outcomes(output: Path) -> dict[str, Outcome]:
    """What earlier runs did, by item; nothing where there was none."""
    path = output / FOLDER / JOURNAL
    outcomes: dict[str, Outcome] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                outcome = Outcome(**json.loads(line))
            except (ValueError, TypeError):
                continue
            outcomes[outcome.key] = outcome
    return outcomes
