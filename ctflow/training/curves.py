"""Training curves as a plain CSV, written and read: ``step,name,value``, one value a line."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

CURVES = "curves.csv"
"""Name of the file in a run's folder."""


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """``{name: [(step, value), …]}``; where a resumed run logged a step again, the later value counts."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return {name: sorted(points.items()) for name, points in curves.items()}


class CurveFile(Logger):
    """Appends every logged scalar to ``curves.csv``.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / CURVES

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
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, k, repr(float(v))] for k, v in metrics.items() if k != "epoch")
