"""Training curves as a plain CSV, written and read: ``step,name,value``, one value a line."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ctflow.files import replaced

CURVES = "curves.csv"
"""Name of the file in a run's folder."""


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """``{name: [(step, value), …]}``; where a resumed run logged a step again, the later value counts."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return {name: sorted(points.items()) for name, points in curves.items()}


HEADER = ["step", "name", "value"]


class CurveFile(Logger):
    """Appends every logged scalar to ``curves.csv``.

    Args:
        folder: The run's folder.
        resumed_at: First step that a resumed run logs; 0: a fresh run.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = folder / CURVES
        self._kept: set[tuple[str, str]] = set()
        """Steps and names of what the last validation before a resume has logged."""
        if self.path.is_file():
            self._forget(resumed_at)

    @rank_zero_only
    def _forget(self, step: int) -> None:
        """Drop what was logged after the checkpoint a run goes on from: it is logged again.

        A validation follows the checkpoint of its step, and is not always repeated: it stays.
        """
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()]
        rows = [row for row in rows if int(row[0]) < step]
        with replaced(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *rows])
        self._kept = {(r[0], r[1]) for r in rows if int(r[0]) == step - 1 and r[1].startswith("val/")}

    @property
    def validated(self) -> bool:
        """Whether the validation that followed the checkpoint's step was logged, all its values at once."""
        return bool(self._kept)

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "curves"

    @property
    def version(self) -> str:
        """Lightning's version of the logger; there is one file per run."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file."""
        return self.path

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the merged configuration is in the same folder."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the values of one step."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(HEADER)
            rows = [[step, k, repr(float(v))] for k, v in metrics.items() if k != "epoch"]
            writer.writerows(row for row in rows if (str(row[0]), row[1]) not in self._kept)
