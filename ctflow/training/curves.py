"""Training curves as a plain CSV: ``step,name,value``, one value a line."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ctflow.data.curves import CURVES

HEADER = ["step", "name", "value"]


class CurveFile(Logger):
    """Appends every logged scalar to ``curves.csv``.

    Args:
        folder: The run's folder.
        resumed_at: Step of the checkpoint that the run goes on from.
    """

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = folder / CURVES
        self._kept = self._forget(resumed_at) if resumed_at and self.path.is_file() else set()

    @rank_zero_only
    def _forget(self, step: int) -> set[tuple[str, str]]:
        """Drop what was logged after the checkpoint a run goes on from: it is logged again.

        A validation follows the checkpoint of its step, and is not always repeated: it stays.

        Returns:
            Step and name of the values at the checkpoint's step.
        """
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()]
        rows = [r for r in rows if int(r[0]) < step or (int(r[0]) == step and r[1].startswith("val/"))]
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *rows])
        partial.replace(self.path)
        return {(r[0], r[1]) for r in rows if int(r[0]) == step}

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
        """Nothing: the merged configuration lies beside the curves."""

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
