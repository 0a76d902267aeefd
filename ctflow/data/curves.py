"""Reading the training curves of a run: ``step,name,value``, one value a line."""

from __future__ import annotations

import csv
from pathlib import Path

CURVES = "curves.csv"
"""Name of the file in a run's folder."""


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """``{name: [(step, value), …]}``; where a resumed run logged a step again, the later value counts."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return {name: sorted(points.items()) for name, points in curves.items()}
